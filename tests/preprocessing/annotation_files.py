"""Writes small annotation files in the real formats, for tests."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
