"""Reads clips as any WebDataset: the shards are plain tars and need none of this project's code.

python examples/read_with_webdataset.py [ROOT]        (ROOT: data/embedded/shards, which `make demo` builds)
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import av
import webdataset as wds


def main(root: Path) -> None:
    """Print key, caption, key frame and number of stored frames of the first clips."""
    folder = root / "clips" / "train"
    urls = [str(folder / name) for name in json.loads((folder / "sizes.json").read_text())]
    samples = wds.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "jpg", "json", "mp4", "txt")
    for number, (key, image, record, mp4, caption) in enumerate(samples):
        if number == 5:
            break
        with av.open(io.BytesIO(mp4), "r") as container:
            frames = sum(1 for _ in container.decode(video=0))
        print(f"{key}: {caption!r}, key frame {image.size}, {frames} frames at {record['fps']:g} frames/s")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/embedded/shards"))
