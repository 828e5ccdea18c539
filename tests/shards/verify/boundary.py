"""Opens a damaged dataset by every program that reads one, and says what each made of it."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import signal
from collections.abc import Iterator
from pathlib import Path

from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.inspect.__main__ import main as inspect
from shards.loader import Loader, LoaderError
from shards.order import OrderError
from shards.reading import SampleFailedError
from shards.sources import SourceError
from shards.stats import ShardError
from shards.verify.findings import Finding
from shards.verify.run import verify

SECONDS = 60  # after which a program counts as hanging
LOADER_ERRORS = (ShardError, SourceError, OrderError, LoaderError, SampleFailedError)  # the documented ones
LOADER = LoaderConfig(
    global_batch=2, frames=2, size=32, windows=2, narrations=2, workers=0, max_consecutive_failures=None
)
CONTEXTS = (("clips", "train", True), ("clips", "val", False), ("summaries", "train", True), ("egomcq", "test", False))


@contextlib.contextmanager
def deadline(what: str) -> Iterator[None]:
    """Fail if the body takes longer than `SECONDS`, wherever it waits."""

    def expire(*_: object) -> None:
        faulthandler.dump_traceback()
        raise AssertionError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def found_by_verify(root: Path) -> tuple[Finding, ...]:
    """Return what verify finds; fail if a check raised, or if a finding lacks its text."""
    with deadline("verify"):
        findings = verify(root).findings
    for finding in findings:
        assert finding.problem and finding.remedy, finding
        assert "cannot be checked" not in finding.problem, finding
        assert (finding.problem + finding.file + finding.key).isprintable(), finding
        (finding.problem + finding.file + finding.key).encode()
    return findings


def load(root: Path) -> dict[str, int]:
    """Load every set; return how many samples came, substituted or not, and how often a documented error ended it."""
    counts = {"samples": 0, "substituted": 0, "errors": 0}
    for set_name, split, is_training in CONTEXTS:
        with deadline(f"the loader of {set_name}"):
            try:
                with Loader(root, set_name, split, LOADER, is_training=is_training) as loader:
                    for batch in loader:
                        counts["samples"] += len(batch.keys)
                        counts["substituted"] += sum(map(bool, batch.failures))
            except LOADER_ERRORS:
                counts["errors"] += 1
    return counts


def inspected(root: Path, page: Path) -> str:
    """Inspect as tables, as a page and one key; return what was printed; fail if anything was unexpected."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), deadline("inspect"):
        codes = [
            inspect([str(root)]),
            inspect([str(root), "--html", str(page)]),
            inspect([str(root), "--key", "a-b_c"]),
        ]
        with contextlib.suppress(ShardError):
            for _, _, split in open_dataset(root).splits():
                for key in split.rows(["key"])["key"].to_pylist()[:2]:
                    codes.append(inspect([str(root), "--key", key]))
    assert set(codes) <= {0, 1}, codes
    assert "unexpected error" not in err.getvalue() and "Traceback" not in err.getvalue(), err.getvalue()
    return out.getvalue() + err.getvalue()
