"""Errors that stop a build (bad request, too many failed inputs, transient machine fault) and their exit codes."""

from __future__ import annotations

import errno
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
_FAULT_MESSAGES = ("no space left on device", "disk quota exceeded", "read-only file system", "stale file handle")
UNEXPECTED = "unexpected error"  # the reason, in the ledger, of what an exception of our own code fails


class UsageError(ValueError):
    """The request cannot be carried out as given; nothing was changed, and the message says what to correct."""

    exit_code: ClassVar[int] = 2


class TooManyFailuresError(RuntimeError):
    """More inputs failed than `max_failed_fraction` allows."""

    exit_code: ClassVar[int] = 3


class TransientError(RuntimeError):
    """The machine failed, not the input: a full disk, a lost mount. Nothing is recorded; the next run retries."""

    exit_code: ClassVar[int] = 4


def is_output_fault(error: OSError) -> bool:
    """Return whether a write error is caused by the machine (disk full, no permission) rather than by the sample."""
    return error.errno in _OUTPUT_FAULTS


def fault_message(text: str) -> str:
    """Return the first line of ffmpeg's output that reports a machine fault; empty if none does."""
    return next((line for line in text.splitlines() if any(m in line.lower() for m in _FAULT_MESSAGES)), "")
