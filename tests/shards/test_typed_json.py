"""Parsed JSON becomes typed dataclasses; any other value is refused with its path."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.typed_json import TypedJsonError, dump, field_types, parse


@dataclass(frozen=True, kw_only=True)
class Leaf:
    name: Annotated[str, "a name"]
    weight: float


@dataclass(frozen=True, kw_only=True)
class Tree:
    kind: Literal["oak", "elm"] = "oak"
    age: int
    leaves: tuple[Leaf, ...]
    heights: list[list[int]]
    owners: dict[str, int]


VALUE: dict[str, Any] = {
    "kind": "elm",
    "age": 3,
    "leaves": [{"name": "a", "weight": 0.5}, {"name": "ä", "weight": 1.0}],
    "heights": [[1], [], [2, 3]],
    "owners": {"x": 1},
}
TREE = Tree(
    kind="elm",
    age=3,
    leaves=(Leaf(name="a", weight=0.5), Leaf(name="ä", weight=1.0)),
    heights=[[1], [], [2, 3]],
    owners={"x": 1},
)


def test_values_become_dataclasses_and_back() -> None:
    assert parse(Tree, VALUE) == TREE
    assert dump(TREE) == VALUE
    assert list(dump(TREE)) == list(Tree.__dataclass_fields__)


def test_fields_with_a_default_may_be_absent() -> None:
    assert parse(Tree, {name: value for name, value in VALUE.items() if name != "kind"}).kind == "oak"


def test_field_types_have_no_annotations() -> None:
    assert dict(field_types(Leaf)) == {"name": str, "weight": float}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "fir"}, "kind: one of oak, elm is expected, not 'fir'"),
        ({"kind": ["oak"]}, "kind: one of oak, elm is expected, not ['oak']"),
        ({"age": True}, "age: int is expected, not True (bool)"),
        ({"age": 3.0}, "age: int is expected, not 3.0 (float)"),
        ({"age": 2**63}, "age: 9223372036854775808 does not fit in 64 bits"),
        ({"leaves": {}}, "leaves: a list is expected, not {}"),
        ({"leaves": [VALUE["leaves"][0], 3]}, "leaves[1]: an object is expected, not 3"),
        ({"leaves": [{"name": "a", "weight": 1}]}, "leaves[0].weight: float is expected, not 1 (int)"),
        ({"leaves": [{"name": "a", "weight": float("nan")}]}, "leaves[0].weight: a finite number is expected, not nan"),
        ({"leaves": [{"name": "\ud800", "weight": 1.0}]}, "leaves[0].name: '\\ud800' holds a lone surrogate"),
        ({"leaves": [{"name": "a"}]}, "leaves[0]: missing fields ['weight'], unknown fields []"),
        ({"heights": [[1], [2, "3"]]}, "heights[1][1]: int is expected, not '3' (str)"),
        ({"owners": {"x": None}}, "owners.'x': int is expected, not None (NoneType)"),
        ({"extra": 1}, "missing fields [], unknown fields ['extra']"),
    ],
)
def test_values_of_other_types_are_refused_with_their_path(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypedJsonError) as caught:
        parse(Tree, {**VALUE, **changes})
    assert str(caught.value).startswith(message)


def test_a_value_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(TypedJsonError, match=r"^an object is expected, not \[\]$"):
        parse(Tree, [])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.sampled_from(list(VALUE)), _JSON))
def test_any_json_parses_or_is_refused(changes: dict[str, Any]) -> None:
    value = {**VALUE, **changes}
    try:
        tree = parse(Tree, value)
    except TypedJsonError as error:
        assert len(str(error)) < 1000
    else:
        assert json.dumps(dump(tree)) == json.dumps({name: value[name] for name in VALUE})
