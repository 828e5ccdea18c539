"""What verify finds: one problem with its file, sample and remedy; and the guard around every check."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shards.stats import ShardError
from shards.summary import printable

FINISH = "rerun the build, which rewrites the index files from the existing shards"
REBUILD = "delete the shard's three files and rerun the build, which reproduces the shard"
RESTORE = "download the file again from where it was published, or " + REBUILD
MOVE = "move it out of the dataset"
MAX_FINDINGS = 40  # of one check
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem of a dataset."""

    file: str  # relative to the dataset's root
    key: str = ""  # of the sample, or of the ledger's or span's row, if it concerns a single one
    problem: str
    remedy: str

    def __post_init__(self) -> None:
        """Make the texts, which quote untrusted files, short and printable on one line."""
        for name in ("file", "key", "problem"):
            object.__setattr__(self, name, printable(getattr(self, name)))


def guarded(file: str, check: Callable[[], Iterable[Finding]], *, root: Path, remedy: str = RESTORE) -> list[Finding]:
    """Return what a check of a file finds, at most `MAX_FINDINGS` and a note of more.

    A check that cannot read the file ends in a finding, too. So does one that fails unexpectedly, which is a bug of the
    check; its traceback is logged, since the file that caused it is damaged in a way that should have a name.
    """
    findings: list[Finding] = []
    try:
        findings += islice(check(), MAX_FINDINGS + 1)
    except (ShardError, OSError) as error:
        findings.append(Finding(file=file, problem=without_root(error, root), remedy=remedy))
    except Exception as error:
        logger.exception("%s: the check failed", file)
        problem = f"cannot be checked: {type(error).__name__}: {error}"
        findings.append(Finding(file=file, problem=problem, remedy=remedy))
    if len(findings) > MAX_FINDINGS:
        more = Finding(file=file, problem=f"more than {MAX_FINDINGS} problems; the others are omitted", remedy=remedy)
        findings[MAX_FINDINGS:] = [more]
    return findings


def without_root(error: Exception, root: Path) -> str:
    """Return the text of an error with paths relative to the dataset's folder."""
    return str(error).replace(f"{root}/", "")


def each(file: str, problems: Iterable[str], remedy: str, *, key: str = "") -> Iterator[Finding]:
    """Yield each problem as a finding about the same file."""
    for problem in problems:
        yield Finding(file=file, key=key, problem=problem, remedy=remedy)
