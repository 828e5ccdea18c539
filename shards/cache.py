"""A node's cache of fetched files: shared by all its processes, addressed by hash, bounded in bytes, safe to kill.

    FOLDER/objects/<sha256>             complete, checked files; the access time is the time of last use
    FOLDER/sums/<sha256>                checksums of the file's blocks, against which every read is checked
    FOLDER/filling/<sha256>             empty, locked by the process that fills this file
    FOLDER/filling/<sha256>.<pid>-<n>   partial files of full size, each locked by the process that fills it
    FOLDER/budget.lock                  held while files are evicted

Locks are the kernel's (`flock`): those of a process that dies are released, and the next process removes its partial
files. Readers open, read and close; a file that was evicted in between is fetched again. Only files of this user count:
the folders are created for this user alone, and links or files of others in them are removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards import files
from shards.remote import sums
from shards.remote.private import (
    FULL,
    allocate,
    full_disk,
    is_own_file,
    is_same_file,
    lock,
    open_own,
    private_folder,
    reporting_a_full_disk,
    unlink,
)
from shards.remote.private import CacheError as CacheError
from shards.remote.sink import Sink as Sink
from shards.remote.sink import WrongBytesError as WrongBytesError
from shards.remote.sink import this_thread
from shards.remote.sums import BlockSums

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.05  # between attempts to reserve room that other processes' fills occupy
_SPARED_SECONDS = 30.0  # prefetching does not evict files that were used within this time
_SOUND_SECONDS = 600.0  # a file found sound is not checked again within this time, unless it was written to
_MAX_TABLES = 64  # whose checksums are kept in memory, 256 KiB for each GiB of a file


@dataclass
class CacheCounts:
    """Events of this process since it opened the cache."""

    hits: int = 0
    fills: int = 0  # files fetched into the cache
    repairs: int = 0  # files that were found wrong and removed


class _SummedSink(Sink):
    """A sink that gathers the checksums of the file's blocks."""

    def restart(self) -> None:
        super().restart()
        self.sums = BlockSums()

    def write(self, data: bytes) -> None:
        super().write(data)
        self.sums.update(data)


class ShardCache:
    """A folder of files named by sha256, at most `budget` bytes in total."""

    def __init__(self, folder: Path, *, budget: int) -> None:
        """Open the cache in `folder`; raise `CacheError` for a folder that others could write to."""
        self.folder, self.budget = folder, budget
        self.counts = CacheCounts()
        self._objects, self._filling, self._sums = folder / "objects", folder / "filling", folder / "sums"
        for path in (folder, self._objects, self._filling, self._sums):
            private_folder(path)
        files.remove_temporaries(self._sums, is_locked=False)
        self._read: dict[str, _Identity] = {}  # sha256 → the file that was read last
        self._tables: OrderedDict[str, array[int]] = OrderedDict()  # sha256 → checksums of its blocks
        self._sound: dict[str, tuple[_Identity, float]] = {}  # sha256 → a file that had its hash, and when, monotonic

    def find(self, sha256: str, size: int | None = None) -> Path | None:
        """Return the path of a cached file and mark it as used now; None if it is not cached.

        A file of another size, a link or a file of another user is removed.
        """
        path = self._objects / sha256
        try:
            status = os.lstat(path)
            if not is_own_file(status) or (size is not None and status.st_size != size):
                self._remove(path, status, "no file of this user, or of another size")
                return None
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns), follow_symlinks=False)
        except FileNotFoundError:
            return None
        return path

    def ensure(self, sha256: str, size: int, fill: Callable[[Sink], None], *, is_prefetch: bool = False) -> Path | None:
        """Return the path of the file with this hash and `size` in bytes, filling it first if it is not cached.

        One process calls `fill`, which writes to a `Sink`; others wait for it. Exceptions of `fill` propagate and leave
        no file. A prefetch returns None rather than evict recently used files. Raises `CacheError` for a file larger
        than the budget or than its disk has room for, and `WrongBytesError` if `fill` wrote other bytes.
        """
        if (path := self.find(sha256, size)) is not None:
            self.counts.hits += 1
            return path
        if size > self.budget:
            raise CacheError(f"{self.folder}: a file of {size} bytes exceeds the cache's budget of {self.budget}")
        with self._locked(sha256):
            if (path := self.find(sha256, size)) is not None:  # another process filled it while this one waited
                self.counts.hits += 1
                return path
            partial = self._reserve(sha256, size, is_prefetch=is_prefetch)
            if partial is None:
                return None
            with partial as handle:
                try:
                    self._fill(handle, sha256, size, fill)
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(handle.name)
        self.counts.fills += 1
        return self._objects / sha256

    def read(self, sha256: str, offset: int, size: int) -> bytes | None:
        """Return `size` bytes at `offset` of a cached file, fewer if it ends before.

        None if it is not cached, or was wrong where it was read and is removed: ensure it again.
        """
        path = self._objects / sha256
        try:
            with open_own(path, os.O_RDONLY) as handle:
                status = os.fstat(handle.fileno())
                self._read[sha256] = _identity(status)
                begin, end = sums.covering(offset, size, status.st_size)
                data = os.pread(handle.fileno(), end - begin, begin)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._remove(path, os.lstat(path), "the disk cannot read it")
            return None
        table = self._table(sha256, status.st_size)
        if table is None or not sums.are_right(data, begin, table):
            self.repair(sha256, is_forced=True)  # which makes the checksums anew if they are what is wrong
            return None
        return data[offset - begin : offset - begin + size]

    def repair(self, sha256: str, *, is_forced: bool = False) -> bool:
        """Check a cached file, and remove it if it is wrong; return whether another read may give other bytes.

        True also if the file was evicted or replaced since this process read it. A file that had its hash a short
        while ago and was not written to since is not checked again, unless that `is_forced`.
        """
        path = self._objects / sha256
        try:
            with open_own(path, os.O_RDONLY) as handle:
                status = os.fstat(handle.fileno())
                identity = _identity(status)
                if self._read.get(sha256, identity) != identity:
                    return True
                known, checked = self._sound.get(sha256, (None, 0.0))
                if not is_forced and known == identity and time.monotonic() - checked < _SOUND_SECONDS:
                    return False
                actual, table = _hash(handle)
                if actual == sha256:
                    self._sound[sha256] = (identity, time.monotonic())
                    self._keep_table(sha256, table)
                    return False
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            status = os.lstat(path)
        self._remove(path, status, "its hash is another")
        return True

    def _table(self, sha256: str, size: int) -> array[int] | None:
        """Return the checksums of a file's blocks; None if there are none."""
        table = self._tables.get(sha256)
        if table is None:
            try:
                with open_own(self._sums / sha256, os.O_RDONLY) as handle:
                    table = sums.unpack(handle.read(), size)
            except OSError:  # absent or unreadable: they are made from the file itself
                return None
            if table is not None:
                self._remember(sha256, table)
        return table

    def _remember(self, sha256: str, table: array[int]) -> None:
        self._tables[sha256] = table
        while len(self._tables) > _MAX_TABLES:
            self._tables.popitem(last=False)

    def _keep_table(self, sha256: str, table: array[int]) -> None:
        self._remember(sha256, table)
        temporary = files.temporary_name(self._sums / sha256)
        with suppress(OSError):  # such as a full disk: the next process makes them again
            temporary.write_bytes(sums.pack(table))
            os.replace(temporary, self._sums / sha256)  # not fsynced, since the table has a checksum of its own
        temporary.unlink(missing_ok=True)

    def _evict(self, path: str) -> None:
        for each in (path, self._sums / os.path.basename(path)):
            with suppress(FileNotFoundError):
                os.unlink(each)

    def _remove(self, path: Path, status: os.stat_result, reason: str) -> None:
        """Remove a wrong file, unless it was replaced; at worst a sound one is fetched again."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), status):
                unlink(path)
                self.counts.repairs += 1
                logger.warning("%s: %s: removed, to be fetched again", path, reason)

    def _fill(self, handle: BinaryIO, sha256: str, size: int, fill: Callable[[Sink], None]) -> None:
        sink = _SummedSink(handle, sha256=sha256, size=size)
        with reporting_a_full_disk(self.folder, size):
            fill(sink)
            sink.check()
            handle.flush()
            os.fsync(handle.fileno())  # after a power failure a file is complete or absent
        self._keep_table(sha256, sink.sums.table())
        os.replace(handle.name, self._objects / sha256)

    @contextmanager
    def _locked(self, sha256: str) -> Iterator[None]:
        """Hold the lock on filling a file."""
        path = self._filling / sha256
        while True:
            handle = open_own(path, os.O_RDWR | os.O_CREAT)
            lock(handle, self.folder)
            if is_same_file(handle, path):
                break
            handle.close()  # the process that held the lock has removed this file
        with handle:
            try:
                yield
            finally:
                if is_same_file(handle, path):
                    path.unlink(missing_ok=True)

    def _reserve(self, sha256: str, size: int, *, is_prefetch: bool) -> BinaryIO | None:
        """Return a new locked file that occupies `size` bytes, or None if there is no room for a prefetch."""
        spare = _SPARED_SECONDS if is_prefetch else 0.0
        while True:
            with self._budget_lock():
                in_progress = self._size_of_fillings()
                if self._make_room(in_progress, size, spare=spare):
                    partial = self._occupy(sha256, size, spare=spare)
                    if partial is not None:
                        return partial
                    if not is_prefetch and not in_progress:
                        raise full_disk(self.folder, size)
            if is_prefetch:
                return None
            time.sleep(_WAIT_SECONDS)  # other processes' fills occupy the room; once complete, they can be evicted

    def _occupy(self, sha256: str, size: int, *, spare: float) -> BinaryIO | None:
        """Return a new locked file of `size` bytes of disk, evicting files while the disk is full; None if it stays so.

        The caller holds the budget's lock, so nobody takes the file for that of a dead process before it is locked.
        """
        path = self._filling / f"{sha256}.{os.getpid()}-{secrets.token_hex(4)}"
        handle = open_own(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        evictable = self._by_last_use(spare)
        while True:
            try:
                lock(handle, self.folder)
                allocate(handle.fileno(), size)
                return handle
            except OSError as error:
                if error.errno not in FULL or not evictable:
                    os.unlink(path)
                    handle.close()
                    if error.errno not in FULL:
                        raise
                    return None
                self._evict(evictable.pop(0)[1])

    def _make_room(self, held: int, size: int, *, spare: float) -> bool:
        """Evict files until `size` bytes fit beside `held` in progress; return whether they do."""
        held += sum(file_size for file_size, _ in self._by_last_use(0.0))
        for file_size, path in self._by_last_use(spare):
            if held + size <= self.budget:
                break
            self._evict(path)
            held -= file_size
        return held + size <= self.budget

    def _by_last_use(self, spare: float) -> list[tuple[int, str]]:
        """Return (bytes, path) of the files not used for `spare` seconds, that of the earliest use first."""
        files = []
        for entry in os.scandir(self._objects):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_atime_ns, status.st_size, entry.path))
        latest = (time.time() - spare) * 1e9 if spare else float("inf")
        return [(size, path) for used, size, path in sorted(files) if used <= latest]

    def _size_of_fillings(self) -> int:
        """Return the bytes of partial files in progress; remove those of dead processes."""
        held = 0
        for entry in os.scandir(self._filling):
            with suppress(FileNotFoundError), open_own(Path(entry.path), os.O_RDWR) as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held += os.fstat(handle.fileno()).st_size
                    continue
                if is_same_file(handle, Path(entry.path)):
                    os.unlink(entry.path)
        return held

    @contextmanager
    def _budget_lock(self) -> Iterator[None]:
        with open_own(self.folder / "budget.lock", os.O_RDWR | os.O_CREAT) as handle:
            lock(handle, self.folder)
            yield


class Prefetcher:
    """A thread that fetches shards one after another; failed fetches are left to the reader, whose error counts."""

    def __init__(self, fetch: Callable[[int], None]) -> None:
        self._fetch = fetch
        self._wanted: list[int] = []
        self._changed = threading.Condition()
        self.is_stopped = False
        self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
        self._thread.start()

    def want(self, shards: Sequence[int]) -> None:
        """Replace the queue: fetch these shards next, in this order."""
        with self._changed:
            self._wanted = list(shards)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; a fetch in progress ends at its next bytes, or when it would be repeated."""
        with self._changed:
            self.is_stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        this_thread.is_stopped = lambda: self.is_stopped
        while True:
            with self._changed:
                while not self._wanted and not self.is_stopped:
                    self._changed.wait()
                if self.is_stopped:
                    return
                shard = self._wanted.pop(0)
            with suppress(OSError):  # the worker that needs the shard fetches it again and raises the error
                self._fetch(shard)


@dataclass(frozen=True)
class _Identity:
    """Tells a file from its successor of the same name, and from itself before it was written to."""

    inode: int
    modified_ns: int


def _identity(status: os.stat_result) -> _Identity:
    return _Identity(status.st_ino, status.st_mtime_ns)


def _hash(handle: BinaryIO) -> tuple[str, array[int]]:
    """Return the hex sha256 of a file and the checksums of its blocks."""
    digest, blocks = hashlib.sha256(), BlockSums()
    while data := handle.read(1 << 20):
        digest.update(data)
        blocks.update(data)
    return digest.hexdigest(), blocks.table()
