"""Configuration files of released checkpoints, and keys that differ for one benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.loading import ConfigError, load
from eval.config import EvalConfig, load_eval
from hiervl_train.checkpoint.open import OpenedCheckpoint
from hiervl_train.models import ModelConfig
from hiervl_train.tokenizer import Tokenizer
from tests.eval.checkpoints import tiny_hiervl
from tests.paths import REPOSITORY


@pytest.mark.parametrize("name", ["hiervl_sa", "hiervl_avg", "egovlp"])
def test_the_file_of_a_released_checkpoint_has_what_its_published_scores_need(name: str) -> None:
    file = REPOSITORY / "configs" / "eval" / f"{name}.yaml"
    epic, ego = load_eval("epic_mir", file, []), load_eval("egomcq", file, [])
    assert (epic.sample.frames, epic.compat.channel_order, epic.compat.dual_softmax) == (16, "bgr", True)
    assert (ego.sample.frames, ego.compat.channel_order, ego.sample.windows) == (4, "rgb", 16)
    assert load_eval("charades_ego", file, []).sample.frames == 16
    assert load_eval("epic_mir", file, ["compat.channel_order=rgb"]).compat.channel_order == "rgb"
    sizes = ego.model or ModelConfig()
    assert sizes.aggregator is not None
    assert (sizes.aggregator.kind == "average") == (name == "hiervl_avg")


def test_a_section_for_an_unknown_benchmark_or_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text("benchmarks: {epic_mirr: {sample: {frames: 16}}}")
    with pytest.raises(ConfigError, match="epic_mirr"):
        load_eval("egomcq", file, [])
    file.write_text("benchmarks: {epic_mir: {framse: 16}}")
    with pytest.raises(ConfigError, match=r"did you mean sample\.frames"):
        load_eval("epic_mir", file, [])


@pytest.mark.parametrize(
    ("run", "folder"), [(Path("runs/mine"), "runs/mine/evaluation/egomcq"), (None, "runs/eval/released/egomcq")]
)
def test_results_of_a_run_are_in_its_folder(run: Path | None, folder: str) -> None:
    opened = OpenedCheckpoint(
        model=tiny_hiervl(), tokenizer=Tokenizer.build(["C"], vocab_size=9, max_length=8), digest="", run=run,
        path=Path("checkpoints/released.pth"),
    )  # fmt: skip
    assert load(EvalConfig).folder(opened, "egomcq") == Path(folder).absolute()
    assert load(EvalConfig, None, ["output=elsewhere"]).folder(opened, "egomcq") == Path("elsewhere").absolute()
