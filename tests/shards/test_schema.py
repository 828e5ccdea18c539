"""Records conform to the contract, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shards import schema
from tests.shards import samples


@pytest.mark.parametrize("set_name", ["clips", "summaries"])
def test_a_record_is_restored_from_its_json(set_name: str) -> None:
    made = samples.clip(2) if set_name == "clips" else samples.summary(2, narrations=[samples.clip(3)])
    assert schema.from_json(set_name, json.loads(schema.to_bytes(made.record))) == made.record
    schema.check(set_name, made.record)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "clips.text: str is expected, not None"),
        ({"clip_start": 1}, "clips.clip_start: float is expected, not 1 (int)"),
        ({"num_frames": True}, "clips.num_frames: int is expected, not True (bool)"),
        ({"tag_verb": [1, "2"]}, "clips.tag_verb[1]: int is expected"),
        ({"narration_ind": 2**63}, "clips.narration_ind: 9223372036854775808 does not fit in 64 bits"),
        ({"fps": float("inf")}, "clips.fps: a finite number is expected"),
        ({"extras": 1}, "unknown fields ['extras']"),
        ({"extra": {"room": 1}}, "clips.extra.'room': str is expected, not 1 (int)"),
    ],
)
def test_fields_of_the_wrong_type_are_named(changes: dict[str, Any], message: str) -> None:
    value = {**schema.to_json(samples.clip(0).record), **changes}
    with pytest.raises(schema.SchemaError) as caught:
        schema.from_json("clips", value)
    assert message in str(caught.value)


def test_messages_stay_short_however_long_the_value() -> None:
    value = {**schema.to_json(samples.clip(0).record), "tag_verb": "x" * 10**6}
    with pytest.raises(schema.SchemaError) as caught:
        schema.from_json("clips", value)
    assert len(str(caught.value)) < 200


def test_every_field_has_a_type_and_a_meaning() -> None:
    docs = schema.field_docs("summaries")
    assert docs["narrations"] == ("list[object]", "the narrations within the span, in time order")
    assert docs["narrations[].tag_verb"][0] == "list[int]"
    assert all(kind and meaning for kind, meaning in docs.values())


def test_empty_lists_are_found_at_every_depth() -> None:
    assert schema.list_depths_filled({"a": 1, "b": [[1], [2]]})
    assert not schema.list_depths_filled({"a": [{"b": [1]}, {"b": []}]})
