"""A node's cache of fetched files, shared by all its processes: named by hash, bounded in bytes, safe to kill.

    FOLDER/objects/<sha256>    whole files, checked; the time of last use is the file's own
    FOLDER/filling/<sha256>    files on their way, each locked by the process that fills it; of full size from the start
    FOLDER/budget.lock         held while room is made

Locks are the kernel's (`flock`): a process that dies lets go of them, and what it left is removed by the next that
looks. Readers open, read and close; a file that was evicted meanwhile is fetched again.
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

_WAIT_SECONDS = 0.05  # between looks at a budget that others' fills take up
_SPARED_SECONDS = 30.0  # prefetching does not push out what was used within this


class CacheError(OSError):
    """A cache that cannot hold what is asked of it; the message names the folder, the size and the budget."""

    exit_code: ClassVar[int] = 1


class WrongBytesError(OSError):
    """A file that came with another size or hash than the manifest says."""


@dataclass
class CacheCounts:
    """What this process did with the cache."""

    hits: int = 0
    fills: int = 0
    filled_bytes: int = 0
    evictions: int = 0


class Sink:
    """Where a fill writes to; counts and hashes as it goes, and can start again."""

    def __init__(self, handle: BinaryIO, *, sha256: str, size: int) -> None:
        self._handle, self._sha256, self._size = handle, sha256, size
        self.restart()

    def restart(self) -> None:
        """Forget what was written so far."""
        self._handle.seek(0)
        self._digest = hashlib.sha256()
        self._written = 0

    def write(self, data: bytes) -> None:
        """Write the next bytes; raise `WrongBytesError` where they are more than the file has."""
        self._written += len(data)
        if self._written > self._size:
            raise WrongBytesError(f"more than the expected {self._size} bytes came")
        self._digest.update(data)
        self._handle.write(data)

    def check(self) -> None:
        """Raise `WrongBytesError` unless exactly the expected bytes were written."""
        if self._written != self._size:
            raise WrongBytesError(f"{self._written} of {self._size} bytes came")
        if self._digest.hexdigest() != self._sha256:
            raise WrongBytesError(f"the bytes hash to {self._digest.hexdigest()}, the manifest says {self._sha256}")


class ShardCache:
    """Files by sha256 in a folder of this node, at most `budget` bytes of them."""

    def __init__(self, folder: Path, *, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self.counts = CacheCounts()
        self._objects, self._filling = folder / "objects", folder / "filling"
        for path in (self._objects, self._filling):
            path.mkdir(parents=True, exist_ok=True)

    def find(self, sha256: str) -> Path | None:
        """Return a file that is here, and count it as used now; None where it is not here."""
        path = self._objects / sha256
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def ensure(self, sha256: str, size: int, fill: Callable[[Sink], None], *, is_prefetch: bool = False) -> Path | None:
        """Return the file with this hash, filled by `fill` where it is not here yet; one process fills, others wait.

        `fill` writes to the sink and checks it; what it raises is passed on and leaves nothing behind. A prefetch gives
        up (None) rather than push out what was used moments ago. Raises `CacheError` for a file above the budget.
        """
        if (path := self.find(sha256)) is not None:
            self.counts.hits += 1
            return path
        if size > self.budget:
            raise CacheError(f"{self.folder}: a file of {size} bytes, and the cache may hold {self.budget}")
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
        self.counts.filled_bytes += size
        return self._objects / sha256

    @contextmanager
    def _locked_filling(self, sha256: str) -> Iterator[BinaryIO]:
        """Yield the file to fill, locked; it is removed unless it was renamed."""
        path = self._filling / sha256
        while True:
            handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_same_file(handle, path):
                break
            handle.close()  # whoever held the lock has finished with that file
        with handle:
            try:
                yield handle
            finally:
                if _is_same_file(handle, path):
                    path.unlink(missing_ok=True)

    def _reserve(self, handle: BinaryIO, sha256: str, size: int, *, is_prefetch: bool) -> bool:
        """Make room for `size` bytes and take it by giving the file its size; return whether that was possible."""
        while True:
            with self._budget_lock():
                if self._make_room(sha256, size, spare=_SPARED_SECONDS if is_prefetch else 0.0):
                    handle.truncate(size)
                    return True
            if is_prefetch:
                return False
            time.sleep(_WAIT_SECONDS)  # others' fills hold the room; they become files that can be evicted

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
            self.counts.evictions += 1
            held -= file_size
        return held + size <= self.budget

    def _size_of_fillings(self, *, except_for: str) -> int:
        """Return the bytes taken by fills on their way; remove those whose process is gone."""
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
    """A thread that fetches, one after another, what was last asked of it; what fails is left to the reader."""

    def __init__(self, fetch: Callable[[int], None]) -> None:
        self._fetch = fetch
        self._wanted: list[int] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
        self._thread.start()

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these shards next, in this order, in place of what was wanted before."""
        with self._changed:
            self._wanted = list(shards)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread once the fetch under way is done."""
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
            try:
                self._fetch(shard)
            except OSError:
                self.failed += 1  # a worker that needs the shard fetches it again, and its error stops the run


def _is_same_file(handle: BinaryIO, path: Path) -> bool:
    """Return whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
