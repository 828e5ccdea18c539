"""An HTTP server on the loopback interface that injects faults."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path

Pieces = Iterator[bytes | float]  # bytes to send and seconds to wait
DRIP = 0.03  # seconds between the bytes of a server that drips


class FaultyServer:
    """Serves a folder; `faults[path]` lists the faults of the next requests for a path, in order.

    Faults: a status (`503`, `404`, `403`), `cut` (half of the body), `wrong` (a byte changed), `hang` (no byte until
    the client gives up), `slow` (in small pieces), `drop` (the connection closes without an answer), `reset` (it is
    reset in the middle), and the names in `HOSTILE`. `choose`, if set, decides for the paths without a listed fault.
    Absent files are answered with `absent_status`: 403 is what S3 answers to a client that may not list.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.choose: Callable[[str], str | Callable[[bytes], Pieces]] | None = None
        self.absent_status = 404
        self.requests: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def encrypt(self, certificate: Path, key: Path) -> None:
        """Speak TLS from now on."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def head(status: str = "200 OK", **headers: object) -> bytes:
    """Return the head of an answer; `_` in names of headers is `-`."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def framed(body: bytes, **headers: object) -> Pieces:
    """Yield a complete answer with this body."""
    yield head(**{"Content_Length": len(body), **headers})
    yield body


def _of_length(length: object) -> Callable[[bytes], Pieces]:
    return lambda data: framed(data, Content_Length=length)


def _redirect(location: str, body: Pieces | None = None) -> Callable[[bytes], Pieces]:
    def answer(_: bytes) -> Pieces:
        yield head("302 Found", Location=location)
        yield from body or iter(())

    return answer


def _chunked(*chunks: bytes) -> Callable[[bytes], Pieces]:
    """Answer with the file in place of `BODY` in the chunks."""

    def answer(data: bytes) -> Pieces:
        yield head(Transfer_Encoding="chunked")
        half = b"%x\r\n%s\r\n" % (len(data) // 2, data[: len(data) // 2])
        yield from (chunk.replace(b"HALF", half) for chunk in chunks)

    return answer


def _dripping(data: bytes) -> Pieces:
    for byte in data:
        yield bytes([byte])
        yield DRIP


def _drip(data: bytes) -> Pieces:
    yield head(Content_Length=len(data))
    yield from _dripping(data)


def _half(data: bytes) -> Pieces:
    yield head()
    yield data[: len(data) // 2]


def _endless(start: bytes, more: bytes) -> Callable[[bytes], Pieces]:
    def answer(data: bytes) -> Pieces:
        yield start
        yield data
        yield from repeat(more)

    return answer


def _headers_without_end(_: bytes) -> Pieces:
    yield b"HTTP/1.1 200 OK\r\n"
    yield from (b"X-%d: a\r\n" % number for number in range(10**6))


HOSTILE: dict[str, Callable[[bytes], Pieces]] = {
    "length short": lambda data: framed(data, Content_Length=len(data) // 2),
    "length long": lambda data: framed(data, Content_Length=len(data) + 10),
    "length negative": _of_length(-5),
    "length text": _of_length("many"),
    "length underscore": lambda data: framed(data, Content_Length=f"{len(data) // 10}_{len(data) % 10}"),
    "length plus": lambda data: framed(data, Content_Length=f"+{len(data)}"),
    "length immense": _of_length(10**18),
    "length two": lambda data: framed(data, Content_Length=f"{len(data)}\r\nContent-Length: {len(data) // 2}"),
    "part of it": lambda data: iter(
        (
            head("206 Partial Content", Content_Length=9, Content_Range=f"bytes 0-8/{len(data)}"),
            data[:9],
        )
    ),
    "range from 5": lambda data: framed(data[5:], Content_Range=f"bytes 5-{len(data) - 1}/{len(data)}"),
    "no length": _half,
    "surplus": lambda data: framed(data + b"more", Content_Length=len(data)),
    "chunk size": _chunked(b"HALF", b"zz\r\n"),
    "chunk negative": _chunked(b"HALF", b"-5\r\n", b"abcde\r\n0\r\n\r\n"),
    "chunk cut": _chunked(b"HALF"),
    "chunk empty": _chunked(b"HALF", b"\r\n\r\n"),
    "gzip": lambda data: framed(gzip.compress(data), Content_Encoding="gzip"),
    "deflate": lambda data: framed(data, Transfer_Encoding="deflate"),
    "redirect without end": _redirect("?again"),
    "redirect to a file": _redirect("file:///etc/passwd"),
    "redirect to ftp": _redirect("ftp://127.0.0.1/dataset.json"),
    "redirect nowhere": _redirect(""),
    "redirect malformed": _redirect("http://[::1/x"),
    "redirect of bytes": _redirect("http://127.0.0.1:\x80\xff/"),
    "redirect with a body": _redirect("ftp://127.0.0.1/", repeat(bytes(1000))),
    "header bomb": _headers_without_end,
    "header line": _endless(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 4096),
    "header garbage": lambda data: iter((b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 3\r\n\r\n", data)),
    "header without end": lambda data: iter((head(Content_Length=0)[:-2], data)),
    "header broken off": lambda data: iter((head(Content_Length=len(data))[:-2],)),
    "header broken by returns": lambda data: iter((head(Content_Length=0)[:-2] + b"\r\r\n", data, b"\r\n\r\n", data)),
    "continue": _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "no http": lambda data: iter((data[::-1],)),
    "status line": lambda data: iter((b"HTTP/1.1 two hundred\r\n\r\n", data)),
    "status 204": lambda data: iter((head("204 No Content"),)),
    "status 999": lambda data: iter((head("999 Odd", Content_Length=len(data)), data)),
    "status 304": lambda data: iter((head("304 Not Modified"),)),
    "drip": _drip,
    "drip the head": lambda data: _dripping(head(Content_Length=len(data)) * 9),
    "drip a chunk": lambda data: (
        piece for part in (head(Transfer_Encoding="chunked"),) for piece in (part, *_dripping(b"5" * 50))
    ),
    "endless": _endless(head(), bytes(1 << 16)),
    "endless chunks": _endless(head(Transfer_Encoding="chunked") + b"0\r\n", b"X: a\r\n"),
}
"""Answers that are no complete file: fault → the pieces to send in place of the right answer with these data."""


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, owner: FaultyServer, *arguments: object) -> None:
        self._owner = owner
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        owner = self._owner
        owner.requests[self.path] += 1
        planned = owner.faults[self.path]
        fault = planned.popleft() if planned else owner.choose(self.path) if owner.choose is not None else ""
        path = owner.root / self.path.lstrip("/").partition("?")[0]
        if fault == "drop":
            self.connection.close()
            return
        if isinstance(fault, str) and fault.isdigit():
            with suppress(OSError):  # the client gave up
                self.send_error(int(fault))
            return
        if not path.is_file() and fault not in HOSTILE:
            self.send_error(owner.absent_status)
            return
        data = bytearray(path.read_bytes() if path.is_file() else b"absent")
        if not isinstance(fault, str) or fault in HOSTILE:
            self._send_raw((HOSTILE[fault] if isinstance(fault, str) else fault)(bytes(data)))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "hang":
            time.sleep(3)
            return
        if fault == "wrong":
            data[len(data) // 2] ^= 1
        pieces = [data[: len(data) // 2]] if fault in ("cut", "reset") else [data]
        if fault == "slow":
            step = max(1, len(data) // 20)
            pieces = [data[at : at + step] for at in range(0, len(data), step)]
        for piece in pieces:
            try:
                self.wfile.write(piece)
            except OSError:
                return
            if fault == "slow":
                time.sleep(0.02)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send_raw(self, pieces: Pieces) -> None:
        with suppress(OSError):  # the client gave up
            for piece in pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    self.connection.sendall(piece)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def faulty_server(root: Path) -> Iterator[FaultyServer]:
    """Serve `root` while the context is open."""
    server = FaultyServer(root)
    try:
        yield server
    finally:
        server.close()
