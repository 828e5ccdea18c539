"""Writes small annotation files in the real formats, and reads them with checks that hold for every file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from preprocessing.annotations import Annotations, AnnotationsConfig, read_annotations
from shards import companions
from shards.keys import is_key

SUMMARY_COLUMNS = ["video_uid", "video_dur", "narration_source", "narration_ind", "narration_time"]
SUMMARY_COLUMNS += ["clip_start", "clip_end", "clip_text", "tag_verb", "tag_noun"]
CLIP_COLUMNS = ["clip_idx", *SUMMARY_COLUMNS]


def row(index: int, **changes: Any) -> dict[str, Any]:
    """Return a good row, its cells as changed; `index` makes its identity."""
    values = {
        "clip_idx": index,
        "video_uid": "0a1b-2c",
        "video_dur": 480.5,
        "narration_source": "narration_pass_1",
        "narration_ind": index,
        "narration_time": index + 1.0,
        "clip_start": index + 0.5,
        "clip_end": index + 1.5,
        "clip_text": f"#C C opens drawer {index}",
        "tag_verb": "[93]",
        "tag_noun": "[192, 115]",
    }
    return {**values, **changes}


def table(rows: Iterable[dict[str, Any]], columns: list[str] = CLIP_COLUMNS, end: str = "\n") -> str:
    """Return rows as pandas writes them: tab-separated, quoted only where needed."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, delimiter="\t", lineterminator=end, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write(path: Path, content: str | bytes | dict[str, Any] | list[Any]) -> Path:
    """Write text as it is, bytes as they are, anything else as JSON."""
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read_benchmarks(**files: Any) -> Annotations:
    """Read the files; check that every row is accounted for once and that keys are legal and unique."""
    annotations = read_annotations(AnnotationsConfig(**files))
    rejects = annotations.rejects.to_pylist()
    keys = []
    for name, kept in annotations.sets.items():
        assert annotations.input_rows[name] == kept.num_rows + sum(r["set"] == name for r in rejects)
        keys += kept["key"].to_pylist()
    assert all(map(is_key, keys)) and len(set(keys)) == len(keys)
    assert len({(r["set"], r["item"]) for r in rejects}) == len(rejects)
    return annotations


def companion(annotations: Annotations, path: str, folder: Path) -> Any:
    """Return a companion as it is read from a file."""
    write(folder / path.rpartition("/")[2], annotations.companions[path])
    set_name, split, _ = path.split("/")
    (folder / set_name / split).mkdir(parents=True, exist_ok=True)
    write(folder / path, annotations.companions[path])
    return companions.read_companion(folder, set_name, split)


def only_reject(annotations: Annotations) -> dict[str, str]:
    (reject,) = annotations.rejects.to_pylist()
    return reject


def delimited(rows: Iterable[dict[str, Any]], columns: Sequence[str], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


UID = "0a1b-2c"


def leaf(start: float, *, uid: str = UID, seconds: float = 1.0, text: str | None = "#C C cuts", **more: Any) -> Any:
    """Return a choice as the files have it: some fields are null."""
    times = {"clip_start": start, "clip_end": start + seconds, "narration_time": None, "tag_verb": None}
    return {"video_uid": uid, "clip_text": text, **times, **more}


def question(*starts: float, answer: int = 0, kind: int = 1, text: str = "#C C opens a drawer", **more: Any) -> Any:
    choices = {str(i): leaf(start) for i, start in enumerate(starts or (0.5, 2.0, 4.0, 6.0, 8.0))}
    return {
        "query": {"clip_text": text, "video_uid": None},
        "answer": answer,
        "choices": choices,
        "types": kind,
        **more,
    }


DAMAGE = ["\n", "\r", "\t", "\x00", "é", "\udcff", "nan", "-", "]", "[", "'", ",", " ", "9" * 25, ""]
"""Text that damages a table where it is inserted."""


@st.composite
def corrupted(draw: st.DrawFn, alphabet: list[str]) -> tuple[bytes, set[int]]:
    """Return a table with some pieces of its body replaced, and the row indices that no change touched."""
    lines = table([row(i, clip_text=draw(st.sampled_from(["#C C walks", "é", "x"]))) for i in range(8)]).splitlines()
    touched = set()
    for _ in range(draw(st.integers(0, 5))):
        which = draw(st.integers(1, 8))
        touched.add(which - 1)
        line = lines[which]
        at = draw(st.integers(0, len(line)))
        piece = draw(st.sampled_from(alphabet))
        lines[which] = line[:at] + piece + line[at + draw(st.integers(0, 3)) :]
    return "\n".join(lines).encode(errors="surrogateescape"), set(range(8)) - touched
