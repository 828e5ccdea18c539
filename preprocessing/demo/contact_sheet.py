"""Draws a contact sheet of the embedded dataset: narrations of its videos, each with four frames of its clip."""

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
    """Write a PNG with `clips` clips of different videos and actions, each frame `width` px wide.

    Raises `ValueError` where the dataset has no readable clip.
    """
    font = ImageFont.load_default(13)
    cells = []
    for row in _choose(dataset, clips):
        video = dataset.videos / f"{row['video_uid']}.mp4"
        times = np.linspace(float(row["clip_start"]), float(row["clip_end"]), _FRAMES + 2)[1:-1]
        images = [image.resize((width, width * image.height // image.width)) for image in _frames(video, times)]
        cells.append((row["clip_text"], images))
    if not cells:
        raise ValueError(f"{dataset.root}: no readable clip")
    cell_height = cells[0][1][0].height + _TEXT + 6
    cell_width = _FRAMES * (width + 2) + 10
    rows = -(-len(cells) // _COLUMNS)
    sheet = Image.new("RGB", (cell_width * _COLUMNS, cell_height * rows), (250, 250, 248))
    draw = ImageDraw.Draw(sheet)
    for i, (text, images) in enumerate(cells):
        x, y = cell_width * (i % _COLUMNS) + 5, cell_height * (i // _COLUMNS)
        draw.text((x, y + 2), text, fill=(20, 20, 20), font=font)
        for j, image in enumerate(images):
            sheet.paste(image, (x + j * (width + 2), y + _TEXT))
    with files.replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _choose(dataset: DemoDataset, clips: int) -> list[dict[str, str]]:
    """Return rows of `egoclip.csv` from readable videos in turn, preferring actions that were not chosen yet."""
    with dataset.egoclip.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if _is_suitable(dataset, row)]
    by_video: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_video.setdefault(row["video_uid"], []).append(row)
    chosen: list[dict[str, str]] = []
    seen: set[str] = set()
    while len(chosen) < clips and any(by_video.values()):
        for remaining in by_video.values():
            fresh = next((row for row in remaining if row["tag_verb"] not in seen), remaining[0] if remaining else None)
            if fresh is None or len(chosen) == clips:
                continue
            remaining.remove(fresh)
            seen.add(fresh["tag_verb"])
            chosen.append(fresh)
    return chosen


def _is_suitable(dataset: DemoDataset, row: dict[str, str]) -> bool:
    """Return whether a row has a clip of ordinary length and text in a readable video."""
    start, end = float(row["clip_start"]), float(row["clip_end"])
    is_ordinary = end - start > 0.3 and end < float(row["video_dur"]) and row["clip_text"].isascii()
    return is_ordinary and _opens(dataset.videos / f"{row['video_uid']}.mp4")


def _opens(video: Path) -> bool:
    try:
        with av.open(str(video)) as container:
            return bool(container.streams.video)
    except (av.FFmpegError, FileNotFoundError):
        return False


def _frames(video: Path, times: np.ndarray) -> list[Image.Image]:
    """Return the frames shown at `times` (s, ascending)."""
    images: list[Image.Image] = []
    with av.open(str(video)) as container:
        container.seek(int(times[0] * av.time_base), backward=True)
        frame = None
        for frame in container.decode(video=0):
            while len(images) < len(times) and frame.time is not None and frame.time >= times[len(images)]:
                images.append(_image(frame))
            if len(images) == len(times):
                break
        while frame is not None and len(images) < len(times):
            images.append(_image(frame))
    return images


def _image(frame: av.VideoFrame) -> Image.Image:
    return Image.fromarray(frame.to_ndarray(format="rgb24"))
