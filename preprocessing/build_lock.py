"""A lock that keeps two builds out of one folder; the kernel releases it when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from preprocessing.errors import TransientError, UsageError


@contextmanager
def build_lock(*folders: Path) -> Iterator[None]:
    """Hold a lock on each of `folders` (a hidden file next to it) while the block runs.

    Raises `UsageError` where another build holds one, and `TransientError` where the lock file cannot be written. On
    file systems without locks there is no protection.
    """
    with ExitStack() as stack:
        for folder in folders:
            path = folder.parent / f".{folder.name}.lock"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a+"))
            except OSError as error:
                raise TransientError(f"{path}: {error.strerror}") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    continue  # the file system does not support locks
                file.seek(0)
                holder = file.read().strip() or "unknown process"
                raise UsageError(f"{folder}: another build is using this folder ({holder})") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
