"""Errors of fetching a file: which are final, and which may pass."""

from __future__ import annotations

from typing import ClassVar


class SourceError(OSError):
    """A file that cannot be fetched; the message has its URL, the cause and the number of attempts."""

    exit_code: ClassVar[int] = 1


class AbsentError(SourceError):
    """A file that does not exist at its URL."""


class ForbiddenError(SourceError):
    """A file that the server refuses to this client: it may exist or not."""


class TransientSourceError(SourceError):
    """A fault that may not recur at the next attempt."""
