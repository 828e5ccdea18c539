"""The errors of this package: unusable checkpoints, and pretrained weights that cannot be found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

SHOWN = 12  # problems that a message spells out


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the file and what is wrong with it."""

    exit_code: ClassVar[int] = 2
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, where: object, problems: Sequence[str], hint: str = "") -> CheckpointError:
        """Return the error for tensors that do not fit, one problem each; `problems` of the error has all of them."""
        shown = "; ".join(problems[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        error = cls(f"{where}: {len(problems)} tensors do not fit{f' ({hint})' if hint else ''}: {shown}{more}")
        error.problems = tuple(problems)
        return error


class MissingPretrained(RuntimeError):
    """Pretrained weights, or a tokenizer, are neither on this disk nor available from a hub; the message names them."""

    exit_code: ClassVar[int] = 2


def missing_pretrained(what: str, source: str, key: str, error: Exception) -> MissingPretrained:
    """Return the error that names what is missing, where it was looked for, and the remedy."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MissingPretrained(
        f"{what} {source!r} could not be loaded: there is no such local folder, and the download from the hub failed "
        f"({reason}). On a machine with a network, run `hf download {source} --local-dir FOLDER`; "
        f"then set {key} to FOLDER"
    )
