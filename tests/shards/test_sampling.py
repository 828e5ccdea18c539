"""Frames come from equal parts, windows lie within the sample, crops within the frame; all depend on the key alone."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sampling import (
    KeyedRng,
    centre_crop,
    clip_frames,
    frame_numbers,
    narrations_in_order,
    part_frames,
    partner,
    random_crop,
    window_frames,
    window_starts,
)
from shards.schema import MediaRecord
from tests.shards.coded import coded_clip, coded_summary


@given(st.integers(1, 400), st.integers(1, 32), st.integers(0, 99))
def test_one_frame_is_selected_from_each_equal_part(count: int, frames: int, name: int) -> None:
    edges = np.linspace(0, count, frames + 1).astype(int)
    for numbers in (frame_numbers(count, frames, KeyedRng(name)), frame_numbers(count, frames, None)):
        assert len(numbers) == frames and (numbers >= 0).all() and (numbers < count).all()
        assert (np.diff(numbers) >= 0).all()
        if count >= frames:
            assert (numbers >= edges[:-1]).all() and (numbers < edges[1:]).all()
    if count >= frames:
        middles = (edges[:-1] + edges[1:] - 1) // 2
        assert (frame_numbers(count, frames, None) == middles).all()


def test_every_frame_of_a_part_can_be_selected() -> None:
    seen = {int(n) for name in range(300) for n in frame_numbers(12, 3, KeyedRng(name))}
    assert seen == set(range(12))


@given(st.floats(0.1, 2000), st.integers(1, 32), st.floats(0.5, 20))
def test_windows_lie_within_the_sample(span: float, windows: int, seconds: float) -> None:
    starts, length = window_starts(span, windows, seconds)
    assert len(starts) == windows and length == min(seconds, span)
    assert starts.min() >= 0 and (starts + length).max() <= span + 1e-6


def test_windows_start_where_the_paper_places_them() -> None:
    starts, length = window_starts(100.0, 16, 8.0)
    assert length == 8.0
    assert np.allclose(starts, [i / 15 * (100 - 8 - 1) for i in range(16)])


@given(st.integers(1, 30), st.integers(1, 16), st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_a_summary_of_any_length_has_all_windows(seconds: int, windows: int, frames: int, is_training: bool) -> None:
    record = coded_summary_record(seconds)
    rng = KeyedRng(1) if is_training else None
    numbers_KT = window_frames(record, windows=windows, seconds=8.0, frames=frames, rng=rng)
    assert numbers_KT.shape == (windows, frames)
    assert numbers_KT.min() >= record.first_frame
    assert numbers_KT.max() < record.first_frame + record.clip_frames


def test_a_clip_of_one_frame_repeats_it() -> None:
    record = dataclasses.replace(coded_clip(0).record, first_frame=3, clip_frames=1)
    assert clip_frames(record, frames=4, rng=KeyedRng(0)).tolist() == [3, 3, 3, 3]
    assert clip_frames(record, frames=4, rng=None).tolist() == [3, 3, 3, 3]


def test_narrations_are_in_order_and_repeated_if_there_are_too_few() -> None:
    many, few, none = (coded_summary(0, seconds=4, narrations=n).record for n in (40, 3, 0))
    for rng in (KeyedRng(0), None):
        starts = [n.clip_start for n in narrations_in_order(many, 16, rng)]
        assert starts == sorted(starts) and len(set(starts)) == 16
    assert [n.text for n in narrations_in_order(few, 7, None)] == [f"#C C part {i}" for i in (0, 1, 2, 0, 1, 2, 0)]
    assert narrations_in_order(none, 4, None) == [None] * 4


@given(st.integers(4, 600), st.integers(4, 600), st.integers(0, 10**6))
def test_crops_lie_within_the_frame_on_even_pixels(width: int, height: int, name: int) -> None:
    for crop in (
        random_crop(width, height, scale=(0.5, 1.0), flip=0.5, rng=KeyedRng(name)),
        centre_crop(width, height),
    ):
        assert crop.height > 0 and crop.width > 0
        assert crop.top >= 0 and crop.top + crop.height <= height
        assert crop.left >= 0 and crop.left + crop.width <= width
        assert not any(n % 2 for n in (crop.top, crop.left, crop.height, crop.width))


def test_random_crops_have_the_configured_area_and_aspect_ratio() -> None:
    crops = [random_crop(340, 256, scale=(0.5, 1.0), flip=0.5, rng=KeyedRng(name)) for name in range(2000)]
    shares = np.array([crop.width * crop.height / (340 * 256) for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.48 < shares.min() < 0.53 and shares.max() > 0.97
    assert ratios.min() > 0.72 and ratios.max() < 1.37
    assert 0.45 < np.mean([crop.flip for crop in crops]) < 0.55
    assert len({(crop.top, crop.left) for crop in crops}) > 400


def test_a_flip_probability_of_0_never_flips() -> None:
    assert not any(random_crop(64, 48, scale=(0.5, 1), flip=0.0, rng=KeyedRng(n)).flip for n in range(200))


def test_keyed_random_numbers_are_reproducible_and_uniform() -> None:
    assert [KeyedRng(0, 1, "key").integer(1000), KeyedRng(0, 2, "key").integer(1000)] == GOLDEN
    rng = KeyedRng("even")
    counts = np.bincount([rng.integer(6) for _ in range(6000)], minlength=6)
    assert counts.min() > 850 and counts.max() < 1150
    assert all(2.0 <= rng.uniform(2, 3) < 3.0 for _ in range(100))


def test_a_partner_is_another_row() -> None:
    assert {partner(3, [1, 3, 5], KeyedRng(n)) for n in range(50)} == {1, 5}
    assert partner(3, [3], KeyedRng(0)) is None


@given(st.integers(1, 200), st.integers(0, 50), st.floats(0.1, 20), st.floats(0, 20), st.integers(0, 9))
def test_a_part_lies_within_the_sample(count: int, first: int, shortest: float, more: float, seed: int) -> None:
    record = dataclasses.replace(coded_clip(0).record, first_frame=first, clip_frames=count, fps=2.0)
    for rng in (None, KeyedRng(seed)):
        frames = part_frames(record, seconds=(shortest, shortest + more), frames=4, rng=rng)
        assert list(frames) == sorted(frames) and first <= frames[0] and frames[-1] < first + count
        assert frames[-1] - frames[0] <= (shortest + more) * 2 + 1


def coded_summary_record(seconds: int) -> MediaRecord:
    record = coded_summary(0, seconds=1, narrations=0).record
    return dataclasses.replace(record, clip_frames=2 * seconds, num_frames=2 * seconds + 1)


GOLDEN = [134, 191]
