"""Checkpoints are complete or absent after any kill or failure, the right ones are kept, and ranks agree on one."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest
import torch

from configs.loading import ConfigError, from_dict
from hiervl_train.checkpoint.manager import Checkpoints, SaveConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.random_states import RandomStates
from tests.hiervl_train.run_states import BY_STEPS, assert_is_of_step, flip_bit, latest, names, save_states, tiny_state
from tests.paths import REPOSITORY


def test_a_loaded_state_equals_the_saved_one(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    save_states(tmp_path, 10)
    state = latest(tmp_path)
    assert state is not None
    assert_is_of_step(state, 10)
    assert names(tmp_path) == ["step-00000010"]


def test_later_training_does_not_change_a_state_that_is_being_written(tmp_path: Path) -> None:
    sizes = {f"layer{number}.weight": (1000, 1000) for number in range(8)}
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        for step in (10, 20):  # the second save reuses the first one's buffers
            state = tiny_state(step, sizes=sizes, ema=None)
            checkpoints.save(state)
            assert f"step-{step:08d}" not in names(tmp_path), "it is written during training"
            for tensor in state.model.values():
                tensor.fill_(-1.0)
        loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.ema is None
    for tensor in (*loaded.model.values(), *loaded.optimizer.tensors.values()):
        assert torch.all(tensor == 20)


def test_only_damaged_checkpoints_are_an_error_not_a_new_start(tmp_path: Path) -> None:
    save_states(tmp_path, 10)
    flip_bit(tmp_path / "step-00000010" / "model.safetensors")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        latest(tmp_path)


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    config = SaveConfig(every_steps=10, every_minutes=None, keep_last=1)
    save_states(tmp_path, 10, 20, config=SaveConfig(keep_last=2))
    flip_bit(tmp_path / "step-00000020" / "model.safetensors")
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.load_latest() is not None
        checkpoints.save(tiny_state(15), wait=True)
        assert names(tmp_path) == ["step-00000015", "step-00000020"]
        checkpoints.save(tiny_state(20), wait=True)  # replaces the damaged one
        assert names(tmp_path) == ["step-00000020"]
        state = checkpoints.load_latest()
        assert state is not None
        assert_is_of_step(state, 20)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    config = SaveConfig(keep_last=2)
    save_states(tmp_path, 10, 20, 30, 40, 50, config=config, scores={10: 1.0, 20: 7.5, 30: 7.5, 40: float("nan")})
    assert names(tmp_path) == ["best.json", "step-00000020", "step-00000040", "step-00000050"]
    assert json.loads((tmp_path / "best.json").read_text()) == {"folder": "step-00000020", "step": 20, "score": 7.5}
    save_states(tmp_path, 60, config=config, scores={60: 7.0})  # a later process knows the best score so far
    save_states(tmp_path, 70, config=config)
    assert names(tmp_path) == ["best.json", "step-00000020", "step-00000060", "step-00000070"]
    save_states(tmp_path, 80, config=config, scores={80: 9.0})
    assert names(tmp_path) == ["best.json", "step-00000070", "step-00000080"]


def test_the_best_is_not_kept_if_not_configured(tmp_path: Path) -> None:
    save_states(tmp_path, 10, 20, config=SaveConfig(keep_last=1, keep_best=False), scores={10: 9.0, 20: 1.0})
    assert names(tmp_path) == ["step-00000020"]


def test_saving_a_step_again_only_updates_its_score(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(tiny_state(10), wait=True)
        before = (tmp_path / "step-00000010" / "complete.json").read_bytes()
        checkpoints.save(tiny_state(10), score=3.0, wait=True)
    assert (tmp_path / "step-00000010" / "complete.json").read_bytes() == before
    assert json.loads((tmp_path / "best.json").read_text())["score"] == 3.0


def test_when_checkpoints_are_due(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, BY_STEPS)
    assert [step for step in range(35) if checkpoints.is_due(step)] == [10, 20, 30]
    assert not checkpoints.is_time()
    by_clock = Checkpoints(tmp_path, SaveConfig(every_steps=None, every_minutes=0.3 / 60))
    assert not by_clock.is_due(1000)
    assert not by_clock.is_time()
    time.sleep(0.35)
    assert by_clock.is_time()
    assert not by_clock.is_time(), "only once, until the ranks have saved"
    time.sleep(0.2)
    by_clock.save(tiny_state(1), wait=True)
    time.sleep(0.2)
    assert not by_clock.is_time(), "it counts from the last save"


@pytest.mark.parametrize(
    ("field", "value"), [("every_steps", 0), ("every_minutes", 0.0), ("keep_last", 0), ("timeout_seconds", -1.0)]
)
def test_an_invalid_setting_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(SaveConfig, {field: value})


def save_forever(folder: Path, step: int, begun: Synchronized[int], done: Synchronized[int]) -> None:
    """Save `step` and the following ones, recording which are begun and which are complete."""
    torch.set_num_threads(1)
    checkpoints = Checkpoints(folder, SaveConfig(keep_last=1))
    while True:
        begun.value = step
        checkpoints.save(tiny_state(step), wait=True)
        done.value = step
        step += 1


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.0005)


@pytest.mark.medium
def test_killing_the_writer_at_any_time_leaves_complete_checkpoints(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rng = random.Random(5)
    save_states(tmp_path, 1)
    step, interrupted, seconds = 1, 0, 0.02
    for _ in range(40):
        begun, done = context.Value("q", 0), context.Value("q", 0)
        writer = context.Process(target=save_forever, args=(tmp_path, step, begun, done))
        writer.start()
        last = step + rng.choice([0, 0, 1, 2])  # the first one replaces the one that is there
        wait_until(lambda begun=begun: begun.value > 0)
        began = time.monotonic()
        wait_until(lambda begun=begun, last=last: begun.value >= last)
        if last > step:
            seconds = (time.monotonic() - began) / (last - step)  # of a save on this machine
        time.sleep(rng.uniform(0, seconds))
        writer.kill()
        writer.join()
        interrupted += any(name.startswith(".tmp-") for name in names(tmp_path))
        state = latest(tmp_path)
        assert state is not None
        assert_is_of_step(state, state.step)
        assert state.step >= max(step, done.value), "no complete checkpoint is lost"
        assert not [name for name in names(tmp_path) if name.startswith(".tmp-")]
        step = state.step
    assert interrupted >= 5, "too few kills interrupted a save"


def resume_and_save_forever(rank: int, folder: Path, store: Path, done: Synchronized[int]) -> None:
    """Be one of two ranks: resume from the newest checkpoint, which must not be older than `done`, and save."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    checkpoints = Checkpoints(folder, SaveConfig(keep_last=1), rank=rank, world=2)
    state = checkpoints.load_latest()
    step = state.step if state is not None else 0
    if state is not None:
        assert_is_of_step(state, step)
    assert step >= done.value
    while True:
        step += 1
        checkpoints.save(tiny_state(step), wait=True)
        done.value = max(done.value, step)


@pytest.mark.medium
def test_two_ranks_resume_after_one_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rng = random.Random(6)
    done = context.Value("q", 0)
    reached = []
    for attempt in range(8):
        arguments = (tmp_path / "run", tmp_path / f"store-{attempt}", done)
        pair = [context.Process(target=resume_and_save_forever, args=(rank, *arguments)) for rank in (0, 1)]
        for process in pair:
            process.start()
        before = done.value
        wait_until(lambda before=before: done.value >= before + 2)
        time.sleep(rng.uniform(0, 0.05))
        first = rng.choice(pair)
        for process in (first, *(other for other in pair if other is not first)):
            assert process.is_alive(), "a rank failed by itself"
            process.kill()
            time.sleep(0.05)  # the other one lives a moment longer, as under a launcher
        for process in pair:
            process.join()
        reached.append(done.value)
    assert all(later > earlier for earlier, later in itertools.pairwise(reached)), reached


def test_an_interrupted_replacement_is_undone(tmp_path: Path) -> None:
    save_states(tmp_path, 10)
    (tmp_path / "step-00000010").rename(tmp_path / ".tmp-old-step-00000010")  # killed between the two renames
    state = latest(tmp_path)
    assert state is not None
    assert_is_of_step(state, 10)


def test_a_full_disk_is_an_error_of_the_next_call_and_keeps_the_last_checkpoint(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    big = {"video.weight": (40, 400)}  # 64 KB
    checkpoints = Checkpoints(folder, BY_STEPS)
    checkpoints.save(tiny_state(10, ema=None), wait=True)  # about 25 KB, most of it random states
    checkpoints.save(tiny_state(20, model={"w": torch.zeros(*big["video.weight"])}))
    time.sleep(0.5)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 20 failed.*[Nn]o space left"):
        checkpoints.is_due(21)
    assert names(folder) == ["step-00000010"], "partial files are removed"
    state = checkpoints.load_latest()
    assert state is not None and state.step == 10
    checkpoints.save(tiny_state(30, model={"w": torch.zeros(*big["video.weight"])}))
    with pytest.raises(CheckpointError, match="step 30"):
        checkpoints.close()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder in which two gloo ranks went through `checkpoint_ranks`, and what each printed."""
    folder = tmp_path_factory.mktemp("two ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.hiervl_train.checkpoint_ranks", str(rank), "2", str(folder)],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder, outputs


@pytest.mark.medium
def test_each_rank_has_its_own_random_states(two_ranks: tuple[Path, list[str]]) -> None:
    folder, outputs = two_ranks
    drawn = [output.partition(" drew ")[2].split()[0] for output in outputs]
    assert drawn[0] != drawn[1]
    assert {"random-00000.safetensors", "random-00001.safetensors"} <= set(names(folder / "run" / "step-00000020"))


@pytest.mark.medium
def test_ranks_agree_if_one_ranks_file_is_missing(two_ranks: tuple[Path, list[str]]) -> None:
    folder, outputs = two_ranks
    for rank in (0, 1):
        assert f"file missing: rank {rank} loaded 10\n" in outputs[rank]
    assert f"{folder}/file missing/step-00000020/random-00001.safetensors: cannot be read" in outputs[0]


@pytest.mark.medium
def test_ranks_agree_if_one_node_reads_damaged_data(two_ranks: tuple[Path, list[str]]) -> None:
    _, outputs = two_ranks
    for rank in (0, 1):
        assert f"one node: rank {rank} loaded 10\n" in outputs[rank]
    assert "rank 1 WARNING checkpoint step-00000020 is skipped" in outputs[1]


@pytest.mark.medium
def test_another_number_of_ranks_keeps_all_but_the_random_states(
    two_ranks: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(two_ranks[0] / "run", BY_STEPS) as checkpoints:
        state = checkpoints.load_latest(seed=3)
        other = checkpoints.load_latest(seed=4)
    assert state is not None and other is not None
    assert_is_of_step(state, 20)
    assert "was saved by 2 ranks and is loaded by 1" in caplog.text
    assert torch.equal(state.random.cpu, RandomStates.seeded(3, 20, 0).cpu)
    assert not torch.equal(state.random.cpu, other.random.cpu)
    assert not torch.equal(state.random.cpu, RandomStates.seeded(3, 20, 1).cpu)


@pytest.mark.medium
def test_a_rank_that_never_writes_its_file_is_an_error_not_a_hang(two_ranks: tuple[Path, list[str]]) -> None:
    assert (
        "writing the checkpoint of step 1 failed: timed out after 0.5 s waiting for 2 ranks' files" in two_ranks[1][0]
    )


def test_several_ranks_need_a_process_group(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"need an initialised process group"):
        Checkpoints(tmp_path, BY_STEPS, rank=0, world=2)
