"""Batches are the same for any number of workers and ranks and resumable anywhere; failures are counted or raise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.loader import Batch, Loader, LoaderError
from tests.preprocessing.coded_video import read_number
from tests.shards.coded import FRAMES_A_CLIP, coded_dataset, overwrite_member

SMALL = {"size": 32, "frames": 3, "workers": 0, "windows": 5, "narrations": 6}


@pytest.fixture
def own_root(tmp_path: Path) -> Path:
    """A dataset that the test damages."""
    coded_dataset(tmp_path, (6, 6))
    return tmp_path


def config(**changes: object) -> LoaderConfig:
    return LoaderConfig(**{**SMALL, "global_batch": 4, **changes})


def take(loader: Loader, count: int) -> list[Batch]:
    """Return the next `count` batches, from several epochs if necessary."""
    batches: list[Batch] = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


def assert_equal(a: Batch, b: Batch) -> None:
    assert (a.epoch, a.number, a.keys, a.texts, a.narrations) == (b.epoch, b.number, b.keys, b.texts, b.narrations)
    for name, tensor in a.tensors().items():
        assert torch.equal(tensor, b.tensors()[name]), name


def test_an_epoch_has_each_clip_once_with_its_own_text_tags_and_frames(coded_root: Path) -> None:
    with Loader(coded_root, "clips", "train", config(), is_training=False) as loader:
        batches = list(loader)
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == len(set(keys)) == 29
    for batch in batches:
        for index, text in enumerate(batch.texts):
            number = int(text.split()[-1])
            assert batch.keys[index].endswith(f"_c1_{number:06d}")
            assert batch.verbs_BV[index].nonzero().flatten().tolist() == [number % 118]
            assert batch.nouns_BO[index].nonzero().flatten().tolist() == sorted({number % 582, 7})
            shown = [read_number(frame) for frame in batch.frames[index].numpy()]
            assert shown == [FRAMES_A_CLIP * number + 2 + middle for middle in (2, 9, 16)]
    assert batches[0].frames.shape == (4, 3, 32, 32, 3) and batches[0].video.shape == (4, 3, 3, 32, 32)


def test_training_frames_change_with_the_epoch(coded_root: Path) -> None:
    with Loader(coded_root, "clips", "train", config(flip=0.0, crop_scale=(1.0, 1.0), size=64)) as loader:
        first, second = list(loader), list(loader)
    assert [batch.epoch for batch in first + second] == [0] * 7 + [1] * 7
    shown = {}
    for batch in first + second:
        for index, key in enumerate(batch.keys):
            shown.setdefault(key, []).append(batch.frames[index])
    twice = [frames for frames in shown.values() if len(frames) == 2]
    assert len(twice) > 20
    assert sum(torch.equal(*frames) for frames in twice) < 3


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_global_batches_are_the_same_for_any_world_size_after_a_resume(coded_root: Path, data: st.DataObject) -> None:
    lanes = data.draw(st.sampled_from([1, 2, 4, 6]))
    chosen = config(
        global_batch=lanes * data.draw(st.integers(1, 2)),
        lanes=lanes,
        seed=data.draw(st.integers(0, 9)),
        block_mib=data.draw(st.sampled_from([1, 1000])),
        scene_negatives=data.draw(st.booleans()),
    )
    worlds = [n for n in (1, 2, 3, 4, 6) if lanes % n == 0]
    loader = Loader(coded_root, "clips", "train", chosen)
    stop = data.draw(st.integers(0, 2 * len(loader)))
    take(loader, stop)
    state = json.loads(json.dumps(loader.state_dict()))
    expected = take(loader, 3)
    world = data.draw(st.sampled_from(worlds))
    parts = []
    for rank in range(world):
        part = Loader(coded_root, "clips", "train", chosen, rank=rank, world=world)
        part.load_state_dict(state)
        parts.append(take(part, 3))
    for number, batch in enumerate(expected):
        ranks = [part[number] for part in parts]
        half = chosen.global_batch // world  # the clips come first, their partners after
        clips = [key for rank in ranks for key in rank.keys[:half]]
        assert clips == batch.keys[: chosen.global_batch]
        assert torch.equal(torch.cat([r.frames[:half] for r in ranks]), batch.frames[: chosen.global_batch])
        assert torch.equal(torch.cat([r.frames[half:] for r in ranks]), batch.frames[chosen.global_batch :])


def test_the_next_50_batches_after_a_resume_equal_those_of_an_uninterrupted_run(coded_root: Path) -> None:
    uninterrupted = Loader(coded_root, "clips", "train", config(global_batch=3))
    expected = take(uninterrupted, 57)
    stopped = Loader(coded_root, "clips", "train", config(global_batch=3, workers=2))
    with stopped:
        take(stopped, 7)
        state = stopped.state_dict()
    assert all(type(value) is int for value in state.values()) and len(state) == 3
    with Loader(coded_root, "clips", "train", config(global_batch=3, workers=1)) as resumed:
        resumed.load_state_dict(state)
        for a, b in zip(take(resumed, 50), expected[7:], strict=True):
            assert_equal(a, b)


def test_the_state_counts_delivered_batches_not_prefetched_ones(coded_root: Path) -> None:
    with Loader(coded_root, "clips", "train", config(workers=2, prefetch=4)) as loader:
        for number, _ in enumerate(loader):
            assert loader.state_dict()["batch"] == number + 1
            if number == 2:
                break


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_has_each_sample_once_and_equally_many_batches_per_rank(coded_root: Path, world: int) -> None:
    parts = [
        list(Loader(coded_root, "clips", "train", config(), is_training=False, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    keys = [key for part in parts for batch in part for key in batch.keys]
    assert len(keys) == len(set(keys)) == 29
    with Loader(coded_root, "clips", "train", config(), is_training=False) as again:
        assert [b.keys for b in again] == [b.keys for b in again]


def test_summaries_have_windows_and_narrations_in_order(coded_root: Path) -> None:
    with Loader(coded_root, "summaries", "train", config(global_batch=5), is_training=False) as loader:
        (batch,) = list(loader)
    assert batch.frames.shape == (5, 5, 3, 32, 32, 3) and batch.video.shape == (5, 5, 3, 3, 32, 32)
    for index, text in enumerate(batch.texts):
        number = int(text.split()[-1])
        shown = [[read_number(f) - FRAMES_A_CLIP * number for f in window] for window in batch.frames[index].numpy()]
        assert all(window == sorted(window) for window in shown)
        assert [w[0] for w in shown] == sorted(w[0] for w in shown)
        assert min(min(w) for w in shown) >= 1 and max(max(w) for w in shown) <= 2 * (3 + 4 * number)
        fewer = [f"#C C part {i % (3 * number)}" for i in range(6)] if number else [text] * 6
        assert batch.narrations[index] == (fewer if number < 3 else sorted(batch.narrations[index], key=_part))


def test_scene_negatives_are_other_clips_of_the_same_minute_if_there_are_any(coded_root: Path) -> None:
    with Loader(coded_root, "clips", "train", config(scene_negatives=True)) as loader:
        batches = list(loader)
    marked = 0
    for batch in batches:
        assert len(batch.keys) == 8
        for clip, other, is_scene in zip(batch.keys[:4], batch.keys[4:], batch.is_scene_B[:4].tolist(), strict=True):
            assert clip != other
            if is_scene:
                assert clip.rsplit("_", 2)[0] == other.rsplit("_", 2)[0]
                marked += 1
    assert marked > 14  # most have a neighbour


def test_withdrawn_videos_are_skipped_and_the_others_keep_their_order(own_root: Path) -> None:
    def keys(**options: object) -> list[str]:
        with Loader(own_root, "clips", "train", config(global_batch=1, **options)) as loader:
            return [key for batch in loader for key in batch.keys]

    before = keys()
    (own_root / "denylist.txt").write_text("video-001  # on request\n", encoding="utf-8")
    assert keys() == [key for key in before if not key.startswith("video-001")]
    assert not any(key.startswith("video-001") for key in keys(scene_negatives=True))
    with Loader(own_root, "clips", "train", config(), is_training=False) as loader:
        assert sum(len(batch.keys) for batch in loader) == 8


def test_a_run_resumes_after_a_withdrawal(own_root: Path) -> None:
    loader = Loader(own_root, "clips", "train", config(global_batch=2))
    take(loader, 2)
    (own_root / "denylist.txt").write_text("video-001\n", encoding="utf-8")
    after = Loader(own_root, "clips", "train", config(global_batch=2))
    after.load_state_dict(loader.state_dict())
    assert len(take(after, 3)) == 3


def test_an_undecodable_clip_is_replaced_by_the_next_one_and_counted(own_root: Path) -> None:
    overwrite_member(open_dataset(own_root), 0, 2, b"\0" * 1500)
    runs = []
    for workers in (0, 2):
        with Loader(own_root, "clips", "train", config(workers=workers), is_training=False) as loader:
            batches = list(loader)
            metrics = loader.metrics()
        runs.append([batch.keys for batch in batches])
        assert {name for name in metrics if name.startswith("failed/")} == {"failed/not an mp4"}
        assert metrics["failed/not an mp4"] == 1.0 and metrics["samples"] == 12
        assert min(int(batch.frames.float().mean(dim=(2, 3, 4)).min()) for batch in batches) > 20
        assert batches[0].failures[2][0].key.endswith("_000002")
    assert runs[0] == runs[1]
    assert runs[0][0][2] == runs[0][0][3]  # the next sample of its shard
    assert loader.metrics() == {"samples": 0.0, "wait_seconds": 0.0}


def test_damaged_records_and_headers_are_counted(own_root: Path) -> None:
    dataset = open_dataset(own_root)
    overwrite_member(dataset, 0, 1, b"{]", member="json")
    overwrite_member(dataset, 0, 3, b"\xff" * 100, member="json", at=-512)
    with Loader(own_root, "clips", "train", config(), is_training=False) as loader:
        list(loader)
        assert {k: v for k, v in loader.metrics().items() if "failed" in k} == {"failed/record": 1, "failed/read": 1}


def test_too_many_consecutive_failures_raise_with_the_keys(own_root: Path) -> None:
    dataset = open_dataset(own_root)
    for row in range(4):
        overwrite_member(dataset, 0, row, b"\0" * 1500)
    with (
        Loader(own_root, "clips", "train", config(max_consecutive_failures=3), is_training=False) as loader,
        pytest.raises(LoaderError, match=r"max_consecutive_failures = 3 .*_000000.*_000003"),
    ):
        list(loader)


def test_a_killed_worker_raises(coded_root: Path) -> None:
    with Loader(coded_root, "clips", "train", config(workers=2, prefetch=1)) as loader:
        take(loader, 1)
        children = loader._iterator._workers  # type: ignore[union-attr]
        os.kill(children[0].pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(LoaderError, match=r"a worker died or hangs: DataLoader worker \(pid"):
            take(loader, 50)
        assert time.monotonic() - began < 30


def test_a_stuck_worker_raises_after_the_timeout(coded_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # how long closing waits for it, too
    with Loader(coded_root, "clips", "train", config(workers=1, prefetch=1, worker_timeout_seconds=2.0)) as loader:
        take(loader, 1)
        child = loader._iterator._workers[0]  # type: ignore[union-attr]
        os.kill(child.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LoaderError, match="a worker died or hangs: DataLoader timed out"):
                take(loader, 50)
        finally:
            os.kill(child.pid, signal.SIGCONT)


def test_resuming_is_equally_fast_anywhere(tmp_path: Path) -> None:
    coded_dataset(tmp_path, (40, 40))
    times = []
    for share in (0.1, 0.5, 0.9):
        loader = Loader(tmp_path, "clips", "train", config(global_batch=2))
        loader.load_state_dict({**loader.state_dict(), "batch": int(share * len(loader))})
        began = time.perf_counter()
        take(loader, 1)
        times.append(time.perf_counter() - began)
    assert max(times) < 1.0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"epoch": 0, "batch": 1}, "resume state has the integers"),
        ({"epoch": 0, "batch": 1.0, "identity": 3}, "resume state has the integers"),
        ({"epoch": 0, "batch": 1, "identity": 3}, "resume state is from a different dataset, seed or batch size"),
        ({"epoch": -1, "batch": 1}, "must not be negative"),
    ],
)
def test_resume_state_that_does_not_fit_is_refused(coded_root: Path, state: dict[str, int], message: str) -> None:
    loader = Loader(coded_root, "clips", "train", config())
    identity = loader.state_dict()["identity"] if state["epoch"] < 0 else None
    with pytest.raises(LoaderError, match=message):
        loader.load_state_dict({**state, "identity": identity} if identity else state)


def test_the_state_identifies_the_order(coded_root: Path) -> None:
    def identity(**changes: object) -> int:
        return Loader(coded_root, "clips", "train", config(**changes)).state_dict()["identity"]

    same = identity()
    assert identity(workers=3, prefetch=9, decoder="decord", frames=5) == same
    assert len({same, identity(seed=1), identity(global_batch=8), identity(lanes=2), identity(block_mib=7)}) == 5


@pytest.mark.parametrize("decoder", ["decord"])
def test_other_decoders_give_the_same_batches_up_to_rounding(coded_root: Path, decoder: str) -> None:
    a = next(iter(Loader(coded_root, "clips", "train", config())))
    b = next(iter(Loader(coded_root, "clips", "train", config(decoder=decoder))))
    assert a.keys == b.keys
    assert np.abs(a.frames.numpy().astype(int) - b.frames.numpy().astype(int)).mean() < 3


def test_importing_the_loader_imports_no_other_package_of_the_project() -> None:
    code = (
        "import sys, shards.loader;"
        "ours = ('preprocessing', 'hiervl_train', 'configs', 'eval', 'cluster', 'dask', 'decord');"
        "sys.exit(', '.join(name for name in ours if name in sys.modules) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _part(text: str) -> int:
    return int(text.split()[-1])


def test_a_summary_can_be_read_as_a_clip_of_a_few_seconds(coded_root: Path) -> None:
    short = config(clip_seconds=(1.5, 3.0))
    batches = [next(iter(Loader(coded_root, "summaries", "train", short, is_training=t))) for t in (True, True, False)]
    assert all(batch.video.shape == (4, 3, 3, 32, 32) and batch.narrations == [[]] * 4 for batch in batches)
    assert torch.equal(batches[0].frames, batches[1].frames)
    assert not torch.equal(batches[0].frames, batches[2].frames)
