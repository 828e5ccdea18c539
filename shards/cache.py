"""A node's cache of fetched files: shared by all its processes, addressed by hash, bounded in bytes, safe to kill.

    FOLDER/objects/<sha256>    complete, checked files; the mtime is the time of last use
    FOLDER/filling/<sha256>    partial files of full size, each locked by the process that fills it
    FOLDER/budget.lock         held while files are evicted

Locks are the kernel's (`flock`): those of a process that dies are released, and the next process removes its partial
files. Readers open, read and close; a file that was evicted in between is fetched again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

_WAIT_SECONDS = 0.05  # between attempts to reserve room that other processes' fills occupy
_SPARED_SECONDS = 30.0  # prefetching does not evict files that were used within this time


class CacheError(OSError):
    """A file larger than the cache; the message has the folder, the file's size and the budget."""

    exit_code: ClassVar[int] = 1


class WrongBytesError(OSError):
    """A fetched file whose size or hash differs from the manifest."""


@dataclass
class CacheCounts:
    """Events of this process since it opened the cache."""

    hits: int = 0
    fills: int = 0  # files fetched into the cache


class Sink:
    """The target of a fetch: counts and hashes the bytes written to a file, and can start over."""

    def __init__(self, handle: BinaryIO, *, sha256: str, size: int) -> None:
        self._handle, self._sha256, self._size = handle, sha256, size
        self.restart()

    def restart(self) -> None:
        """Discard what was written so far."""
        self._handle.seek(0)
        self._digest = hashlib.sha256()
        self._written = 0

    def write(self, data: bytes) -> None:
        """Write the next bytes; raise `WrongBytesError` if they exceed the file's size."""
        self._written += len(data)
        if self._written > self._size:
            raise WrongBytesError(f"received more than the expected {self._size} bytes")
        self._digest.update(data)
        self._handle.write(data)

    def check(self) -> None:
        """Raise `WrongBytesError` unless the expected bytes were written."""
        if self._written != self._size:
            raise WrongBytesError(f"received {self._written} of {self._size} bytes")
        if self._digest.hexdigest() != self._sha256:
            raise WrongBytesError(f"the sha256 is {self._digest.hexdigest()}, expected {self._sha256}")


class ShardCache:
    """A folder of files named by sha256, at most `budget` bytes in total."""

    def __init__(self, folder: Path, *, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self.counts = CacheCounts()
        self._objects, self._filling = folder / "objects", folder / "filling"
        for path in (self._objects, self._filling):
            path.mkdir(parents=True, exist_ok=True)

    def find(self, sha256: str) -> Path | None:
        """Return the path of a cached file and mark it as used now; None if it is not cached."""
        path = self._objects / sha256
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def ensure(self, sha256: str, size: int, fill: Callable[[Sink], None], *, is_prefetch: bool = False) -> Path | None:
        """Return the path of the file with this hash and `size` in bytes, filling it first if it is not cached.

        One process calls `fill`, which writes to a `Sink`; others wait for it. Exceptions of `fill` propagate and leave
        no file. A prefetch returns None rather than evict recently used files. Raises `CacheError` for a file larger
        than the budget, and `WrongBytesError` if `fill` wrote other bytes.
        """
        if (path := self.find(sha256)) is not None:
            self.counts.hits += 1
            return path
        if size > self.budget:
            raise CacheError(f"{self.folder}: a file of {size} bytes exceeds the cache's budget of {self.budget}")
        with self._locked_filling(sha256) as handle:
            if (path := self.find(sha256)) is not None:  # another process filled it while this one waited
                self.counts.hits += 1
                return path
            if not self._reserve(handle, sha256, size, is_prefetch=is_prefetch):
                return None
            sink = Sink(handle, sha256=sha256, size=size)
            fill(sink)
            sink.check()
            handle.flush()
            os.replace(self._filling / sha256, self._objects / sha256)
        self.counts.fills += 1
        return self._objects / sha256

    @contextmanager
    def _locked_filling(self, sha256: str) -> Iterator[BinaryIO]:
        """Yield the partial file, locked; remove it afterwards unless it was renamed."""
        path = self._filling / sha256
        while True:
            handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_same_file(handle, path):
                break
            handle.close()  # the process that held the lock has renamed or removed this file
        with handle:
            try:
                yield handle
            finally:
                if _is_same_file(handle, path):
                    path.unlink(missing_ok=True)

    def _reserve(self, handle: BinaryIO, sha256: str, size: int, *, is_prefetch: bool) -> bool:
        """Make room for `size` bytes and occupy it by extending the file; return whether that was possible."""
        while True:
            with self._budget_lock():
                if self._make_room(sha256, size, spare=_SPARED_SECONDS if is_prefetch else 0.0):
                    handle.truncate(size)
                    return True
            if is_prefetch:
                return False
            time.sleep(_WAIT_SECONDS)  # other processes' fills occupy the room; once complete, they can be evicted

    def _make_room(self, sha256: str, size: int, *, spare: float) -> bool:
        held = self._size_of_fillings(except_for=sha256)
        files = []
        for entry in os.scandir(self._objects):
            with suppress(FileNotFoundError):
                files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        held += sum(file_size for _, file_size, _ in files)
        for used, file_size, path in sorted(files):
            if held + size <= self.budget or time.time() - used < spare:
                break
            os.unlink(path)
            held -= file_size
        return held + size <= self.budget

    def _size_of_fillings(self, *, except_for: str) -> int:
        """Return the bytes of partial files in progress; remove those of dead processes."""
        held = 0
        for entry in os.scandir(self._filling):
            if entry.name == except_for:
                continue
            with suppress(FileNotFoundError), open(entry.path, "r+b") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held += os.fstat(handle.fileno()).st_size
                    continue
                if _is_same_file(handle, Path(entry.path)):
                    os.unlink(entry.path)
        return held

    @contextmanager
    def _budget_lock(self) -> Iterator[None]:
        with open(self.folder / "budget.lock", "a+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


class Prefetcher:
    """A thread that fetches shards one after another; failed fetches are left to the reader, whose error counts."""

    def __init__(self, fetch: Callable[[int], None]) -> None:
        self._fetch = fetch
        self._wanted: list[int] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
        self._thread.start()

    def want(self, shards: Sequence[int]) -> None:
        """Replace the queue: fetch these shards next, in this order."""
        with self._changed:
            self._wanted = list(shards)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the current fetch."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._is_stopped:
                    self._changed.wait()
                if self._is_stopped:
                    return
                shard = self._wanted.pop(0)
            with suppress(OSError):  # the worker that needs the shard fetches it again and raises the error
                self._fetch(shard)


def _is_same_file(handle: BinaryIO, path: Path) -> bool:
    """Return whether `path` still refers to the open file."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
