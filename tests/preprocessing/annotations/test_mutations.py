"""Mutated annotation files: every row is read or rejected, or the file is refused by name; nothing else happens."""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from preprocessing.annotations import AnnotationError, Annotations, read_annotations
from preprocessing.config import ShardConfig
from preprocessing.hierarchy import join
from preprocessing.ledger import reject_rows
from preprocessing.plan import clip_items, plan_shards, record_sizes, summary_items
from shards import companions, schema
from shards.keys import is_key
from shards.tar import MAX_MEMBER
from tests.preprocessing.annotations.mutations import Format, formats, mutate

FORMATS = formats()
COUNTED = {
    "egoclip.csv": "clips",
    "s.csv": "summaries",
    "train.csv": "charades_ego",
    "test.csv": "charades_ego",
    "howto.csv": "howto100m",
    "val.csv": "howto100m",
    "manifest.csv": "videos",
}
"""Table → the set whose input rows are its lines."""
SLOWEST = 20.0  # s for one file; a hang, on any machine


def outcome(form: Format, data: bytes, folder: Path) -> str:
    """Read a format's files, the first with other content; check what is returned, and name the outcome."""
    files = dict(form.files)
    mutated = next(iter(files))
    for name, content in {**files, mutated: data}.items():
        (folder / name).write_bytes(content)
    began = time.monotonic()
    try:
        annotations = read_annotations(form.settings(folder))
    except AnnotationError as error:
        assert mutated in str(error) or "no file has" in str(error)
        assert len(str(error)) < 2000
        return "file refused"
    finally:
        assert time.monotonic() - began < SLOWEST
    check(annotations)
    listed = rows_in(mutated, data)
    if listed is not None:
        found = annotations.input_rows[COUNTED[mutated]]
        others = sum(rows_in(name, files[name]) or 0 for name in files if COUNTED.get(name) == COUNTED[mutated])
        assert found == listed + others - (rows_in(mutated, files[mutated]) or 0)
    if mutated.endswith(".json") and "mcq" in " ".join(annotations.sets):
        check_questions(annotations, data)
    return "rows rejected" if annotations.rejects.num_rows else "all rows read"


def rows_in(name: str, data: bytes) -> int | None:
    """Return the rows of a table, counted as its lines; None where that is not so simple, or for other files."""
    is_plain = not any(byte in data for byte in (b'"', b"\r", b"\0")) and data[:2] not in (b"\x1f\x8b", b"BZ", b"\xfd7")
    if name not in COUNTED or not is_plain or data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None
    return sum(bool(line) for line in data.partition(b"\n")[2].split(b"\n"))


def check(annotations: Annotations) -> None:
    """Check that every input row is accounted for once, and that whatever was kept can be planned and stored."""
    rejects = annotations.rejects
    items: list[tuple[str, str]] = list(zip(rejects["set"].to_pylist(), rejects["item"].to_pylist(), strict=True))
    for name, kept in annotations.sets.items():
        rejected = pc.sum(pc.equal(rejects["set"], name)).as_py() or 0
        assert annotations.input_rows[name] == kept.num_rows + rejected
        items += [(name, key) for key in kept["key"].to_pylist()]
        for item in kept.to_pylist():
            assert is_key(item["key"]) and math.isfinite(item["clip_start"]) and item["clip_end"] >= item["clip_start"]
            assert len(item["text"].encode()) <= MAX_MEMBER["txt"] and "\0" not in item["text"]
            record = schema.from_json(name, _fields(name, item))
            assert len(schema.to_bytes(record)) <= MAX_MEMBER["json"]
        planned = plan(annotations, name)
        assert sum(len(shard.items) for shard in planned) == kept.num_rows
    assert len(items) == len(set(items))
    assert len({key for name, key in items if not name.startswith("videos") and is_key(key)}) <= len(items)
    reject_rows(rejects)
    for path, value in annotations.companions.items():
        set_name = path.partition("/")[0]
        data = json.loads(json.dumps(value, ensure_ascii=False).encode())
        companions._parse(data, companions._KINDS[set_name], path)


def plan(annotations: Annotations, name: str) -> list[Any]:
    """Return the shards of a set, as a build plans them."""
    kept = annotations.sets[name]
    if name == "summaries":
        items = summary_items(kept, annotations.narrations, join(annotations.narrations, kept, match_pass=False))
    else:
        items = clip_items(kept)
    assert (record_sizes(items) <= MAX_MEMBER["json"]).all()
    return plan_shards(items, set_name=name, split="train", first_number=0, kbps=300, config=ShardConfig())


def check_questions(annotations: Annotations, data: bytes) -> None:
    """Check that every question of the file is asked, rejected, or the repetition of another; none if unknown."""
    try:
        listed = json.loads(data, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError):
        return  # compressed or in another encoding
    (made,) = annotations.companions.values()
    repeated = pc.sum(pc.equal(annotations.rejects["reason"], "duplicate row")).as_py() or 0
    assert len(made["questions"]) + len(made.get("rejected", ())) + repeated == len(listed)


def _fields(name: str, item: dict[str, Any]) -> dict[str, Any]:
    """Return the record of an item as if it had been cut."""
    end = item["clip_end"] if math.isfinite(item["clip_end"]) else 10.0
    media = {
        "media_start": 0.0,
        "first_frame": 0,
        "clip_frames": 1,
        "num_frames": 1,
        "fps": 30.0,
        "width": 1,
        "height": 1,
    }
    extra = {"segment": f"{item['video_uid']}_0", "narrations": [], "extra": {}}
    names = {*schema.own_fields(name), "video_uid", "clip_start", "text"}
    return {**{key: (item | extra)[key] for key in names}, **media, "clip_end": end}


def run(name: str, count: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Read `count` mutations of a format; return how often each outcome occurred."""
    form = FORMATS[name]
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed}/{name}/{number}")
        kinds, data = mutate(next(iter(form.files.values())), rng)
        try:
            outcomes[outcome(form, data, folder)] += 1
        except Exception as error:
            (folder / "failing").write_bytes(data)
            raise AssertionError(f"{name}, mutation {number} ({kinds}), kept in {folder / 'failing'}") from error
    return outcomes


@pytest.mark.parametrize("name", FORMATS)
def test_the_files_themselves_are_read(tmp_path: Path, name: str) -> None:
    form = FORMATS[name]
    expected = "rows rejected" if name in ("ego4d.json", "manifest.csv") else "all rows read"  # redacted clips
    assert outcome(form, next(iter(form.files.values())), tmp_path) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_is_read_row_by_row_or_refused_by_name(tmp_path: Path, name: str, record_property: Any) -> None:
    outcomes = run(name, 60, tmp_path)
    record_property("outcomes", dict(outcomes))
    print(f"{name}: {sum(outcomes.values())} mutations: {dict(outcomes)}")
    assert len(outcomes) > 1, "the mutations reach more than one outcome"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_mutated_files_are_read_row_by_row_or_refused_by_name(
    tmp_path: Path, name: str, record_property: Any
) -> None:
    outcomes = run(name, 1000, tmp_path, seed=1)
    record_property("outcomes", dict(outcomes))
    print(f"{name}: {sum(outcomes.values())} mutations: {dict(outcomes)}")
    assert len(outcomes) > 1
