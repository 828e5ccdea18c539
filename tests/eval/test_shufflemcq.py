"""ShuffleMCQ: a mean of windows is at chance, and wrong orders depend on seed and question alone."""

from __future__ import annotations

from pathlib import Path

from eval import shufflemcq
from hiervl_train.models import AggregatorConfig
from tests.eval.checkpoints import tiny_checkpoint
from tests.eval.conftest import Run


def test_a_model_that_averages_windows_is_at_chance(run: Run, embedded: Path, tmp_path: Path) -> None:
    average = tiny_checkpoint(tmp_path / "average", embedded, aggregator=AggregatorConfig(kind="average"))
    done = run(shufflemcq.BENCHMARK, check=average)
    assert done.code == 0
    (score,) = done.result().scores
    assert (score.value, score.chance, score.tied) == (20.0, 20.0, score.items)


def test_wrong_orders_depend_on_the_seed_alone(run: Run) -> None:
    def orders(*words: str) -> list[list[str]]:
        done = run(shufflemcq.BENCHMARK, "--set", "summaries", "--split", "val", *words)
        assert done.code == 0
        return [[option.key for option in item.options] for item in done.result().items]

    first = orders()
    assert all(len(set(options)) == 5 and options.count("1 2 3") == 1 for options in first)
    assert orders() == first
    assert orders("seed=4") != first
