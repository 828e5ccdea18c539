"""What two annotators said of the same seconds is one hit; what one of them said twice is two."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shards.search.catalog import Found
from shards.search.moments import join_passes


def found(key: str, start: float, stop: float, *, video: str = "v", set_name: str = "clips") -> Found:
    numbers = dict.fromkeys(
        ("id", "first_frame", "jpg_offset", "jpg_size", "json_offset", "json_size", "mp4_offset"), 0
    )
    return Found(
        key=key, set_name=set_name, split="train", video_uid=video, start=start, stop=stop, text=key,
        fps=30.0, clip_frames=1, mp4_size=0, tags="{}", **numbers,
    )  # fmt: skip


def test_the_passes_of_one_moment_are_one_hit() -> None:
    hits = [
        (0.9, found("v_c1_000001", 10.0, 12.0)),
        (0.8, found("v_c2_000007", 10.4, 12.2)),  # the other annotator
        (0.7, found("v_c1_000002", 10.4, 12.2)),  # the same annotator: another sentence about these seconds
        (0.6, found("v_c2_000009", 11.9, 14.0)),  # hardly the same seconds
        (0.5, found("w_c2_000001", 10.0, 12.0, video="w")),
        (0.4, found("v_s2_000001", 10.0, 12.0, set_name="summaries")),
    ]
    moments = join_passes(hits, 10)
    assert [(m.sample.key, [o.key for o in m.others]) for m in moments] == [
        ("v_c1_000001", ["v_c2_000007"]),
        ("v_c1_000002", []),
        ("v_c2_000009", []),
        ("w_c2_000001", []),
        ("v_s2_000001", []),
    ]
    assert [m.score for m in moments] == [0.9, 0.7, 0.6, 0.5, 0.4]


def test_a_full_list_still_takes_the_other_passes_of_its_moments() -> None:
    hits = [
        (0.9, found("v_c1_000001", 0.0, 2.0)),
        (0.8, found("v_c1_000002", 5.0, 7.0)),
        (0.7, found("v_c2_000001", 0.0, 2.0)),
    ]
    (moment,) = join_passes(hits, 1)
    assert [other.key for other in moment.others] == ["v_c2_000001"]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 20), st.integers(1, 6)), max_size=30))
def test_no_hit_is_lost_or_shown_twice(entries: list[tuple[int, int, int]]) -> None:
    hits = [
        (1.0 - place / 100, found(f"v_c{which}_{place:06d}", float(start), float(start + length)))
        for place, (which, start, length) in enumerate(entries)
    ]
    moments = join_passes(hits, len(hits))
    shown = [sample.key for moment in moments for sample in (moment.sample, *moment.others)]
    assert sorted(shown) == sorted(sample.key for _, sample in hits)
    for moment in moments:
        passes = [sample.annotation_pass for sample in (moment.sample, *moment.others)]
        assert len(passes) == len(set(passes))
