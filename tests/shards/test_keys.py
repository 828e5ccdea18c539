"""Keys are valid file names, and different annotations have different keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shards.keys import escape_id, is_key, make_key


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_escaped_ids_are_valid_and_distinct(ids: list[str]) -> None:
    one, two = (escape_id(text) for text in ids)
    assert one != two
    assert is_key(make_key(ids[0], "c", 1, 123))


def test_a_dot_in_a_video_id_is_escaped() -> None:
    assert make_key("P01_01.take.2", "c", 2, 7) == "P01__01_x2etake_x2e2_c2_000007"
