"""The API reference documents a field by its comment."""

from __future__ import annotations

from pathlib import Path

import griffe
import pytest

from tools.griffe_comments import FieldComments

SOURCE = '''
from dataclasses import dataclass

@dataclass
class Config:
    """A configuration."""

    trailing: int = 1  # seconds
    # Two lines
    # above.
    above: int = 2
    silent: int = 3

    string: int = 4  # overruled
    """Its own docstring."""
    ignored: int = 5  # type: ignore
    spread: tuple = (
        1,  # not this one
        2,
    )  # but this
'''


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trailing", "seconds"),
        ("above", "Two lines above."),
        ("silent", None),
        ("string", "Its own docstring."),
        ("ignored", None),
        ("spread", "but this"),
    ],
)
def test_a_comment_becomes_the_docstring(name: str, text: str | None, tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(SOURCE)
    module = griffe.load("settings", search_paths=[tmp_path], extensions=griffe.Extensions(FieldComments()))
    docstring = module["Config"][name].docstring
    assert (docstring.value if docstring else None) == text
