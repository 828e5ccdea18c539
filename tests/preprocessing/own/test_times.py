"""Times as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.own.times import parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("007", 7.0), ("12.5", 12.5), ("12,5", 12.5), (" 3 s ", 3.0), (".5", 0.5), ("1:30", 90.0),
        ("75:30", 4530.0), ("0:01:30", 90.0), ("00:00:01,500", 1.5),
        ("01:02:03.25", 3723.25), ("2m", 120.0), ("1h 2m 3.5s", 3723.5),
    ],
)  # fmt: skip
def test_usual_forms_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "1:75", "1:60:00", "noon", "1e3", "nan", "inf", "1,234.5", "1:2:3:4", "12:", "٣", "h", "9" * 12],
)
def test_anything_else_is_no_time(text: str) -> None:
    assert parse_time(text) is None


@given(st.integers(0, 10**10))
def test_the_clock_form_of_milliseconds_gives_them_back(milliseconds: int) -> None:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    for text in (
        f"{hours}:{minute:02d}:{second:02d}.{rest:03d}",
        f"{seconds}.{rest:03d}",
        f"{minutes}:{second:02d},{rest:03d}",
    ):
        found = parse_time(text)
        if milliseconds <= 10**10 and found is not None:
            assert round(found * 1000) == milliseconds
        else:
            assert seconds >= 10**7 or minutes >= 10**6


@given(st.text(max_size=12))
def test_no_text_raises(text: str) -> None:
    found = parse_time(text)
    assert found is None or 0 <= found <= 1e7
