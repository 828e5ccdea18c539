"""Keys are valid file names, and different annotations have different keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shards.keys import distinct_key, escape_id, is_key, make_key


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_escaped_ids_are_valid_and_distinct(ids: list[str]) -> None:
    one, two = (escape_id(text) for text in ids)
    assert one != two
    assert is_key(make_key(ids[0], "c", 1, 123))


def test_a_dot_in_a_video_id_is_escaped() -> None:
    assert make_key("P01_01.take.2", "c", 2, 7) == "P01__01_x2etake_x2e2_c2_000007"


@given(
    st.text(max_size=200),
    st.sampled_from(["000001", "0" * 10 + "-" + "1" * 11, "1" * 14 + "-" + "2" * 14 + "-c012", "whole"]),
    st.lists(st.text(), min_size=2, max_size=2, unique=True),
)
def test_annotations_that_share_a_key_get_valid_and_distinct_keys(
    video: str, identity: str, contents: list[str]
) -> None:
    key = make_key(video, "a", 0, identity)
    one, two = (distinct_key(key, content) for content in contents)
    assert is_key(one) and is_key(two) and len({key, one, two}) == 3


def test_a_distinct_key_does_not_change() -> None:
    assert distinct_key("video_s1_000000", "prepared tea") == "video_s1_000000-19b3c3629f22"
