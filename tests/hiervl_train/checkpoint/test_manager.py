"""A run's checkpoints are whole or absent whatever is killed, are exact when loaded, and are never unpickled."""

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
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hiervl_train.checkpoint.manager import Checkpoints, SaveConfig
from hiervl_train.checkpoint.state import OptimizerState, RunState
from hiervl_train.models import HierVL
from hiervl_train.models.errors import CheckpointError
from hiervl_train.random_states import RandomStates
from tests.hiervl_train.run_states import assert_is_of_step, tiny_state
from tests.hiervl_train.tiny import tiny_model
from tests.paths import REPOSITORY

BY_STEPS = SaveConfig(every_steps=10, every_minutes=None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(folder: Path, *steps: int, config: SaveConfig = BY_STEPS, scores: dict[int, float] | None = None) -> None:
    """Save made-up states of these steps."""
    with Checkpoints(folder, config) as checkpoints:
        for step in steps:
            checkpoints.save(tiny_state(step), score=(scores or {}).get(step))


def latest(folder: Path) -> RunState | None:
    with Checkpoints(folder, BY_STEPS) as checkpoints:
        return checkpoints.load_latest()


# ---- what is saved is what is loaded


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    saved(tmp_path, 10)
    state = latest(tmp_path)
    assert state is not None
    assert_is_of_step(state, 10)
    assert names(tmp_path) == ["step-00000010"]


def test_a_state_is_that_of_the_boundary_whatever_training_does_next(tmp_path: Path) -> None:
    sizes = {f"layer{number}.weight": (1000, 1000) for number in range(8)}
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        for step in (10, 20):  # the second one uses the first one's buffers
            state = tiny_state(step, sizes=sizes, ema=None)
            checkpoints.save(state)
            assert f"step-{step:08d}" not in names(tmp_path), "the writing goes on while training does"
            for tensor in state.model.values():
                tensor.fill_(-1.0)
        loaded = checkpoints.load_latest()
    assert loaded is not None and loaded.ema is None
    for tensor in (*loaded.model.values(), *loaded.optimizer.tensors.values()):
        assert torch.all(tensor == 20)


def test_the_folder_is_a_checkpoint_of_the_model(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    state = tiny_state(5, model=model.state_dict(), model_config=model.config)
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(state)
    again = HierVL.from_checkpoint(tmp_path / "step-00000005")
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert (tmp_path / "step-00000005" / "tokenizer.json").read_bytes() == b'{"step": 5}'


def test_every_type_of_tensor_is_kept(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3).bfloat16(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "transposed": torch.arange(6.0).view(2, 3).t(),
    }
    tied = tensors | {"tied": tensors["double"]}
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(tiny_state(1, model=tied))
        state = checkpoints.load_latest()
    assert state is not None and state.model.keys() == tied.keys()
    for name, tensor in tied.items():
        assert state.model[name].dtype == tensor.dtype
        assert torch.equal(state.model[name], tensor)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[Any, ...]:
        return (
            torch.rand(2).tolist(),
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
        )

    draw()  # both Gaussian generators now hold the second half of a pair
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(tiny_state(1, random=RandomStates.take()))
        expected = [draw() for _ in range(3)]
        state = checkpoints.load_latest()
    assert state is not None
    state.random.restore()
    assert [draw() for _ in range(3)] == expected


# ---- the optimiser


class Net(nn.Module):
    """Two parts, one of which rests in most steps, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.aggregator = nn.Linear(4, 4)

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> float:
        x = self.encoder(torch.randn(5, 6))
        loss = (self.aggregator(x) if number > 4 else x).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.99), eps=1e-6),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "lr is a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.03), amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stop", [3, 6])  # before the aggregator's first step, and after it
def test_three_more_steps_are_those_of_a_run_that_never_stopped(
    tmp_path: Path, make: Callable[..., torch.optim.Optimizer], stop: int
) -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = make(net.parameters())
    for number in range(stop):
        net.step(optimizer, number)
    moved = {name for name, parameter in net.named_parameters() if parameter in optimizer.state}
    if isinstance(optimizer, torch.optim.AdamW):
        assert ("aggregator.weight" in moved) == (stop > 4), "what has not been moved yet has no state"
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        state = tiny_state(
            stop,
            model=net.state_dict(),
            optimizer=OptimizerState.take(optimizer, net.named_parameters()),
            random=RandomStates.take(),
        )
        checkpoints.save(state)
        expected = [net.step(optimizer, number) for number in range(stop, stop + 3)]

        again = Net()
        resumed = make(again.parameters())
        loaded = checkpoints.load_latest()
    assert loaded is not None
    again.load_state_dict(dict(loaded.model))
    loaded.optimizer.restore(resumed, again.named_parameters())
    assert {name for name, parameter in again.named_parameters() if parameter in resumed.state} == moved
    assert isinstance(resumed.param_groups[0].get("betas", ()), tuple)
    loaded.random.restore()
    assert [again.step(resumed, number) for number in range(stop, stop + 3)] == expected
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_the_optimiser_is_kept_by_name_in_its_own_types(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    optimizer.state[weight] = {"step": torch.tensor(4.0), "exp_avg": torch.rand(3), "exp_avg_sq": torch.rand(3)}
    state = OptimizerState.take(optimizer, [("video.weight", weight)])
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(tiny_state(1, optimizer=state))
        loaded = checkpoints.load_latest()
    stored = load_file(tmp_path / "step-00000001" / "optimizer.safetensors")
    assert sorted(stored) == ["video.weight.exp_avg", "video.weight.exp_avg_sq", "video.weight.step"]
    resumed = torch.optim.AdamW([weight])
    assert loaded is not None
    loaded.optimizer.restore(resumed, [("video.weight", weight)])
    for key, value in optimizer.state[weight].items():
        assert resumed.state[weight][key].dtype == torch.float32
        assert torch.equal(resumed.state[weight][key], value)


def test_a_loaded_state_is_not_changed_by_the_optimiser_that_took_it() -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.step(optimizer, 9)
    taken = OptimizerState.take(optimizer, net.named_parameters())
    kept = {name: tensor.clone() for name, tensor in taken.tensors.items()}
    other = Net()
    resumed = torch.optim.AdamW(other.parameters())
    taken.restore(resumed, other.named_parameters())
    other.step(resumed, 9)
    assert all(torch.equal(taken.tensors[name], tensor) for name, tensor in kept.items())


def test_the_state_of_other_parameters_is_refused_by_name() -> None:
    net = Net()
    state = OptimizerState.take(torch.optim.AdamW(net.parameters()), net.named_parameters())
    half = torch.optim.AdamW(net.encoder.parameters())
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: aggregator\.bias, aggregator\.weight"):
        state.restore(half, net.named_parameters())
    with pytest.raises(ValueError, match="have no name"):
        OptimizerState.take(half, net.aggregator.named_parameters())


# ---- what is damaged is skipped


FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
    "random-00000.safetensors",
    "config.yaml",
    "tokenizer.json",
    "complete.json",
]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x10  # in a tensor, not in a header that would not parse
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_named_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    saved(tmp_path, 10, 20)
    damage(tmp_path / "step-00000020" / name)
    state = latest(tmp_path)
    assert state is not None
    assert_is_of_step(state, 10)
    warning = caplog.records[0].getMessage()
    assert warning.startswith("checkpoint step-00000020 is skipped: ")
    assert str(tmp_path / "step-00000020" / name) in warning
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints, pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / "step-00000020")


def test_no_sound_checkpoint_among_some_is_an_error_and_no_new_start(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    flip(tmp_path / "step-00000010" / "model.safetensors")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        latest(tmp_path)


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path: Path) -> None:
    config = SaveConfig(every_steps=10, every_minutes=None, keep_last=1)
    saved(tmp_path, 10, 20, config=SaveConfig(keep_last=2))
    flip(tmp_path / "step-00000020" / "model.safetensors")
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.load_latest() is not None
        checkpoints.save(tiny_state(15), wait=True)
        assert names(tmp_path) == ["step-00000015", "step-00000020"]
        checkpoints.save(tiny_state(20), wait=True)  # what replaces it is sound
        assert names(tmp_path) == ["step-00000020"]
        state = checkpoints.load_latest()
        assert state is not None
        assert_is_of_step(state, 20)


# ---- which are kept


def test_the_last_ones_and_the_best_one_are_kept(tmp_path: Path) -> None:
    config = SaveConfig(keep_last=2)
    saved(tmp_path, 10, 20, 30, 40, 50, config=config, scores={10: 1.0, 20: 7.5, 30: 7.5, 40: float("nan")})
    assert names(tmp_path) == ["best.json", "step-00000020", "step-00000040", "step-00000050"]
    assert json.loads((tmp_path / "best.json").read_text()) == {"folder": "step-00000020", "step": 20, "score": 7.5}
    saved(tmp_path, 60, config=config, scores={60: 7.0})  # a later process knows the best score so far
    saved(tmp_path, 70, config=config)
    assert names(tmp_path) == ["best.json", "step-00000020", "step-00000060", "step-00000070"]
    saved(tmp_path, 80, config=config, scores={80: 9.0})
    assert names(tmp_path) == ["best.json", "step-00000070", "step-00000080"]


def test_no_best_one_is_kept_where_that_is_not_wanted(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20, config=SaveConfig(keep_last=1, keep_best=False), scores={10: 9.0, 20: 1.0})
    assert names(tmp_path) == ["step-00000020"]


def test_a_second_save_of_a_step_writes_nothing_but_its_score_counts(tmp_path: Path) -> None:
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
    assert not by_clock.is_time(), "asked once, until the ranks have agreed and saved"
    time.sleep(0.2)
    by_clock.save(tiny_state(1), wait=True)
    time.sleep(0.2)
    assert not by_clock.is_time(), "counted from the last save"


@pytest.mark.parametrize(
    ("field", "value"), [("every_steps", 0), ("every_minutes", 0.0), ("keep_last", 0), ("timeout_seconds", -1.0)]
)
def test_a_bad_value_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} = {value}"):
        SaveConfig(**{field: value})


@pytest.mark.parametrize("name", ["model.safetensors", "../escape", ".hidden", "random-00000.safetensors"])
def test_an_extra_file_takes_no_name_that_is_not_its_own(tmp_path: Path, name: str) -> None:
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints, pytest.raises(ValueError, match="extra file"):
        checkpoints.save(tiny_state(1, extra_files={name: b""}))


# ---- what is killed, and what fails


def write_without_end(folder: Path, step: int, begun: Synchronized[int], done: Synchronized[int]) -> None:
    """Save the step again, then one after another, saying which are begun and which complete."""
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


def test_a_writer_killed_at_any_moment_leaves_what_was_complete(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rng = random.Random(5)
    saved(tmp_path, 1)
    step, interrupted, seconds = 1, 0, 0.02
    for _ in range(40):
        begun, done = context.Value("q", 0), context.Value("q", 0)
        writer = context.Process(target=write_without_end, args=(tmp_path, step, begun, done))
        writer.start()
        last = step + rng.choice([0, 0, 1, 2])  # the first one replaces the one that is there
        wait_until(lambda begun=begun: begun.value > 0)
        began = time.monotonic()
        wait_until(lambda begun=begun, last=last: begun.value >= last)
        if last > step:
            seconds = (time.monotonic() - began) / (last - step)  # that a save takes here and now
        time.sleep(rng.uniform(0, seconds))
        writer.kill()
        writer.join()
        interrupted += any(name.startswith(".tmp-") for name in names(tmp_path))
        state = latest(tmp_path)
        assert state is not None
        assert_is_of_step(state, state.step)
        assert state.step >= max(step, done.value), "what was complete is not lost"
        assert not [name for name in names(tmp_path) if name.startswith(".tmp-")]
        step = state.step
    assert interrupted >= 5, "the kills came too early or too late to show anything"


def rank_without_end(rank: int, folder: Path, store: Path, done: Synchronized[int]) -> None:
    """Be one of two ranks: go on from the newest checkpoint, which must not be older than what was complete."""
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


def test_two_ranks_of_which_one_is_killed_go_on_from_what_was_complete(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rng = random.Random(6)
    done = context.Value("q", 0)
    reached = []
    for attempt in range(8):
        arguments = (tmp_path / "run", tmp_path / f"store-{attempt}", done)
        pair = [context.Process(target=rank_without_end, args=(rank, *arguments)) for rank in (0, 1)]
        for process in pair:
            process.start()
        before = done.value
        wait_until(lambda before=before: done.value >= before + 2)
        time.sleep(rng.uniform(0, 0.05))
        first = rng.choice(pair)
        for process in (first, *(other for other in pair if other is not first)):
            assert process.is_alive(), "a rank failed by itself"
            process.kill()
            time.sleep(0.05)  # the other one lives on for a moment, as under a launcher
        for process in pair:
            process.join()
        reached.append(done.value)
    assert all(later > earlier for earlier, later in itertools.pairwise(reached)), reached


def test_a_checkpoint_about_to_be_replaced_is_given_back_its_name(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    (tmp_path / "step-00000010").rename(tmp_path / ".tmp-old-step-00000010")  # killed between the two renames
    state = latest(tmp_path)
    assert state is not None
    assert_is_of_step(state, 10)


def test_a_full_disk_is_an_error_of_the_next_call_and_the_last_checkpoint_stays(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    big = {"video.weight": (40, 400)}  # 64 KB
    checkpoints = Checkpoints(folder, BY_STEPS)
    checkpoints.save(tiny_state(10, ema=None), wait=True)  # about 25 KB, most of it random states
    checkpoints.save(tiny_state(20, model={"w": torch.zeros(*big["video.weight"])}))
    time.sleep(0.5)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 20 failed.*[Nn]o space left"):
        checkpoints.is_due(21)
    assert names(folder) == ["step-00000010"], "what was half written is gone, so the disk is no fuller"
    state = checkpoints.load_latest()
    assert state is not None and state.step == 10
    checkpoints.save(tiny_state(30, model={"w": torch.zeros(*big["video.weight"])}))
    with pytest.raises(CheckpointError, match="step 30"):
        checkpoints.close()


# ---- several ranks


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


def test_each_rank_goes_on_with_its_own_random_numbers(two_ranks: tuple[Path, list[str]]) -> None:
    folder, outputs = two_ranks
    drawn = [output.partition(" drew ")[2].split()[0] for output in outputs]
    assert drawn[0] != drawn[1]
    assert {"random-00000.safetensors", "random-00001.safetensors"} <= set(names(folder / "run" / "step-00000020"))


def test_ranks_agree_where_one_ranks_file_is_missing(two_ranks: tuple[Path, list[str]]) -> None:
    folder, outputs = two_ranks
    for rank in (0, 1):
        assert f"file missing: rank {rank} loaded 10\n" in outputs[rank]
    assert f"{folder}/file missing/step-00000020/random-00001.safetensors: cannot be read" in outputs[0]


def test_ranks_agree_where_one_node_reads_what_the_others_do_not(two_ranks: tuple[Path, list[str]]) -> None:
    _, outputs = two_ranks
    for rank in (0, 1):
        assert f"one node: rank {rank} loaded 10\n" in outputs[rank]
    assert "rank 1 WARNING checkpoint step-00000020 is skipped" in outputs[1]


def test_on_another_number_of_ranks_all_but_the_random_states_carries_over(
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


def test_a_rank_that_never_writes_its_file_is_an_error_and_no_hang(two_ranks: tuple[Path, list[str]]) -> None:
    assert "writing the checkpoint of step 1 failed: waited 0.5 s for 2 ranks' files" in two_ranks[1][0]


def test_several_ranks_without_process_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"need an initialised process group"):
        Checkpoints(tmp_path, BY_STEPS, rank=0, world=2)
