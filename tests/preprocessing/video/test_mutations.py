"""Mutated videos: each stored frame outside of damage is the one that the source shows then; nothing crashes."""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from preprocessing.build_shards import main
from preprocessing.video.chunks import chunk_path, read_sidecar
from preprocessing.video.clock import clock_path, load_clock
from preprocessing.video.probe import UnreadableError
from shards.verify.__main__ import main as verify
from tests.preprocessing.video.containers import kinds
from tests.preprocessing.video.in_process import Source
from tests.preprocessing.video.mutations import mutate
from tests.preprocessing.video.player import Player, Shown, as_shown, joins_of, wrong_frames
from tests.preprocessing.world import World, ledger_of

SECONDS = 3.0
SLOWEST = 60.0  # s for one video; a hang, on any machine


@lru_cache(maxsize=1)
def originals(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return kind → (extension, bytes) of a small video of each container."""
    found = {}
    for number, (kind, make) in enumerate(kinds().items()):
        (folder / str(number)).mkdir()
        path = make(folder / str(number))
        found[kind] = (path.suffix, path.read_bytes())
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    """Those videos, made once."""
    return originals(tmp_path_factory.mktemp("originals"))


def mutated(videos: dict[str, tuple[str, bytes]], seed: str) -> tuple[str, str, str, bytes]:
    """Return (kind, extension, mutation, bytes) of the mutation with a seed."""
    rng = random.Random(seed)
    kind = rng.choice(list(videos))
    suffix, data = videos[kind]
    mutation, changed = mutate(data, data, rng)
    return kind, suffix, mutation, changed


def outcome(path: Path, folder: Path) -> str:
    """Read a mutated video as chunks of a second are made, check every frame, and name the outcome."""
    began = time.monotonic()
    try:
        source = Source(path, folder, stated_seconds=SECONDS)
    except UnreadableError:
        return "refused with a reason"
    chunks = source.every_chunk()
    stored = {n: frame for chunk in chunks for n, frame in chunk.sound_frames().items()}
    assert time.monotonic() - began < SLOWEST
    require_right(stored, path, by_order=source.clock.by_order, notes=source.clock.notes)
    if any(chunk.damage for chunk in chunks):
        return "damage stated"
    return "read whole" if source.frames() == round(SECONDS * 30) else "read at another length"


def require_right(stored: dict[int, Shown], path: Path, *, by_order: bool, notes: tuple[str, ...]) -> None:
    """Check frames outside of damage against what a player shows of the mutated video, and of the one before."""
    size = next((frame.picture.shape[::-1] for frame in stored.values()), (72, 48))
    player = Player.of(path, size=(size[0], size[1]))
    wrong = wrong_frames(stored, player, fps=30, by_order=by_order, joins=joins_of(notes))
    assert not wrong, f"{len(wrong)} frames of {len(stored)} are wrong, such as {dict(list(wrong.items())[:4])}"


def run(videos: dict[str, tuple[str, bytes]], seed: str, count: int, folder: Path) -> Counter[str]:
    """Read `count` mutated videos; return how often each outcome occurred."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        kind, suffix, mutation, data = mutated(videos, f"{seed}/{number}")
        path = folder / f"v{suffix}"
        path.write_bytes(data)
        try:
            outcomes[outcome(path, folder)] += 1
        except Exception as error:
            raise AssertionError(f"{kind}, {mutation}, seed {seed}/{number}, kept as {path}: {error}") from error
    return outcomes


@pytest.mark.parametrize("seed", ["one", "two"])
def test_frames_of_mutated_videos_are_right_or_damage(
    seed: str, videos: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    outcomes = run(videos, seed, 50, tmp_path)
    print(dict(outcomes))
    assert sum(outcomes.values()) == 50 and len(outcomes) > 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["long 0", "long 1", "long 2", "long 3"])
def test_frames_of_many_mutated_videos_are_right_or_damage(
    seed: str, videos: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    print(dict(run(videos, seed, 1000, tmp_path)))


def build(videos: dict[str, tuple[str, bytes]], seed: str, count: int, folder: Path) -> Counter[str]:
    """Build a dataset of mutated videos and check all frames; return how often each status of a clip occurred."""
    world, made = World(root=folder / "in"), {}
    world.videos.mkdir(parents=True)
    for number in range(count):
        kind, suffix, mutation, data = mutated(videos, f"{seed}/{number}")
        uid = f"v{number:03d}"
        made[uid] = (world.videos / f"{uid}{suffix}", f"{kind}, {mutation}, seed {seed}/{number}")
        made[uid][0].write_bytes(data)
        world.durations[uid] = SECONDS
        for second in range(3):
            world.clip(uid, second + 0.1, second + 0.8, f"does thing {second} in {uid}")
    world.write()
    options = ("chunk.seconds=2", "chunk.short_side=48", "dask.workers=2", "max_failed_fraction=1.0")
    assert main(world.options(folder, options)) == 0
    assert verify([str(folder / "shards")]) == 0
    rows = ledger_of(folder)
    clips = [row for row in rows if row["set"] == "clips"]
    assert len(clips) == 3 * count and all(row["status"] in ("packed", "failed") for row in clips)
    assert all(row["reason"] and row["detail"] for row in clips if row["status"] == "failed")
    check_spans(folder, set(made))
    for uid, (path, description) in made.items():
        chunks = [c for i in range(60) if (c := read_sidecar(folder / "work", uid, i)) is not None]
        stored = {n: f for chunk in chunks if chunk.frames for n, f in sound(folder / "work", uid, chunk.index).items()}
        clock = load_clock(clock_path(folder / "work", uid))
        assert clock is not None or not stored
        try:
            require_right(stored, path, by_order=bool(clock and clock.by_order), notes=clock.notes if clock else ())
        except AssertionError as error:
            raise AssertionError(f"{description}, kept as {path}: {error}") from error
    return Counter(f"{row['status']} {row['reason']}".strip() for row in clips)


def sound(work: Path, uid: str, index: int) -> dict[int, Shown]:
    """Return grid frame → stored frame of a chunk, outside of its damage."""
    chunk = read_sidecar(work, uid, index)
    assert chunk is not None
    with av.open(str(chunk_path(work, uid, index, "full"))) as container:
        lumas = [frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)]
    assert len(lumas) == chunk.frames
    first = round(chunk.start * 30)
    return {
        first + n: as_shown(np.ascontiguousarray(luma))
        for n, luma in enumerate(lumas)
        if not any(d.start - 1e-6 < chunk.start + (n + 0.5) / 30 < d.end + 1e-6 for d in chunk.damage)
    }


def check_spans(folder: Path, uids: set[str]) -> None:
    """Check that the spans of each video join without a gap, up to its stated length at least, each with its reason."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for row in pq.read_table(folder / "shards" / "spans.parquet").to_pylist():
        assert row["status"] == "packed" or row["reason"]
        spans.setdefault(row["video_uid"], []).append((row["start"], row["end"]))
    assert spans.keys() == uids
    for parts in spans.values():
        at = 0.0
        for start, end in sorted(parts):
            assert start <= at + 1e-6
            at = max(at, end)
        assert at > SECONDS - 1.0


@pytest.mark.medium
def test_a_build_of_mutated_videos_loses_nothing_in_silence(
    videos: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    counts = build(videos, "build", 24, tmp_path)
    print(dict(counts))
    assert counts["packed"] > 10 and len(counts) > 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["build 0", "build 1"])
def test_builds_of_many_mutated_videos_lose_nothing_in_silence(
    seed: str, videos: dict[str, tuple[str, bytes]], tmp_path: Path
) -> None:
    print(dict(build(videos, seed, 150, tmp_path)))
