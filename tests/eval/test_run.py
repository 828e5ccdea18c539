"""A benchmark's result does not depend on the number of ranks, and records the settings it was scored with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from eval import summarymcq
from eval.config import BENCHMARKS
from eval.results import Result, Score
from eval.run import scores_table
from tests.eval.checkpoints import tokenizer_of
from tests.eval.conftest import Run
from tests.eval.ranks import WORLDS
from tests.paths import shared

# Recall has a result for each level.
RESULTS = [*(name for name in BENCHMARKS if name != "recall"), "recall-clips", "recall-summaries"]


def test_a_released_checkpoint_is_scored_with_the_configured_sizes_and_tokenizer(
    run: Run, embedded: Path, tmp_path: Path
) -> None:
    tokenizer_of(embedded).save(tmp_path)
    sizes = json.loads(shared("golden/config.json").read_text())
    for aggregator, aggregation in ((None, "self-attention"), ({"kind": "average"}, "mean of the windows")):
        model = sizes if aggregator is None else sizes | {"aggregator": aggregator}
        words = [f"tokenizer.source={tmp_path}", f"model={json.dumps(model)}", "sample.frames=4"]
        done = run(summarymcq.BENCHMARK, *words, "max_missing_fraction=1", check=shared("golden/checkpoint.pth"))
        assert done.code == 0
        settings = done.result().settings
        assert settings["model"]["embed_dim"] == 64 and settings["aggregation"] == aggregation


@pytest.mark.medium
@pytest.mark.parametrize("name", RESULTS)
def test_scores_and_every_item_are_the_same_on_any_number_of_ranks(by_world: dict[int, Path], name: str) -> None:
    single, *others = (Result.load(by_world[world] / "out" / name) for world in WORLDS)
    assert single.scores and single.items
    for result in others:
        for field in ("scores", "items", "missing", "curves", "confusion"):
            assert getattr(result, field) == getattr(single, field), field


@pytest.mark.medium
@pytest.mark.parametrize("name", RESULTS)
def test_every_item_is_scored_or_listed_as_missing(by_world: dict[int, Path], name: str) -> None:
    result = Result.load(by_world[3] / "out" / name)
    groups = {item.group for item in result.items}
    identities = [(item.group, item.id) for item in result.items]
    assert len(set(identities)) == len(identities), "no item is there twice"
    if name != "charades_ego":  # whose items are classes
        missing = len({missing.item for missing in result.missing})
        of = {s.of for s in result.scores if len(groups) == 1 or any(s.name.startswith(group) for group in groups)}
        assert of
        for group in groups:
            (own,) = {s.of for s in result.scores if s.name.startswith(group)} or of
            count = sum(item.group == group for item in result.items)
            assert count <= own <= count + missing


def result(benchmark: str, *scores: Score) -> Result:
    """Return a result with these scores."""
    return Result(
        benchmark=benchmark, set_name="s", split="test", root="", checkpoint="", checkpoint_digest="", fingerprint="",
        settings={}, scores=list(scores), items=[],
    )  # fmt: skip


def printed(*results: Result) -> str:
    """Return the table of scores as a terminal of 80 columns shows it."""
    console = Console(width=80)
    with console.capture() as capture:
        console.print(scores_table(results))
    return capture.get()


def test_the_table_fits_80_columns_with_whole_names_and_only_columns_that_say_something() -> None:
    long = Score(name="mAP of plain precision", value=15.55, low=12.0, high=19.8, chance=10.1, items=9668, of=9668)
    lines = printed(result("epic_mir", long), result("charades_ego", Score(name="mAP", value=26.0, items=4, of=5)))
    assert "epic_mir" in lines and "charades_ego" in lines
    assert ["mAP", "of", "plain", "precision", "15.6", "12.0–19.8", "10.1", "9,668/9,668"] in [
        line.split() for line in lines.splitlines()
    ]
    assert "tied" not in lines and "HierVL-SA" not in lines


def test_the_table_shows_ties_and_published_scores_where_there_are_any() -> None:
    tied = Score(name="accuracy", value=50.0, items=4, of=4, tied=2, published={"HierVL-SA": 90.5})
    rows = [line.split() for line in printed(result("egomcq", tied)).splitlines()]
    assert ["accuracy", "50.0", "4/4", "2", "90.5"] in rows
