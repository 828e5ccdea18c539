"""The time that one attempt to fetch a file may take."""

from __future__ import annotations

import time

from shards.remote.errors import TransientSourceError


class Pace:
    """Limits the wait for the next byte, and the whole attempt by the bytes received so far.

    After n bytes an attempt may have taken `idle + n / rate` seconds: a server that sends a byte a second, or headers
    without end, is given up after about `idle` seconds, and no file takes longer than its size allows.
    """

    def __init__(self, *, idle: float, rate: float) -> None:
        """Start the attempt; `idle` is in seconds, `rate` the least mean rate in bytes per second."""
        self._idle, self._rate = idle, rate
        self._began = self._last = time.monotonic()
        self._received = 0

    def count(self, size: int) -> None:
        """Count `size` bytes of the file as received now."""
        self._received += size
        self._last = time.monotonic()

    def remaining(self) -> float:
        """Return the seconds to wait for the next byte at most; raise `TransientSourceError` if none are left."""
        left = self._began + self._idle + self._received / self._rate - time.monotonic()
        if left <= 0:
            raise self.fault()
        return min(self._idle, left)

    def fault(self) -> TransientSourceError:
        """Return the error of an attempt that ran out of time."""
        now = time.monotonic()
        if now - self._last >= 0.9 * self._idle:
            return TransientSourceError(f"no byte for {now - self._last:.1f} s (timeout_seconds = {self._idle:g})")
        return TransientSourceError(
            f"too slow: {self._received} bytes in {now - self._began:.1f} s "
            f"(min_kib_per_second = {self._rate / 1024:g} after {self._idle:g} s)"
        )
