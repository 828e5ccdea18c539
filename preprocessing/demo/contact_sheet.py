"""A picture of the dataset: for some narrations of each video, four frames of the clip over its text."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from preprocessing.demo.build import DemoDataset
from shards import files

_FRAMES = 4
_COLUMNS = 2
_TEXT = 18  # px


def contact_sheet(dataset: DemoDataset, path: Path, *, clips: int = 20, width: int = 200) -> None:
    """Write a PNG with `clips` clips of different videos and actions, each frame `width` px wide."""
    font = ImageFont.load_default(13)
    cells = []
    for row in _choose(dataset, clips):
        video = dataset.videos / f"{row['video_uid']}.mp4"
        times = np.linspace(float(row["clip_start"]), float(row["clip_end"]), _FRAMES + 2)[1:-1]
        pictures = [
            picture.resize((width, width * picture.height // picture.width)) for picture in _frames(video, times)
        ]
        cells.append((row["clip_text"], pictures))
    if not cells:
        raise ValueError(f"{dataset.root}: no clip to show")
    high = cells[0][1][0].height + _TEXT + 6
    wide = _FRAMES * (width + 2) + 10
    rows = -(-len(cells) // _COLUMNS)
    sheet = Image.new("RGB", (wide * _COLUMNS, high * rows), (250, 250, 248))
    draw = ImageDraw.Draw(sheet)
    for i, (text, pictures) in enumerate(cells):
        x, y = wide * (i % _COLUMNS) + 5, high * (i // _COLUMNS)
        draw.text((x, y + 2), text, fill=(20, 20, 20), font=font)
        for j, picture in enumerate(pictures):
            sheet.paste(picture, (x + j * (width + 2), y + _TEXT))
    with files.replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _choose(dataset: DemoDataset, clips: int) -> list[dict[str, str]]:
    """Return rows of `egoclip.csv`: readable videos in turn, each time an action that was not shown yet."""
    with dataset.egoclip.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if _is_fit(dataset, row)]
    by_video: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_video.setdefault(row["video_uid"], []).append(row)
    chosen: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(chosen) < clips and any(by_video.values()):
        for waiting in by_video.values():
            fresh = next((row for row in waiting if row["tag_verb"] not in seen), waiting[0] if waiting else None)
            if fresh is None or len(chosen) == clips:
                continue
            waiting.remove(fresh)
            seen.add(fresh["tag_verb"])
            chosen.append(fresh)
    return chosen


def _is_fit(dataset: DemoDataset, row: dict[str, str]) -> bool:
    start, end = float(row["clip_start"]), float(row["clip_end"])
    ordinary = end - start > 0.3 and end < float(row["video_dur"]) and row["clip_text"].isascii()
    return ordinary and _opens(dataset.videos / f"{row['video_uid']}.mp4")


def _opens(video: Path) -> bool:
    try:
        with av.open(str(video)) as container:
            return bool(container.streams.video)
    except (av.FFmpegError, FileNotFoundError):
        return False


def _frames(video: Path, times: np.ndarray) -> list[Image.Image]:
    """Return the frames shown at `times` (s)."""
    pictures: list[Image.Image] = []
    with av.open(str(video)) as container:
        container.seek(int(times[0] * av.time_base), backward=True)
        frame = None
        for frame in container.decode(video=0):
            while len(pictures) < len(times) and frame.time is not None and frame.time >= times[len(pictures)]:
                pictures.append(frame.to_image())
            if len(pictures) == len(times):
                break
        while frame is not None and len(pictures) < len(times):
            pictures.append(frame.to_image())
    return pictures
