"""Fetches a whole, checked file from a URL, and repeats attempts that failed for a reason that may pass."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator

from shards.config import SourceConfig
from shards.remote import objects, web
from shards.remote.errors import SourceError, TransientSourceError
from shards.remote.pace import Pace
from shards.remote.sink import Sink, WrongBytesError

MAX_BYTES = 1 << 28  # of files whose size no manifest states: dataset.json, the denylist, questions and labels
_MAX_WAIT = 60.0  # seconds between two attempts


def fetch(url: str, sink: Sink, config: SourceConfig) -> None:
    """Write the complete, checked file at `url` to `sink`; retry transient faults with exponential backoff.

    Broken connections, time-outs, malformed headers, truncated or oversized bodies, wrong bytes, and HTTP 408, 425, 429
    and 5xx are transient; all else is final. Raises `SourceError` with the URL, the last fault and the number of
    attempts. Each attempt ends after `timeout_seconds`, plus the time for the bytes received at `min_kib_per_second`.
    """
    for attempt in range(1, config.attempts + 1):
        try:
            sink.restart()
            for data in _stream(url, sink, config):
                sink.write(data)
            sink.check()
            return
        except (TransientSourceError, WrongBytesError) as error:
            if attempt == config.attempts:
                raise SourceError(f"{url}: {error}; gave up after {attempt} attempts") from error
            time.sleep(min(config.first_wait_seconds * 2 ** min(attempt - 1, 20), _MAX_WAIT))


def fetch_bytes(
    url: str,
    config: SourceConfig,
    sha256: str | None = None,
    *,
    limit: int = MAX_BYTES,
    check: Callable[[bytes], None] | None = None,
) -> bytes:
    """Return the file at `url`, of at most `limit` bytes; see `fetch` for retries and errors.

    It is checked against its hash if one is given, and by `check`, which raises `WrongBytesError`.
    """
    sink = _Memory(sha256, limit, check)
    fetch(url, sink, config)
    return sink.data()


class _Memory(Sink):
    """A sink in memory, for small files of unknown size."""

    def __init__(self, sha256: str | None, limit: int, check: Callable[[bytes], None] | None) -> None:
        self._buffer, self._own_check = io.BytesIO(), check
        super().__init__(self._buffer, sha256=sha256, limit=limit)

    def check(self) -> None:
        super().check()
        if self._own_check is not None:
            self._own_check(self.data())

    def data(self) -> bytes:
        return self._buffer.getvalue()


def _stream(url: str, sink: Sink, config: SourceConfig) -> Iterator[bytes]:
    """Return the bytes at `url`; see `web.stream` and `objects.stream` for their errors."""
    pace = Pace(idle=config.timeout_seconds, rate=config.min_kib_per_second * 1024)
    if url.startswith(("http://", "https://")):
        return web.stream(url, size=sink.size, limit=sink.limit, is_hashed=sink.sha256 is not None, pace=pace)
    return objects.stream(url, size=sink.size, limit=sink.limit, pace=pace)
