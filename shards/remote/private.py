"""Folders and files of this user alone, in places where others may write, too."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, ClassVar

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a disk or quota that is full


class CacheError(OSError):
    """A cache that cannot be used: the folder, its disk or its budget do not serve; the message has the remedy."""

    exit_code: ClassVar[int] = 1


@contextmanager
def reporting_a_full_disk(folder: Path, size: int) -> Iterator[None]:
    """Raise `CacheError` with the remedy where there is no space in `folder` for a file of `size` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full_disk(folder, size) from error
        raise


def full_disk(folder: Path, size: int) -> CacheError:
    """Return the error of a disk without space for a file of `size` bytes."""
    return CacheError(
        f"{folder}: no space on this disk for a file of {size} bytes: free some, lower data.source.cache_gib, or "
        "choose another folder as data.source.cache"
    )


def private_folder(path: Path) -> None:
    """Create a folder for this user alone, or check an existing one.

    Raises `CacheError` for a symbolic link, for what is no folder, and for a folder of another user. The permission of
    others to write is withdrawn; where anyone may rename the folder itself, that is reported.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        real = os.path.realpath(path)
        raise CacheError(f"{path}: a symbolic link, which may be turned elsewhere: give the folder itself ({real})")
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"{path}: not a folder: choose another path for data.source.cache")
    if status.st_uid != os.geteuid():
        raise CacheError(
            f"{path}: belongs to user {status.st_uid}, not to {os.geteuid()}, and its owner could change what is read: "
            "choose a folder of your own as data.source.cache"
        )
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~0o022)
    for parent in Path(os.path.realpath(path)).parents:
        mode = os.stat(parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            logger.warning("%s: anyone may rename what is in %s: chmod +t protects it", path, parent)


def is_own_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def open_own(path: Path, flags: int) -> BinaryIO:
    """Open a regular file of this user; anything else is removed first, and counts as absent."""

    def opener(name: str, _: int) -> int:
        # Non-blocking, since a FIFO would wait for a writer; regular files do not mind.
        number = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        if not is_own_file(os.fstat(number)):
            os.close(number)
            raise OSError(errno.ENXIO, "not a regular file of this user", name)
        return number

    for _ in range(2):
        try:
            return open(path, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "r+b", opener=opener)
        except (PermissionError, IsADirectoryError) as error:
            raise CacheError(f"{path}: {error.strerror}: remove it, if another user made it") from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
        unlink(path)
        if not flags & os.O_CREAT:
            break
    raise FileNotFoundError(errno.ENOENT, "not a regular file of this user", str(path))


def unlink(path: Path) -> None:
    """Remove a file; raise `CacheError` for a folder in its place, and `FileNotFoundError` if it is absent."""
    try:
        os.unlink(path)
    except (IsADirectoryError, PermissionError) as error:
        raise CacheError(f"{path}: {error.strerror}: remove it, so that the cache can be used") from error


def lock(handle: BinaryIO, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise CacheError(
            f"{folder}: this file system has no locks ({error.strerror}), which its processes need to share the cache: "
            "choose a folder on a local disk or in /dev/shm as data.source.cache"
        ) from error


def is_same_file(handle: BinaryIO, path: Path) -> bool:
    """Return whether `path` still refers to the open file."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def allocate(handle: int, size: int) -> None:
    """Give a file its size, and its blocks where the file system can tell now whether it has them."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in FULL:
            raise
        os.truncate(handle, size)
