"""Checks of single annotation values."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.annotations.values import parse_classes


@given(st.text(alphabet="[]0123456789,. -e{}\":nultrfasINy'()_\n", max_size=30))
@settings(deadline=None, max_examples=300)
def test_class_lists_are_parsed_or_rejected(text: str) -> None:
    tags = parse_classes(text, 118)
    assert tags is None or (isinstance(tags, list) and all(type(tag) is int and 0 <= tag < 118 for tag in tags))
