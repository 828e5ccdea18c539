"""Small valid annotation files of every format, and seeded mutations of them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.annotations import AnnotationsConfig
from preprocessing.annotations.config import CharadesEgoFiles, EpicMirFiles, HowTo100mFiles
from tests.preprocessing.annotation_files import SUMMARY_COLUMNS, delimited, leaf, question, row, table
from tests.preprocessing.annotations.test_epic_mir import EPIC_COLUMNS, epic_row

NASTY = [
    "", " ", "nan", "-nan", "inf", "-inf", "NaN", "Infinity", "-1", "0", "1e999", "1e308", "-1e308", "9" * 25,
    "9" * 400, "0x10", "1_0", "true", "null", "None", "[1]", "[]", "{}", "[" * 2000, '"', "''", '""', "\\", "/", "..",
    "../../x", "a" * 300, "a" * 140_000, "é", "\u2028", "\u0085", "\x0b", "\x1c", "\x00", "\udcff", "٣", "🎬", "=1+1",
    "#unsure", "\t", ",", "\r", "\n", ";", "c000", "c999", "00:00:01.5", "99:99:99", '{"a": 1, "a": 2}',
]  # fmt: skip
"""Text that is inserted, or takes the place of a cell or a name."""

SCALARS: list[Any] = [
    None, True, False, 0, -1, 1.5, -0.0, 10**18, 10**19, 10**30, 1e308, float("nan"), float("inf"), float("-inf"), "",
    " ", "x", "5.0", "nan", "\ud800", "\x00", "a\x00b", "..", "a/b", "é", "a" * 300, [], [1], [[1, 2]], {}, {"a": 1},
    "narration_pass_1",
]  # fmt: skip
"""Values that take the place of others in JSON."""


@dataclass(frozen=True)
class Format:
    """One annotation format: its files, and the configuration that reads them."""

    files: dict[str, bytes]  # name → content; the first is mutated
    config: Callable[[Path], dict[str, Any]]  # folder → fields of AnnotationsConfig

    def settings(self, folder: Path) -> AnnotationsConfig:
        return AnnotationsConfig(**self.config(folder))


def _questions() -> dict[str, Any]:
    asked = {str(i): question(*(i + j * 2.0 for j in range(3)), answer=i % 3) for i in range(4)}
    return asked | {"4": question(choices={"0": leaf(1.0, uid="a"), "1": leaf(1.0, text=None)}, kind=3)}


def _narrations() -> dict[str, Any]:
    def entries(count: int, uid: str) -> dict[str, Any]:
        times = [
            {"timestamp_sec": 2.0 * i, "narration_text": f"#C C does {i}", "annotation_uid": uid} for i in range(count)
        ]
        span = {"start_sec": 0.0, "end_sec": 5.0, "summary_text": "#Summary C cooks", "annotation_uid": uid}
        return {"narrations": times, "summaries": [span]}

    return {
        "v1": {"narration_pass_1": entries(4, "a"), "narration_pass_2": entries(2, "b"), "status": "complete"},
        "v2": {"narration_pass_1": entries(3, "c")},
        "v3": {"summaries": [{"start_time": 1, "end_time": 3, "text": "cooks"}]},
    }


def _ego4d() -> dict[str, Any]:
    cut = [{"start_sec": 1.0, "end_sec": 2.0, "start_frame": 30, "end_frame": 60}]
    return {
        "version": "v2",
        "videos": [
            {
                "video_uid": "v0",
                "duration_sec": 61.5,
                "is_stereo": True,
                "split_em": "train",
                "redacted_intervals": cut,
            },
            {"video_uid": "v1", "duration_sec": 62, "split_av": "val", "video_metadata": {"redacted_intervals": cut}},
            {"video_uid": "v2", "duration_sec": None, "split_em": "val", "split_fho": ["test"]},
        ],
    }


def formats() -> dict[str, Format]:
    """Return every format by name."""
    clips = table(
        row(i, video_uid=f"v{i % 3}", clip_text=["#C C walks", 'says "hi"', "é"][i % 3]) for i in range(9)
    ).encode()
    spans = table((row(i, clip_end=i + 9.5) for i in range(5)), SUMMARY_COLUMNS).encode()
    epic = delimited((epic_row(i) for i in range(5)), EPIC_COLUMNS, ",").encode()
    sentences = delimited(
        ({"narration_id": f"P01_11_{i}", "narration": f"take {i}"} for i in range(3)),
        ["narration_id", "narration"],
        ",",
    ).encode()
    classes = b"c000 Holding some clothes\nc001 Opening a door\nc002 Closing a door\n"
    segments = b"id\tcls\tt_start\tt_end\tnarration\n" + b"".join(
        b"AAA%d\tc00%d\t%d\t%d.5\tx\n" % (i, i % 3, i, i) for i in range(5)
    )
    whole = b"id,actions,length\n" + b"".join(b"BBB%d,c001 0.00 2.10;c000 1 2,%d.5\n" % (i, i + 3) for i in range(4))
    lists = b"video_uid\tclip_start\tclip_end\tfps\tlabel\n" + b"".join(
        b"h%d\t%d\t%d\t29.97\t%d\n" % (i, i, i + 60, i) for i in range(5)
    )
    manifest = b"video_uid,canonical,duration_sec,is_stereo,redacted_intervals\n" + b"".join(
        b'v%d,x,%d.5,False,"[[1.0, 2.0]]"\n' % (i, i) for i in range(4)
    )
    narrations, asked, ego4d = (json.dumps(value()).encode() for value in (_narrations, _questions, _ego4d))
    videos = json.dumps({"videos": [{"video_uid": uid, **value} for uid, value in _narrations().items()]}).encode()

    def charades(folder: Path) -> dict[str, Any]:
        names = {"classes": "classes.txt", "train": "train.csv", "test": "test.csv"}
        return {"charades_ego": CharadesEgoFiles(**{key: folder / name for key, name in names.items()})}

    def epic_mir(folder: Path) -> dict[str, Any]:
        return {"epic_mir": EpicMirFiles(test=folder / "epic.csv", test_sentences=folder / "sentences.csv")}

    def howto(folder: Path) -> dict[str, Any]:
        return {
            "howto100m": HowTo100mFiles(
                train=folder / "howto.csv", val=folder / "val.csv", classes=folder / "names.txt"
            )
        }

    def with_clips(key: str, name: str) -> Callable[[Path], dict[str, Any]]:
        return lambda folder: {"egoclip": folder / "egoclip.csv", key: folder / name}

    tables = {"train.csv": segments, "test.csv": whole, "classes.txt": classes}
    names = b"tea\nsoup\ncake\nbread\npie\n"
    return {
        "egoclip": Format({"egoclip.csv": clips}, lambda folder: {"egoclip": folder / "egoclip.csv"}),
        "egosummary": Format({"s.csv": spans, "egoclip.csv": clips}, with_clips("egosummary", "s.csv")),
        "narrations": Format({"narration.json": narrations}, lambda folder: {"narrations": folder / "narration.json"}),
        "narrations in a list": Format(
            {"narration.json": videos}, lambda folder: {"narrations": folder / "narration.json"}
        ),
        "egomcq": Format({"egomcq.json": asked}, lambda folder: {"egomcq": folder / "egomcq.json"}),
        "summarymcq": Format({"m.json": asked}, lambda folder: {"summarymcq": folder / "m.json"}),
        "epic_mir": Format({"epic.csv": epic, "sentences.csv": sentences}, epic_mir),
        "epic_mir sentences": Format({"sentences.csv": sentences, "epic.csv": epic}, epic_mir),
        "charades_ego train": Format(tables, charades),
        "charades_ego test": Format({"test.csv": whole, **tables}, charades),
        "charades_ego classes": Format({"classes.txt": classes, **tables}, charades),
        "howto100m": Format({"howto.csv": lists, "val.csv": lists.replace(b"h", b"i"), "names.txt": names}, howto),
        "howto100m classes": Format({"names.txt": names, "howto.csv": lists, "val.csv": lists}, howto),
        "ego4d.json": Format({"ego4d.json": ego4d, "egoclip.csv": clips}, with_clips("metadata", "ego4d.json")),
        "manifest.csv": Format(
            {"manifest.csv": manifest, "egoclip.csv": clips}, with_clips("metadata", "manifest.csv")
        ),
        "val list": Format({"val.txt": b"# val\nv0\nv1\n", "egoclip.csv": clips}, with_clips("val_list", "val.txt")),
    }


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return the names of one to three mutations and the mutated content."""
    is_json = data[:1] in (b"{", b"[")
    names = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        kinds: list[Callable[[bytes, random.Random], bytes]] = [_flip, _truncate, _cut, _repeat, _insert, _recode]
        kinds += (
            [_json_scalar, _json_key, _json_twice, _json_shape] * 2 if is_json else [_cell, _column, _line, _quote] * 2
        )
        kind = rng.choice(kinds)
        names.append(kind.__name__.strip("_"))
        data = kind(data, rng)
    if rng.random() < 0.15:
        names.append("compressed")
        data = _compress(data, rng)
    return "+".join(names), data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 30))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randrange(1, 60) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    size = rng.randrange(1, 200)
    return data[:at] + data[at : at + size] * 2 + data[at + size :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(NASTY).encode(errors="surrogateescape") + data[at:]


def _recode(data: bytes, rng: random.Random) -> bytes:
    text = data.decode(errors="replace")
    codec = rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-8-sig"))
    if rng.random() < 0.3:
        text = text.replace("\n", rng.choice(("\r\n", "\r", "\n\n")))
    return text.encode(codec, errors="replace")


def _compress(data: bytes, rng: random.Random) -> bytes:
    packed = rng.choice((gzip.compress, bz2.compress, lzma.compress))(data)
    return rng.choice((packed, packed, packed[: rng.randrange(len(packed))], _flip(packed, rng), packed + data[:20]))


def _rows(data: bytes) -> tuple[list[list[bytes]], bytes]:
    delimiter = b"\t" if b"\t" in data.partition(b"\n")[0] else b","
    return [line.split(delimiter) for line in data.split(b"\n")], delimiter


def _cell(data: bytes, rng: random.Random) -> bytes:
    rows, delimiter = _rows(data)
    chosen = rng.choice(rows)
    chosen[rng.randrange(len(chosen))] = rng.choice(NASTY).encode(errors="surrogateescape")
    return b"\n".join(delimiter.join(cells) for cells in rows)


def _column(data: bytes, rng: random.Random) -> bytes:
    rows, delimiter = _rows(data)
    one, other = rng.randrange(len(rows[0])), rng.randrange(len(rows[0]))
    kind = rng.randrange(3)
    for cells in rows:
        if max(one, other) < len(cells):
            if kind == 0:
                del cells[one]
            elif kind == 1:
                cells.append(cells[one])
            else:
                cells[one], cells[other] = cells[other], cells[one]
    return b"\n".join(delimiter.join(cells) for cells in rows)


def _line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines) + 1)
    line = lines.pop(at) if rng.random() < 0.5 else lines[at]
    if rng.random() < 0.7:
        lines.insert(to, line)
    return b"\n".join(lines)


def _quote(data: bytes, rng: random.Random) -> bytes:
    rows, delimiter = _rows(data)
    chosen = rng.choice(rows)
    at = rng.randrange(len(chosen))
    chosen[at] = rng.choice((b'"%s', b'"%s"', b'%s"', b'"a""%s"', b'"%s\n"')) % chosen[at]
    return b"\n".join(delimiter.join(cells) for cells in rows)


class Twice(dict[str, Any]):
    """An object that is written with each of its names twice, the second time with another value."""


def _dump(value: Any) -> str:
    if isinstance(value, Twice):
        members = [f"{json.dumps(name)}: {_dump(item)}" for name, item in value.items()]
        members += [f"{json.dumps(name)}: {_dump(item)}" for name, item in reversed(value.items())]
        return "{" + ", ".join(members) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_dump(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dump, value)) + "]"
    return json.dumps(value)


def _json(data: bytes, rng: random.Random, change: Callable[[Any, Any, random.Random], Any]) -> bytes:
    """Apply `change(container, name or index, rng)` somewhere in a JSON file; return other data as they are."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        item = stack.pop()
        children = (
            list(item.items()) if isinstance(item, dict) else list(enumerate(item)) if isinstance(item, list) else []
        )
        places += [(item, name) for name, _ in children]
        stack += [child for _, child in children]
    if places:
        container, name = rng.choice(places)
        change(container, name, rng)
    return _dump(tree).encode()


def _json_scalar(data: bytes, rng: random.Random) -> bytes:
    def change(container: Any, name: Any, rng: random.Random) -> None:
        container[name] = rng.choice(SCALARS)

    return _json(data, rng, change)


def _json_key(data: bytes, rng: random.Random) -> bytes:
    def change(container: Any, name: Any, rng: random.Random) -> None:
        value = container.pop(name)
        if isinstance(container, dict) and rng.random() < 0.6:
            container[rng.choice(NASTY)[:500]] = value

    return _json(data, rng, change)


def _json_twice(data: bytes, rng: random.Random) -> bytes:
    def change(container: Any, name: Any, rng: random.Random) -> None:
        value = container[name]
        if isinstance(container, list):
            container.insert(rng.randrange(len(container) + 1), value)
        elif isinstance(value, dict):
            container[name] = Twice(value)

    return _json(data, rng, change)


def _json_shape(data: bytes, rng: random.Random) -> bytes:
    def change(container: Any, name: Any, rng: random.Random) -> None:
        value = container[name]
        if isinstance(value, dict):
            container[name] = list(value.values())
        elif isinstance(value, list):
            container[name] = {str(i): item for i, item in enumerate(value)}
        else:
            container[name] = [value] if rng.random() < 0.5 else str(value)

    return _json(data, rng, change)


FORMATS_READ_ALIKE = ("egosummary", "epic_mir", "charades_ego train", "charades_ego test", "howto100m", "val list")
"""Formats whose example files are read alike with line ends of Windows; others have quoted line ends or are JSON."""
