"""The trainer's benchmark runs the real trainer and compares equal work; the plan's arithmetic is the model's."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import pytest

from benchmarks import trainer_plan as plan
from benchmarks.trainer_runs import windows
from hiervl_train.models import flops
from tests.hiervl_train import ranks
from tests.hiervl_train.tiny import tiny_config, tiny_model
from tests.paths import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "trainer.py"
SMALLEST = ["--batches", "4", "--rounds", "1", "--warmup", "6", "--steps", "6", "--turns", "1", "--scaling-clips", "4"]


@pytest.fixture(scope="module")
def result(embedded, tmp_path_factory):
    """The JSON of a run of all parts with as few steps as possible."""
    folder = tmp_path_factory.mktemp("trainer benchmark")
    out = folder / "out.json"
    command = [sys.executable, str(SCRIPT), "--shards", str(embedded), "--device", "cpu", "--no-published"]
    run = subprocess.run(
        [*command, *SMALLEST, "--work", str(folder), "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert [path.name for path in folder.iterdir()] == ["out.json"], "runs must be removed"
    return json.loads(out.read_text())


@pytest.mark.slow
def test_shards_are_compared_with_batches_in_memory(result):
    figures = result["data"]["batch 4"]
    assert figures["ratio"] == pytest.approx(
        figures["shards_clips_per_second"] / figures["memory_clips_per_second"], rel=0.01
    )
    assert 0 <= figures["data_wait_fraction"] < 1
    # Five batches of 4 clips, and one of 2 summaries with 4 windows each.
    for arm in ("shards", "memory"):
        clips = figures[f"{arm}_clips_per_second"] * figures[f"{arm}_seconds_per_step"] * 6
        assert clips == pytest.approx(5 * 4 + 2 * 4, rel=0.01)
        assert 0.05 < figures[f"{arm}_peak_resident_gb"] < 5
    assert result["data"]["cached"]["clip_micro_batch"] == 1


@pytest.mark.slow
def test_both_ways_of_saving_write_the_same_state(result):
    figures = result["checkpoint"]["small"]
    parameters = figures["state_mb"] * 1e6 / 4 / 3  # weights and two moments, float32
    assert parameters == pytest.approx(small_parameters(), rel=0.1)
    assert figures["thread_call_s"] <= figures["thread_written_s"]
    assert figures["torch_save_s"] <= figures["blocking_call_s"]
    assert all(len(figures[f"{way}_turn_s"]) == 1 for way in ("none", "thread", "blocking"))


@pytest.mark.slow
def test_two_ranks_average_gradients(result):
    figures = result["scaling"]
    assert 0 < figures["reduce_s"] < figures["step_s"]
    assert 0.02 < figures["efficiency"] < 2 and 0.02 < figures["of_two_apart"] < 2


def test_a_turn_has_the_steps_from_the_save_on():
    saves = [{"step": 2, "way": "none"}, {"step": 4, "way": "thread"}, {"step": 6, "way": "blocking"}]
    steps = [100.0, 1.0, 2.0, 3.0, 4.0, 5.0]  # the save after step 2 is part of steps[1]
    assert list(windows(steps, saves, 2)) == [("none", 3.0), ("thread", 7.0)], "an incomplete turn must not count"


def test_without_shards_it_names_the_command_that_builds_them(tmp_path):
    run = subprocess.run([sys.executable, str(SCRIPT), "--shards", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 2 and "make demo" in run.stderr


def test_the_plan_counts_the_bytes_that_a_step_averages():
    size = plan.sizes()
    assert (
        size["all"]
        == sum(size[name] for name in ("video", "text", "video_projection", "text_projection")) + size["aggregator"]
    )
    assert size["parent_gradient_bytes"] - size["child_gradient_bytes"] == 4 * size["aggregator"]
    # In a ring of two, each rank sends half of the gradients and half of the sums.
    assert plan.reduce_seconds(1_000_000, 2, 100) == pytest.approx(8e6 / 1e11)


def test_clip_steps_average_everything_but_the_aggregator():
    model = tiny_model(tiny_config(depth=1)).train()
    ranks.child(model, 0, 1)
    without = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"aggregator"}
    assert all(parameter.grad is None for parameter in model.aggregator.parameters())


def test_the_plans_hours_are_operations_and_bytes_divided_by_rates():
    steps, rate = plan.schedule(), 1e14
    assert steps["child_steps"] * 512 <= plan.EGOCLIP < (steps["child_steps"] + 1) * 512
    clip = flops.clip(plan.CONFIG.model).train
    assert steps["child_flop"] == 512 * clip
    computing = plan.hours(32, rate, None)
    assert computing == pytest.approx(10 * steps["epoch_flop"] / 32 / rate / 3600)
    network = (plan.hours(32, rate, 200) - computing) * 3600 / 10
    size = plan.sizes()
    averaged = (
        steps["child_steps"] * size["child_gradient_bytes"] + steps["parent_steps"] * size["parent_gradient_bytes"]
    )
    assert network == pytest.approx(2 * 31 / 32 * averaged / 25e9, rel=1e-6)


def test_overlapped_averaging_is_hidden_by_the_backward_pass_up_to_its_ends():
    size = 10 * plan.BUCKET
    assert plan.overlapped_seconds(3.0, 0.0, size) == pytest.approx(3.0)
    assert plan.overlapped_seconds(3.0, 1.0, size) == pytest.approx(3.0 + 0.1)  # the last of ten buckets
    assert plan.overlapped_seconds(3.0, 50.0, size) == pytest.approx(
        1.0 + 0.09 * 2.0 + 50.0
    )  # the network is the limit
    for averaging in (0.1, 1.0, 3.0):
        assert 3.0 < plan.overlapped_seconds(3.0, averaging, size) < 3.0 + averaging


def test_each_change_shortens_the_epochs_where_it_says_so():
    hours = plan.changes(32, 3e14, 100)
    names = [name for name in hours if not name.startswith("moments")]
    assert all(hours[a] >= hours[b] for a, b in itertools.pairwise(names))
    assert hours["one pass"] == pytest.approx(plan.hours(32, 3e14, 100))
    one_node = plan.changes(8, 3e14, None)
    assert one_node[names[0]] / one_node["one pass"] == pytest.approx(4 / 3)
    assert one_node["the last micro-batch kept"] / one_node["one pass"] == pytest.approx(7 / 6)


def small_parameters() -> int:
    import torch

    from configs.loading import load
    from hiervl_train.config import PretrainConfig
    from hiervl_train.models import HierVL

    with torch.device("meta"):
        model = HierVL(load(PretrainConfig, REPOSITORY / "configs" / "pretrain" / "small.yaml").model)
    return sum(parameter.numel() for parameter in model.parameters())
