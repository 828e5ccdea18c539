"""Keeps two builds out of one folder: a lock that the kernel drops when its holder dies."""

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
    """Hold the locks of `folders` (files beside them) while the block runs; raise `UsageError` where one is held."""
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
                    continue  # a file system without locks; the user has to see to it
                file.seek(0)
                raise UsageError(f"{folder}: another build works there ({file.read().strip() or 'unknown'})") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
