"""Missing samples have the build's own reason; bugs in scoring keep their traceback."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NoReturn

import pytest

from eval import egomcq
from tests.eval.conftest import Evaluation, Run


def test_reasons_come_from_the_ledger_of_the_build(evaluated: Evaluation) -> None:
    reasons = {missing.reason for missing in evaluated.result("egomcq").missing}
    assert reasons and all("not in the shards: " in reason for reason in reasons)


def test_without_a_readable_ledger_missing_samples_have_no_reason(
    run: Run, own_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_shards / "ledger.parquet").write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        done = run(egomcq.BENCHMARK, "max_missing_fraction=1", shards=own_shards)
    assert done.code == 0
    reasons = {missing.reason.partition(" (and")[0] for missing in done.result().missing}
    assert reasons and all(reason.endswith("not in the shards") for reason in reasons)
    assert "ledger.parquet: cannot be read" in caplog.text


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("another bug")])
def test_an_unexpected_exception_is_reported_with_its_traceback(
    run: Run, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def score(*_: Any) -> NoReturn:
        raise error

    done = run(dataclasses.replace(egomcq.BENCHMARK, score=score))
    assert done.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "in score" in errors and str(error) in errors
