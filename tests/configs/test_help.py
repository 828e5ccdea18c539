"""`--help` lists every key with type, default and meaning, as the source says them."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from rich.console import Console

from configs.help import Key, choices, describe_type, field_comments, keys, print_keys, sections
from configs.loading import known_keys


@dataclass(frozen=True, kw_only=True)
class Base:
    """What both share."""

    # Seconds between two frames,
    # measured.
    gap: PositiveFloat = 0.5  # s
    mode: Literal["fast", "exact"] = "fast"  # how
    silent: int = 0


@dataclass(frozen=True, kw_only=True)
class Inner(Base):
    """What is inside.

    More.
    """

    mode: Literal["fast", "exact"] = "exact"  # otherwise here
    long: dict[str, Any] = field(
        default_factory=dict  # in the middle
    )
    told: Annotated[int, Field(ge=1, le=9, description="By pydantic.")] = 3
    string: str = ""
    """Below it."""
    path: Path  # must be given


@dataclass(frozen=True, kw_only=True)
class Outer:
    """All of it."""

    sizes: tuple[int, ...] = (1, 2)  # pixels
    inner: Inner | None = None  # one more level
    base: Base = field(default_factory=lambda: Base(gap=2.0))


def test_comments_are_read_from_the_source() -> None:
    assert field_comments(Inner) == {
        "gap": "Seconds between two frames, measured. s",
        "mode": "otherwise here",
        "silent": "",
        "long": "in the middle",
        "told": "",
        "string": "Below it.",
        "path": "must be given",
    }


def test_a_class_without_a_source_has_no_comments() -> None:
    made = dataclasses.make_dataclass("Made", [("x", int, field(default=1))])
    assert field_comments(made) == {}
    assert list(keys(made)) == [Key(name="x", type="int", default="1", meaning="")]


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (PositiveInt, "int ≥ 1"),
        (PositiveInt | None, "int ≥ 1 or null"),
        (Annotated[int | None, Field(ge=2)], "int ≥ 2 or null"),
        (Annotated[float, Field(gt=0, lt=1)], "float > 0, < 1"),
        (NonNegativeFloat, "float ≥ 0"),
        (Literal["rgb", "bgr"], "rgb | bgr"),
        (Literal["rgb", "bgr"] | None, "rgb | bgr or null"),
        (Path | None, "path or null"),
        (tuple[float, float], "[float, float]"),
        (tuple[str, ...], "list of text"),
        (tuple[Literal["a", "b"], ...], "list of (a | b)"),
        (int | tuple[int, int], "int or [int, int]"),
        (dict[str, Any], "mapping"),
        (bool, "true | false"),
        (Annotated[int, Field(multiple_of=2)], "int multiple of 2"),
    ],
)
def test_types_are_readable(hint: Any, said: str) -> None:
    assert describe_type(hint) == said


def test_choices_can_be_listed() -> None:
    assert choices(Literal["rgb", "bgr"] | None) == ("rgb", "bgr", "null")
    assert choices(bool) == ("true", "false")
    assert choices(int) == ()


def test_every_key_is_there_once_with_its_default() -> None:
    found = {key.name: key.default for key in keys(Outer)}
    assert found["sizes"] == "[1, 2]"
    assert found["base.gap"] == "2.0"  # the field's own, not the class's
    assert found["inner.gap"] == "0.5" and found["inner.string"] == '""' and found["inner.path"] is None
    assert set(found) == set(known_keys(Outer)) - {"inner", "base"}
    assert {section.name: section.is_null for section in sections(Outer)} == {"": False, "inner": True, "base": False}
    other = Outer(sizes=(5,), inner=Inner(path=Path("x")), base=Base(silent=4))
    shown = {key.name: key.default for key in keys(Outer, other)}
    assert (shown["sizes"], shown["inner.path"], shown["base.silent"], shown["base.gap"]) == ("[5]", "x", "4", "0.5")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_list_fits_the_terminal(width: int) -> None:
    out = io.StringIO()
    print_keys(Outer, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= max(60, min(width, 110))
    assert any(line.startswith("  base.mode=fast") and line.endswith("fast | exact") for line in lines)
    assert "inner (null unless a key is given)" in lines
    assert "  What is inside. One more level." in lines
    assert any("inner.path=… (required)" in line for line in lines)
