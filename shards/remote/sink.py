"""The target of a fetch, which counts, limits and checks the bytes that arrive."""

from __future__ import annotations

import hashlib
import threading
from typing import BinaryIO

this_thread = threading.local()  # is_stopped: tells whether nobody waits for this thread's fetches any more


class WrongBytesError(OSError):
    """A fetched file whose size or hash differs from the manifest."""


class PrefetchStoppedError(OSError):
    """A fetch in a prefetcher's thread that nobody waits for any more."""


class Sink:
    """The target of a fetch: counts and hashes the bytes written to a file, and can start over.

    `sha256` and `size` are what the file must have, where that is known; `limit` is the greatest size accepted.
    """

    def __init__(
        self, handle: BinaryIO, *, sha256: str | None, size: int | None = None, limit: int | None = None
    ) -> None:
        greatest = size if limit is None else limit
        if greatest is None:
            raise ValueError("a sink needs a size or a limit")
        self._handle, self.sha256, self.size, self.limit = handle, sha256, size, greatest
        self.restart()

    def restart(self) -> None:
        """Discard what was written so far."""
        _require_wanted()
        self._handle.seek(0)
        if self.size is None:
            self._handle.truncate()
        self._digest = hashlib.sha256()
        self._written = 0

    def write(self, data: bytes) -> None:
        """Write the next bytes; raise `WrongBytesError` if they exceed the file's size."""
        _require_wanted()
        self._written += len(data)
        if self._written > self.limit:
            known = "the expected" if self.size is not None else "the accepted"
            raise WrongBytesError(f"received more than {known} {self.limit} bytes")
        self._digest.update(data)
        self._handle.write(data)

    def check(self) -> None:
        """Raise `WrongBytesError` unless the expected bytes were written."""
        if self.size is not None and self._written != self.size:
            raise WrongBytesError(f"received {self._written} of {self.size} bytes")
        if self.sha256 is not None and self._digest.hexdigest() != self.sha256:
            raise WrongBytesError(f"the sha256 is {self._digest.hexdigest()}, expected {self.sha256}")


def _require_wanted() -> None:
    """Raise `PrefetchStoppedError` in the thread of a stopped prefetcher."""
    is_stopped = getattr(this_thread, "is_stopped", None)
    if is_stopped is not None and is_stopped():
        raise PrefetchStoppedError("the prefetcher was stopped")
