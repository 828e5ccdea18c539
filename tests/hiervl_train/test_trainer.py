"""Whole runs: the golden curve, independence of ranks and micro-batches, kills, stops, errors."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from hiervl_train.models import HierVL
from hiervl_train.monitor.metrics import read_metrics
from hiervl_train.tokenizer import Tokenizer
from tests.hiervl_train.runs import DROPOUT, ended, finished, losses, start

pytestmark = pytest.mark.medium

GOLDEN = Path(__file__).parent / "golden_curve.json"
STEPS = 50


@pytest.fixture(scope="module")
def one_rank(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 50 steps on one rank."""
    folder = tmp_path_factory.mktemp("one") / "run"
    finished(embedded, folder, f"run.max_steps={STEPS}")
    return folder


def test_fifty_steps_equal_the_golden_curve(one_rank: Path) -> None:
    """Kinds of CPU differ in the order of sums: by up to 0.002 % until step 30, and 2 % where learning sets in."""
    golden, found = json.loads(GOLDEN.read_bytes())["losses"], losses(one_rank)
    np.testing.assert_allclose(found[:30], golden[:30], rtol=1e-3)
    np.testing.assert_allclose(found, golden, rtol=5e-2)


def test_the_losses_of_both_levels_fall(embedded: Path, tmp_path: Path, one_rank: Path) -> None:
    """Over 120 steps, by means of many batches: 50 steps and single batches show more of the data's order."""
    shutil.copytree(one_rank, tmp_path / "run")
    found = np.array(finished(embedded, tmp_path / "run", "run.max_steps=120"))
    of_parent = np.arange(len(found)) % 6 == 5
    child, parent = found[~of_parent], found[of_parent]
    assert child[-20:].mean() < child[:20].mean() - 0.1
    assert parent[-5:].mean() < parent[:5].mean() - 0.3


def test_the_folder_is_complete(one_rank: Path) -> None:
    status = json.loads((one_rank / "status.json").read_bytes())
    assert (status["state"], status["step"], status["total"]) == ("done", STEPS, STEPS)
    assert ">done<" in (one_rank / "index.html").read_text()
    names = {name for row in read_metrics(one_rank) for name in row}
    assert {"loss/child", "loss/parent", "lr", "grad_norm", "mfu", "data_wait_fraction", "clips_per_second"} <= names
    assert {"config.yaml", "environment.json", "index.html", "log.txt"} <= {path.name for path in one_rank.iterdir()}
    kept = sorted(path.name for path in (one_rank / "checkpoints").iterdir() if path.is_dir())
    assert kept == ["step-00000040", "step-00000045", "step-00000050"]


def test_a_checkpoint_loads_as_a_model_with_its_tokenizer(one_rank: Path) -> None:
    folder = one_rank / "checkpoints" / "step-00000050"
    model = HierVL.from_checkpoint(folder)
    tokenizer = Tokenizer.from_pretrained(folder, max_length=model.text.max_length)
    assert model.encode_text(*tokenizer(["#C C picks up the cup"])).shape == (1, 16)


def test_a_run_starts_from_the_weights_and_vocabulary_of_another(
    embedded: Path, tmp_path: Path, one_rank: Path
) -> None:
    options = (f"init_from={one_rank}", "run.max_steps=1", "optim.lr=1.0e-9")
    finished(embedded, tmp_path / "run", *options)
    theirs, ours = one_rank / "checkpoints" / "step-00000050", tmp_path / "run" / "checkpoints" / "step-00000001"
    assert (theirs / "tokenizer.json").read_bytes() == (ours / "tokenizer.json").read_bytes()
    before, after = (HierVL.from_checkpoint(folder).state_dict() for folder in (theirs, ours))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_two_ranks_with_half_the_batch_each_give_the_same_curve(embedded: Path, tmp_path: Path, one_rank: Path) -> None:
    """Until step 30; sums in another order part by more where learning sets in (docs/reliability.md)."""
    two = finished(embedded, tmp_path / "two", "run.max_steps=30", ranks=2)
    np.testing.assert_allclose(two, losses(one_rank)[:30], rtol=1e-3)


def test_evaluation_during_a_run_does_not_change_the_losses(embedded: Path, tmp_path: Path, one_rank: Path) -> None:
    options = ("evaluation={every_steps: 6, at_end: true, questions: 20}", "run.max_steps=15", "optim.ema=0.9")
    folder = tmp_path / "run"
    assert finished(embedded, folder, *options) == losses(one_rank)[:15]
    found = {row["step"]: row["eval/mcq/inter"] for row in read_metrics(folder) if "eval/mcq/inter" in row}
    assert list(found) == [6, 12, 15] and all(0 <= score <= 100 for score in found.values())
    assert (folder / "checkpoints" / "best.json").is_file()


def test_micro_batches_give_the_same_curve(embedded: Path, tmp_path: Path, one_rank: Path) -> None:
    options = ("schedule.clip_micro_batch=3", "schedule.summary_micro_batch=1", "run.max_steps=24")
    micro = finished(embedded, tmp_path / "micro", *options)
    np.testing.assert_allclose(micro, losses(one_rank)[:24], rtol=5e-3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_at_random_times_resumes_to_the_same_losses(embedded: Path, tmp_path: Path, ranks: int) -> None:
    """With dropout, so that the random states of every rank must be those of an uninterrupted run."""
    uninterrupted = finished(embedded, tmp_path / "uninterrupted", "run.max_steps=30", DROPOUT, ranks=ranks)
    rng = random.Random(ranks)
    folder = tmp_path / "killed"
    for kill in range(3):
        with ended(start(embedded, folder, "run.max_steps=30", DROPOUT, ranks=ranks)) as run:
            assert run.reached(kill * 8 + rng.randint(2, 9)), run.output()
            run.signal(signal.SIGKILL, rank=rng.randrange(ranks))
            assert 0 not in run.wait(40)
    assert finished(embedded, folder, "run.max_steps=30", DROPOUT, ranks=ranks) == uninterrupted


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_overlapped_averages_are_those_of_averaging_afterwards_also_after_a_kill(
    embedded: Path, tmp_path: Path, ranks: int
) -> None:
    """Many small buckets, micro-batches, dropout: equal bit for bit, and a resumed run adds in the same order."""
    options = ("run.max_steps=14", DROPOUT, "schedule.clip_micro_batch=2", "distributed.bucket_mib=0.01")
    after = finished(embedded, tmp_path / "after", *options, "distributed.overlap=false", ranks=ranks)
    folder = tmp_path / "overlapped"
    with ended(start(embedded, folder, *options, ranks=ranks)) as run:
        assert run.reached(7), run.output()
        run.signal(signal.SIGKILL, rank=ranks - 1)
        assert 0 not in run.wait(60)
    assert finished(embedded, folder, *options, ranks=ranks) == after


def test_a_joint_tower_without_half_of_its_patches_trains_and_resumes_exactly(embedded: Path, tmp_path: Path) -> None:
    """On two ranks, in micro-batches, killed once: the patches that are left out are those of an uninterrupted run."""
    options = ("model.attention=joint", "model.patch_dropout=0.5", "schedule.clip_micro_batch=4", "run.max_steps=14")
    whole = finished(embedded, tmp_path / "whole", *options, ranks=2)
    folder = tmp_path / "killed"
    with ended(start(embedded, folder, *options, ranks=2)) as run:
        assert run.reached(7), run.output()
        run.signal(signal.SIGKILL, rank=1)
        assert 0 not in run.wait(60)
    assert finished(embedded, folder, *options, ranks=2) == whole
    model = HierVL.from_checkpoint(folder / "checkpoints" / "step-00000014")
    assert model.config.attention == "joint" and model.config.patch_dropout == 0.5


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_divided_moments_give_the_same_losses_and_the_same_checkpoints(
    embedded: Path, tmp_path: Path, ranks: int
) -> None:
    """Stopped and resumed with moments divided, then not, then on one rank."""
    options = ("optim={lr: 0.002, clip_norm: 1.0, ema: 0.9}", DROPOUT)
    sharded = "optim.shard_states=true"
    plain = finished(embedded, tmp_path / "plain", "run.max_steps=12", *options, ranks=ranks)
    folder = tmp_path / "sharded"
    finished(embedded, folder, "run.max_steps=7", *options, sharded, ranks=ranks)
    assert finished(embedded, folder, "run.max_steps=12", *options, sharded, ranks=ranks) == plain
    for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        ours, theirs = (run / "checkpoints" / "step-00000012" / name for run in (folder, tmp_path / "plain"))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert finished(embedded, folder, "run.max_steps=14", *options, ranks=ranks)[:12] == plain
    assert len(finished(embedded, folder, "run.max_steps=16", *options, ranks=1)) == 16


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bfloat16_and_compiled_blocks_give_the_same_curve(
    embedded: Path, tmp_path: Path, one_rank: Path, compiled: bool
) -> None:
    speed = f"speed={{bf16: true, compile: {str(compiled).lower()}, checkpoint_activations: true, channels_last: true}}"
    run = start(embedded, tmp_path / "run", "run.max_steps=12", "schedule.clip_micro_batch=8", speed)
    assert run.wait(400) == [0], run.output()
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one_rank)[:12], rtol=3e-2)


WITHOUT_HIERARCHY = (
    "model.aggregator=null",
    "objective={child: egonce, parent: null, temperature: 0.2}",
    "sample={frames: 2, summaries_as_clips: 4}",
)
EVERYTHING_ELSE = (
    "sample={frames: 2, windows: 3, narrations: 3, scene_negatives: true}",
    "optim={lr: 0.002, apply_zero_grads: true, clip_norm: 1.0, ema: 0.9, schedule: cosine, warmup_steps: 4}",
    "schedule={epochs: 1000, max_clips_per_epoch: 32, clips: 16, summaries: 4, clip_micro_batch: 5}",
)


@pytest.mark.parametrize("options", [WITHOUT_HIERARCHY, EVERYTHING_ELSE], ids=["without hierarchy", "everything else"])
def test_other_objectives_and_options_are_the_same_on_two_ranks_and_after_a_stop(
    embedded: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    one = finished(embedded, tmp_path / "one", "run.max_steps=14", *options)
    finished(embedded, tmp_path / "two", "run.max_steps=7", *options, ranks=2)
    two = finished(embedded, tmp_path / "two", "run.max_steps=14", *options, ranks=2)
    np.testing.assert_allclose(two, one, rtol=5e-3)


def test_another_number_of_ranks_continues_with_the_same_data(embedded: Path, tmp_path: Path, one_rank: Path) -> None:
    folder = tmp_path / "elastic"
    finished(embedded, folder, "run.max_steps=15", ranks=1)
    finished(embedded, folder, "run.max_steps=30", ranks=2)
    found = finished(embedded, folder, "run.max_steps=40", ranks=1)
    np.testing.assert_allclose(found[:30], losses(one_rank)[:30], rtol=5e-3)  # later, rounding has grown


@pytest.mark.parametrize("how", ["SIGTERM", "stop file", "time limit"])
def test_all_ranks_save_on_a_request_to_stop_and_the_same_command_resumes(
    embedded: Path, tmp_path: Path, how: str, one_rank: Path
) -> None:
    folder = tmp_path / "run"
    limit = ["preemption={time_limit_minutes: 0.16, margin_minutes: 0.0}"] if how == "time limit" else []
    with ended(start(embedded, folder, "run.max_steps=1000", *limit, ranks=2)) as run:
        assert how == "time limit" or run.reached(7), run.output()
        if how == "SIGTERM":
            run.signal(signal.SIGTERM, rank=1)
        elif how == "stop file":
            (folder / "stop").touch()
        assert run.wait(240) == [85, 85], run.output()
    status = json.loads((folder / "status.json").read_bytes())
    assert status["state"] == "stopped" and (1 if how == "time limit" else 7) <= status["step"] < 1000
    assert (folder / "checkpoints" / f"step-{status['step']:08d}").is_dir()
    other_rank = "another rank was asked to stop"  # first, if that rank's clock started earlier
    reasons = {"SIGTERM": [other_rank], "stop file": [how], "time limit": [how, other_rank]}
    assert status["reason"] in reasons[how]
    total = status["step"] + 3
    found = finished(embedded, folder, f"run.max_steps={total}", ranks=2)
    assert len(found) == total
    np.testing.assert_allclose(found[:30], losses(one_rank)[: len(found[:30])], rtol=5e-3)  # later, rounding has grown


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(embedded: Path, tmp_path: Path, one_rank: Path) -> None:
    folder = Path(shutil.copytree(one_rank, tmp_path / "run"))
    newest = folder / "checkpoints" / f"step-{STEPS:08d}" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    run = start(embedded, folder, f"run.max_steps={STEPS + 2}")
    assert run.wait() == [0]
    assert f"step-{STEPS:08d} is skipped" in run.output()
    assert losses(folder)[:STEPS] == losses(one_rank)
    assert len(losses(folder)) == STEPS + 2


def test_non_finite_losses_are_skipped_and_too_many_end_the_run_with_the_keys(embedded: Path, tmp_path: Path) -> None:
    """An extreme learning rate makes the weights, and then the losses, overflow."""
    folder = tmp_path / "run"
    run = start(embedded, folder, "optim.lr=1.0e+30", "run.max_consecutive_skips=3", "run.max_steps=60", ranks=2)
    assert set(run.wait()) == {3}, run.output()
    assert "more than run.max_consecutive_skips = 3 consecutive steps" in run.output()
    for rank in range(2):
        skipped = json.loads((folder / f"skipped-rank{rank:05d}.json").read_bytes())
        assert len(skipped) == 4 and all(len(step["keys"]) in (2, 8) for step in skipped)
    assert sum(row["skipped_steps"] for row in read_metrics(folder)) >= 3
    assert json.loads((folder / "status.json").read_bytes())["state"] == "failed"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.root=nowhere"], "nowhere"),
        (["schedule.clips=4096"], "fewer samples than one global batch of 4096"),
        (["schedule.clipz=8"], "did you mean schedule.clips?"),
        (["data.split=test"], "no split clips/test"),
        (["init_from=absent"], "absent"),
        (["tokenizer.source=absent"], "absent"),
        (["data.lanes=3"], "lanes"),
    ],
)
def test_impossible_requests_are_named_with_exit_code_2(
    embedded: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    run = start(embedded, tmp_path / "run", *overrides)
    assert run.wait() == [2], run.output()
    assert message in run.output()
    assert "Traceback" not in run.output()


def test_a_run_of_other_data_or_another_model_does_not_resume(embedded: Path, tmp_path: Path, one_rank: Path) -> None:
    folder = Path(shutil.copytree(one_rank, tmp_path / "run"))
    for change in ("run.seed=1", "model.depth=3"):
        run = start(embedded, folder, f"run.max_steps={STEPS + 1}", change)
        assert run.wait() == [2], run.output()
        assert "does not fit this configuration" in run.output()
