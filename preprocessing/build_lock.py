"""A lock that keeps two builds out of one folder; the kernel releases it when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from preprocessing.errors import TransientError, UsageError

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
logger = logging.getLogger(__name__)


@contextmanager
def build_lock(*folders: Path) -> Iterator[bool]:
    """Hold a lock on each of `folders` while the block runs; yield whether the file system supports locks.

    The lock is a hidden file next to the folder, with symbolic links resolved: all paths to a folder share one lock.
    Raises `UsageError` where another build holds one, and `TransientError` where the lock file cannot be written. On
    file systems without locks (some NFS and Lustre mounts) there is no protection, and a warning says so.
    """
    is_protected = True
    with ExitStack() as stack:
        for folder in dict.fromkeys(_real(folder) for folder in folders):
            path = folder.parent / f".{folder.name}.lock"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a+"))
                if not _lock(file, folder, path):
                    is_protected = False
                    continue
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            except OSError as error:
                raise TransientError(f"{path}: {error.strerror}") from error
        yield is_protected


def _real(folder: Path) -> Path:
    """Return a folder's path without symbolic links; raise `TransientError` where they go round in a circle."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise TransientError(f"{folder}: {error}") from error


def _lock(file: IO[str], folder: Path, path: Path) -> bool:
    """Lock an open lock file; return False, with a warning, where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            file.seek(0)
            holder = file.read().strip() or "unknown process"
            raise UsageError(f"{folder}: another build is using this folder ({holder})") from None
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "%s: this file system has no locks (%s); see to it that no other build uses %s",
            path,
            error.strerror,
            folder,
        )
        return False
    return True
