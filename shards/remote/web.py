"""Streams a file from an HTTP server and checks everything around its bytes: status, headers, length and pace."""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import string
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from shards.remote.errors import AbsentError, ForbiddenError, SourceError, TransientSourceError
from shards.remote.pace import Pace

CHUNK = 1 << 20  # bytes read at a time
_TRANSIENT_STATUS = frozenset({408, 425, 429})  # and all from 500
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_END_SECONDS = 0.2  # wait for bytes that exceed Content-Length, where the server keeps the connection open


def stream(url: str, *, size: int | None, limit: int, is_hashed: bool, pace: Pace) -> Iterator[bytes]:
    """Yield the bytes of the file at an http(s) URL.

    `size` is the file's size in bytes if it is known, and `limit` the greatest that is accepted. A file that is not
    `is_hashed`, and so cannot be checked by its receiver, must be framed unmistakably. Raises `AbsentError` for 404
    and 410, `ForbiddenError` for 403, `SourceError` for other client errors, and `TransientSourceError` for everything
    else that is not a complete answer: broken connections, malformed headers, redirects that lead nowhere, more or
    fewer bytes than announced, and servers that are too slow.
    """
    try:
        with _open(url, pace) as response:
            _require_ok(url, response)
            length = _length(response, size=size, limit=limit)
            if length is None and not response.chunked and not is_hashed:
                raise TransientSourceError("the answer has no Content-Length, so that a part would pass for the whole")
            yield from _body(response, length, is_hashed=is_hashed, pace=pace)
    except SourceError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TransientSourceError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _open(url: str, pace: Pace) -> _Response:
    """Return the answer at the end of all redirects, whatever its status; only http and https are followed."""
    opener = urllib.request.OpenerDirector()
    handlers = [urllib.request.ProxyHandler(), _HttpHandler(pace), _HttpsHandler(pace)]
    for handler in handlers:
        opener.add_handler(handler)
    for _ in range(_MAX_REDIRECTS + 1):
        response: _Response = opener.open(url, timeout=pace.remaining())
        if response.status not in _REDIRECTS:
            return response
        response.close()  # its body is of no interest, and may have no end
        url = _target(url, response.headers.get("Location"))
    raise TransientSourceError(f"more than {_MAX_REDIRECTS} redirects, the last to {_short(url)}")


def _target(url: str, location: str | None) -> str:
    if not location:
        raise TransientSourceError("a redirect without Location")
    target = urllib.parse.urljoin(url, urllib.parse.quote(location, encoding="iso-8859-1", safe=string.punctuation))
    scheme = urllib.parse.urlsplit(target).scheme
    if scheme not in ("http", "https"):
        raise TransientSourceError(f"a redirect to {_short(target)}: only http and https are followed")
    if scheme == "http" and url.startswith("https:"):
        raise TransientSourceError(f"a redirect from https to {_short(target)}, which is not encrypted")
    return target


def _require_ok(url: str, response: _Response) -> None:
    status = response.status
    if status == 200:
        return
    reason = "".join(char for char in response.reason[:80] if char.isprintable())
    text = f"HTTP {status} {reason}".rstrip()
    if status in _TRANSIENT_STATUS or status >= 500 or status < 400:
        raise TransientSourceError(text)
    kind = {403: ForbiddenError, 404: AbsentError, 410: AbsentError}.get(status, SourceError)
    raise kind(f"{url}: {text}")


def _length(response: _Response, *, size: int | None, limit: int) -> int | None:
    """Return Content-Length, None if the body is chunked or ends with the connection; raise for malformed headers."""
    headers = response.headers
    if headers.defects or headers.get_payload():  # lines after those that could be parsed
        raise TransientSourceError("malformed headers")
    for name, allowed in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        values = [value.strip().lower() for value in headers.get_all(name, [])]
        if values not in ([], [""], [allowed]):
            raise TransientSourceError(f"{name}: {_short(', '.join(values))}, which was not asked for")
    if "Content-Range" in headers:
        raise TransientSourceError(f"a part was sent: Content-Range: {_short(headers['Content-Range'])}")
    if response.chunked:
        return None
    values = [part.strip() for value in headers.get_all("Content-Length", []) for part in value.split(",")]
    if not values:
        return None
    if len(set(values)) > 1 or not (values[0].isascii() and values[0].isdigit() and len(values[0]) < 19):
        raise TransientSourceError(f"malformed Content-Length: {_short(', '.join(values))}")
    length = int(values[0])
    if size is not None and length != size:
        raise TransientSourceError(f"Content-Length is {length}, but the manifest says {size} bytes")
    if length > limit:
        raise TransientSourceError(f"Content-Length is {length}, more than the {limit} bytes that are accepted")
    return length


def _body(response: _Response, length: int | None, *, is_hashed: bool, pace: Pace) -> Iterator[bytes]:
    if not response.chunked:
        response.length = None  # counted here, since http.client stops at Content-Length whatever follows
    received = 0
    while received != length:
        data = response.read1(CHUNK if length is None else min(CHUNK, length - received))
        if not data:
            break
        received += len(data)
        pace.count(len(data))
        yield data
    if length is not None and received != length:
        raise TransientSourceError(f"truncated: received {received} of {length} bytes")
    if length is not None and not is_hashed and response.has_more():
        raise TransientSourceError(f"more than the {length} bytes that Content-Length says")


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:120]}…")


class _PacedIO(io.RawIOBase):
    """A socket's bytes, each read within the time that the pace leaves."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, pace: Pace) -> None:
        self._sock, self._raw, self._pace = sock, raw, pace
        self.is_ending = False  # only a moment is waited for what should not come
        self.is_at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_END_SECONDS if self.is_ending else self._pace.remaining())
        try:
            received = self._raw.readinto(buffer)
            self.is_at_end |= received == 0
            return received
        except TimeoutError:
            if self.is_ending:
                return 0
            raise self._pace.fault() from None

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose status line, headers and body keep a pace."""

    def __init__(self, sock: socket.socket, *arguments: Any, pace: Pace, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._paced = _PacedIO(sock, self.fp.detach(), pace)
        self.fp = io.BufferedReader(self._paced)

    def begin(self) -> None:
        """Read status line and headers, which http.client also takes for complete where the connection ends."""
        super().begin()
        if self._paced.is_at_end:
            raise TransientSourceError("the answer ends within its headers")

    def has_more(self) -> bool:
        """Return whether bytes follow the body that was read."""
        self._paced.is_ending = True
        return bool(self.fp.read1(1))


def _connect(kind: type[http.client.HTTPConnection], pace: Pace, host: str, **options: Any) -> Any:
    connection = kind(host, **options)
    connection.response_class = functools.partial(_Response, pace=pace)  # type: ignore[assignment]
    return connection


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_connect, http.client.HTTPConnection, self._pace), request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        connect = functools.partial(_connect, http.client.HTTPSConnection, self._pace)
        return self.do_open(connect, request, context=ssl.create_default_context())
