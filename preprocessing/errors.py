"""The three ways in which preprocessing stops: a wrong request, too many bad inputs, a fault that will pass."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import ClassVar

_OUTPUT_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EMFILE,
    errno.ENOMEM,
}
_FAULT_WORDS = ("no space left on device", "disk quota exceeded", "read-only file system", "stale file handle")


class ExitCode(IntEnum):
    """What `build_shards.py` exits with; documented in the README."""

    OK = 0
    USAGE = 2
    TOO_MANY_FAILURES = 3
    TRANSIENT = 4
    INTERRUPTED = 130


class UsageError(ValueError):
    """The request cannot be carried out as it stands: nothing was done, and the message says what to change."""

    exit_code: ClassVar[int] = 2


class TooManyFailuresError(RuntimeError):
    """More inputs failed than `max_failed_fraction` allows."""

    exit_code: ClassVar[int] = 3


class TransientError(RuntimeError):
    """The machine failed, not the input: a full disk, a lost mount. Nothing is recorded; the next run tries again."""

    exit_code: ClassVar[int] = 4


def is_output_fault(error: OSError) -> bool:
    """Return whether an error in writing is the machine's and not the sample's."""
    return error.errno in _OUTPUT_FAULTS


def fault_message(text: str) -> str:
    """Return the line of ffmpeg's messages that tells of the machine's fault; empty where all are about the video."""
    return next((line for line in text.splitlines() if any(word in line.lower() for word in _FAULT_WORDS)), "")
