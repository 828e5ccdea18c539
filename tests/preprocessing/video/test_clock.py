"""The clock of a source: restarts, wrapped and missing times, plausible ends, and its file in the work folder."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.video.clock import (
    NO_TIME,
    ClockError,
    LostSpan,
    Packets,
    VideoClock,
    clock_of,
    load_clock,
    save_clock,
)
from tests.preprocessing.coded_video import steady, write_video
from tests.preprocessing.video.containers import MPEG2, SIZE, encode, kinds, later, packets_of, video, write_packets
from tests.preprocessing.video.in_process import Source, expected
from tests.preprocessing.video.player import Player, is_one_of


def packets(seconds: list[float], *, keys: set[int] = frozenset({0}), dts: list[float] | None = None) -> Packets:  # type: ignore[assignment]
    """Return packets with these presentation times (NaN: none), in ticks of 1 ms."""
    count = len(seconds)
    ticks = [np.array([NO_TIME if np.isnan(t) else round(t * 1000) for t in times], np.int64)
             for times in (seconds, seconds if dts is None else dts)]  # fmt: skip
    return Packets(
        pts_P=ticks[0],
        dts_P=ticks[1],
        duration_P=np.zeros(count, np.int64),
        key_P=np.array([n in keys for n in range(count)]),
        pos_P=np.arange(count) * 100,
        size_P=np.full(count, 100),
        tick=0.001,
    )


@pytest.mark.parametrize(("first", "second"), [(4.0, 2.0), (2.0, 4.0), (3.0, 3.0), (1.0, 0.5)])
def test_a_clock_that_restarts_goes_on_where_it_stopped(first: float, second: float, tmp_path: Path) -> None:
    parts = [video(tmp_path / f"{i}.ts", seconds).read_bytes() for i, seconds in enumerate((first, second))]
    (tmp_path / "v.ts").write_bytes(b"".join(parts))
    source = Source(tmp_path / "v.ts", tmp_path)
    assert [note.split(" by ")[0] for note in source.probed.notes] == ["the clock jumps back"]
    assert f"at {first - 1 / 30:.3f} s" in source.probed.notes[0]
    numbers = [*range(round(first * 30)), *range(round(second * 30))]
    assert source.frames() == len(numbers)
    for seconds in (1.0, 0.7):
        for chunk in source.every_chunk(seconds):
            sound = chunk.sound()
            assert sound == {n: numbers[n] for n in sound}
            assert len(sound) >= len(chunk.frames) - 4


def test_three_recordings_joined_in_one_stream(tmp_path: Path) -> None:
    part = video(tmp_path / "part.ts", 1.5).read_bytes()
    (tmp_path / "v.ts").write_bytes(part * 3)
    source = Source(tmp_path / "v.ts", tmp_path)
    assert len(source.probed.notes) == 2 and source.frames() == 135
    sound = {n: number for chunk in source.every_chunk() for n, number in chunk.sound().items()}
    assert sound == {n: n % 45 for n in sound} and len(sound) > 120


def test_a_clock_that_wraps_goes_on(tmp_path: Path) -> None:
    """MPEG-TS counts in 33 bits: after 26.5 hours it starts again."""
    path = write_video(tmp_path / "v.ts", steady(4), size=SIZE, gop=15, start=2**33 / 90_000 - 3.0)
    source = Source(path, tmp_path)
    assert source.frames() == 120 and not source.probed.notes
    assert [n for chunk in source.every_chunk() for n in chunk.numbers] == list(range(120))


def test_a_forward_jump_keeps_the_times_and_is_damage(tmp_path: Path) -> None:
    base = video(tmp_path / "w.ts", 2)
    own = packets_of(base)
    path = write_packets(base, tmp_path / "v.ts", [*own, *later(own, 5.0)])
    source = Source(path, tmp_path)
    assert source.frames() == 210
    chunks = source.every_chunk()
    sound = {n: number for chunk in chunks for n, number in chunk.sound().items()}
    assert {n: number for n, number in sound.items() if n >= 150} == {n: n - 150 for n in range(150, 210)}
    assert {d.reason for chunk in chunks for d in chunk.damage} <= {"frozen video", "no decodable frame"}
    assert not any(65 < n < 150 for n in sound)


def test_groups_whose_clock_is_not_reset_by_b_frames(tmp_path: Path) -> None:
    """Presentation times go back after every anchor frame: that is no restart."""
    for name, options in {"v.ts": {"bf": "5"}, "v.mkv": {"bf": "8", "x264-params": "b-pyramid=normal"}}.items():
        source = Source(video(tmp_path / name, 3, options=options), tmp_path)
        assert not source.probed.notes
        assert [n for chunk in source.every_chunk() for n in chunk.numbers] == list(range(90))


@pytest.mark.parametrize("bits", ["open_gop=1", "intra-refresh=1", "open-gop=1:bframes=4:b-pyramid=normal"])
@pytest.mark.parametrize("name", ["v.ts", "v.mkv", "v.mp4"])
def test_groups_that_are_entered_at_recovery_points(bits: str, name: str, tmp_path: Path) -> None:
    path = video(tmp_path / name, 4, gop=20, options={"x264-params": bits.replace("open_gop", "open-gop")})
    source = Source(path, tmp_path)
    assert source.frames() == 120
    for chunk in source.every_chunk():
        assert not chunk.damage
        assert chunk.numbers == list(range(chunk.first, chunk.first + len(chunk.frames)))


@pytest.mark.parametrize("share", [0.1, 0.33, 0.52])
@pytest.mark.parametrize("kind", ["ps", "ts"])
def test_a_stream_without_its_beginning_starts_at_the_first_frame_that_decodes(
    kind: str, share: float, tmp_path: Path
) -> None:
    path = kinds()[kind](tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[int(len(data) * share) // 188 * 188 :])
    source = Source(path, tmp_path)
    sound = {n: frame for chunk in source.every_chunk() for n, frame in chunk.sound_frames().items()}
    player = Player.of(path, size=(sound[max(sound)].picture.shape[1], sound[max(sound)].picture.shape[0]))
    assert all(is_one_of(frame, player.near(n / 30)) for n, frame in sound.items())
    shifts = {frame.number - n for n, frame in sound.items()}  # another time 0; libav guesses the first times of PS
    assert max(shifts) - min(shifts) <= (2 if kind == "ps" else 0)
    assert sound[max(sound)].number >= 88 and len(sound) > 0.7 * source.frames()


def test_every_chunk_border_of_a_cut_program_stream(tmp_path: Path) -> None:
    path = encode(video(tmp_path / "w.mp4", 4), tmp_path / "v.mpg", *MPEG2)
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"\0\0\1\xba", len(data) // 3) :])
    source = Source(path, tmp_path)
    whole = source.every_chunk(10)[0].sound()
    for seconds in (0.3, 1.0):
        for chunk in source.every_chunk(seconds):
            sound = chunk.sound()
            assert sound == {n: whole[n] for n in sound if n in whole}


def test_missing_presentation_times_are_counted_in_the_order_of_output() -> None:
    dts = [n / 25 for n in range(6)]
    clock = clock_of(packets([0.0, np.nan, 0.08, np.nan, 0.16, 0.2], dts=dts), trusts_pts=True, rate=25)
    assert clock.by_order and clock.time_P.tolist() == pytest.approx(dts)
    clock = clock_of(packets([np.nan] * 6, dts=[np.nan] * 6), trusts_pts=True, rate=50)
    assert clock.by_order and clock.time_P.tolist() == pytest.approx([n / 50 for n in range(6)])
    with pytest.raises(ClockError, match="remux"):
        clock_of(packets([np.nan] * 3, dts=[np.nan] * 3), trusts_pts=True, rate=0)


def test_a_damaged_packet_without_a_time_moves_no_other() -> None:
    clock = clock_of(packets([0.0, 0.04, np.nan, 0.12, 0.16, 0.2]), trusts_pts=True, rate=25)
    assert not clock.by_order and "1 frames without" in clock.notes[0]
    assert clock.time_P.tolist() == pytest.approx([0.0, 0.04, np.nan, 0.12, 0.16, 0.2], nan_ok=True)


def test_what_is_not_believed_is_said() -> None:
    times = [n / 25 for n in range(100)]
    far = clock_of(packets([*times, 5000.0]), trusts_pts=True, rate=25, limit=60)
    assert far.end == pytest.approx(4.0) and "not believed" in far.notes[0]
    early = clock_of(packets([0.0, *(t + 5000 for t in times)]), trusts_pts=True, rate=25, limit=60)
    assert early.end == pytest.approx(4.0) and np.isnan(early.time_P[0]) and early.time_P[1] == 0
    stated = clock_of(packets(times), trusts_pts=True, rate=25, stated_seconds=1e9)
    assert stated.stated_end == stated.end and "header states" in stated.notes[0]
    with pytest.raises(ClockError, match="100 frames within"):
        clock_of(packets([n / 5000 for n in range(100)]), trusts_pts=True, rate=25)
    with pytest.raises(ClockError, match="no packets"):
        clock_of(packets([]), trusts_pts=True, rate=25)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.005, 0.4), min_size=2, max_size=40), st.integers(5, 60))
def test_a_frame_is_shown_from_the_nearest_grid_frame_on(steps: list[float], fps: int) -> None:
    times = np.concatenate([[0.0], np.cumsum(np.round(steps, 3))])
    clock = clock_of(packets(times.tolist()), trusts_pts=True, rate=25)
    assert (np.diff(clock.slots(fps)) >= 0).all()
    assert (np.abs(clock.slots(fps) / fps - clock.time_P) <= 0.5 / fps + 1e-5).all()
    assert clock.frames(fps) == max(1, round(clock.end * fps)) and clock.end > clock.time_P[-1]


def some_clock(seed: int = 0) -> VideoClock:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.01, 0.1, 50)).tolist()
    clock = clock_of(packets(times, keys={0, 20, 40}), trusts_pts=True, rate=25, stated_seconds=99.0)
    return replace(clock, lost=(LostSpan(start=1.0, end=2.0, reason="a ü reason"),), notes=("one", "two"))


def test_a_clock_is_read_as_it_was_saved(tmp_path: Path) -> None:
    clock, path = some_clock(), tmp_path / "clocks" / "a.npz"
    path.parent.mkdir()
    save_clock(path, clock, (10, 20, 30))
    loaded = load_clock(path, (10, 20, 30))
    assert loaded is not None
    for name in VideoClock.__dataclass_fields__:
        assert np.array_equal(getattr(loaded, name), getattr(clock, name), equal_nan=name == "time_P"), name
    assert load_clock(path, (10, 20, 31)) is None and load_clock(tmp_path / "absent.npz") is None


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (self.path, "w")


def test_a_hostile_clock_file_is_not_unpickled(tmp_path: Path) -> None:
    trap = np.array([Trap(str(tmp_path / "sprung"))], dtype=object)
    good = some_clock()
    arrays = {name: getattr(good, name) for name in ("key_P", "pos_P", "size_P", "raw_P")}
    np.savez(tmp_path / "a.npz", meta=trap, time_P=trap, **arrays)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    np.save(tmp_path / "c.npy", trap)
    (tmp_path / "c.npy").rename(tmp_path / "c.npz")
    for name in "abc":
        assert load_clock(tmp_path / f"{name}.npz") is None
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_clock_file_counts_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_clock(path, some_clock(), (1, 2, 3))
    data, rng, read = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        mutated = bytearray(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        for _ in range(rng.choice((1, 4))):
            if mutated:
                mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        path.write_bytes(mutated)
        clock = load_clock(path, (1, 2, 3))
        read += clock is not None
        assert clock is None or len({len(getattr(clock, n)) for n in ("time_P", "key_P", "pos_P", "raw_P")}) == 1
    assert read < 100


def test_expectation_of_the_tests() -> None:
    assert [expected(steady(1), n) for n in range(30)] == list(range(30))
