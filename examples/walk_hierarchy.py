"""Walks from summaries to their narrations to the clips: random access to single samples, without scanning a tar.

python examples/walk_hierarchy.py [ROOT]        (ROOT: data/embedded/shards, which `make demo` builds)
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image

from shards.index import open_dataset, read_member


def main(root: Path) -> None:
    """Print a summary with its narrations, and the key frame's size of each narration's clip."""
    dataset = open_dataset(root)
    columns = ["key", "jpg_offset", "jpg_size"]
    clips = {row["key"]: row for row in dataset.split("clips", "train").rows(columns).to_pylist()}
    for shard in dataset.split("summaries", "train").shards:
        for row in shard.rows(["key", "text", "json_offset", "json_size"]).slice(0, 2).to_pylist():
            record = json.loads(read_member(shard.path, row["json_offset"], row["json_size"]))
            print(f"{record['clip_start']:.1f}–{record['clip_end']:.1f} s of {record['video_uid']}: {row['text']!r}")
            for narration in record["narrations"][:5]:
                clip = clips.get(narration["key"])
                shown = "not packed"  # its video is missing or damaged: ledger.parquet has the reason
                if clip is not None:
                    tar = root / "clips" / "train" / clip["shard"]
                    jpeg = read_member(tar, clip["jpg_offset"], clip["jpg_size"])
                    shown = f"key frame {Image.open(io.BytesIO(jpeg)).size}"
                print(f"    {narration['clip_start']:7.1f} s  {narration['text']}  ({shown})")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/embedded/shards"))
