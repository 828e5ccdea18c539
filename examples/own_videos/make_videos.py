"""Makes 20 short videos with names as cameras and people give them, and a table of 80 captions.

    python examples/own_videos/make_videos.py FOLDER

Each video shows a shape that changes every two seconds: "a red square moves left". Among them are names with spaces and
umlauts, files in folders, .MOV and .mkv, a rotated one, and captions that end after their video. A sentence for each
video, of the level `summary`, is added with `--summaries`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

WIDTH, HEIGHT, FPS, PART_SECONDS, PARTS = 160, 120, 15, 2.0, 4
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (230, 210, 50)}
SHAPES = ("square", "circle", "bar")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NAMES = ("Küche {i:02d}.MOV", "GX01{i:04d}.MP4", "My holiday {i:02d}.mp4", "Straße/Tag {i:02d}.mkv", "clip_{i:02d}.mp4")
ROTATED = "rotated {i:02d}.mov"  # in place of one of the names

Part = tuple[str, str, str]  # colour, shape, way


def main() -> None:
    """Write FOLDER/videos and FOLDER/captions.csv."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--summaries", action="store_true", help="also a summary of each video")
    arguments = parser.parse_args()
    make(arguments.folder, videos=arguments.videos, has_summaries=arguments.summaries)


def make(folder: Path, *, videos: int = 20, has_summaries: bool = False) -> Path:
    """Write the videos and the table; return the table's path."""
    kinds = list(itertools.product(COLOURS, SHAPES, WAYS))
    order = np.random.default_rng(0).permutation(len(kinds))
    rows = []
    for i in range(videos):
        name = (ROTATED if i == 7 else NAMES[i % len(NAMES)]).format(i=i)
        parts: list[Part] = [kinds[order[(PARTS * i + part) % len(kinds)]] for part in range(PARTS)]
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, parts, is_rotated=i == 7)
        named = (name, Path(name).name, Path(name).stem)[i % 3]  # a table may use any of them
        for part, (colour, shape, way) in enumerate(parts):
            start, end = part * PART_SECONDS, (part + 1) * PART_SECONDS
            if i == 2 and part == PARTS - 1:
                end += 0.3  # as tables made by hand often have it
            text = f"a {colour} {shape} moves {way}"
            rows.append([named, f"0:{start:04.1f}", f"{end:g}", text, "clip", f"move {way}", f"{shape};{colour}"])
        if has_summaries:
            told = ", then ".join(f"{colour} {shape}" for colour, shape, _ in parts)
            rows.append([named, "", "", f"a film of {told}", "summary", "", ""])
    table = folder / "captions.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "start", "end", "caption", "level", "verbs", "nouns"])
        writer.writerows(rows)
    return table


def write_video(path: Path, parts: list[Part], *, is_rotated: bool) -> None:
    """Write a video of the parts, one after the other; a rotated one is stored lying on its side."""
    upright = path.with_name(f".{path.name}") if is_rotated else path
    with av.open(str(upright), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = (
            (HEIGHT, WIDTH, "yuv420p") if is_rotated else (WIDTH, HEIGHT, "yuv420p")
        )
        for part in parts:
            for number in range(round(PART_SECONDS * FPS)):
                image = draw(part, number / (PART_SECONDS * FPS))
                image = np.ascontiguousarray(np.rot90(image)) if is_rotated else image
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    if is_rotated:
        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
        command = [
            ffmpeg,
            "-v",
            "error",
            "-y",
            "-display_rotation",
            "270",
            "-i",
            f"file:{upright}",
            "-c",
            "copy",
            f"file:{path}",
        ]
        subprocess.run(command, check=True)
        upright.unlink()


def draw(part: Part, phase: float) -> np.ndarray:
    """Return a frame (H, W, 3), uint8; `phase` is the time within the part, from 0 to 1."""
    colour, shape, way = part
    x, y = (
        WIDTH / 2 + WAYS[way][0] * (phase - 0.5) * WIDTH * 0.7,
        HEIGHT / 2 + WAYS[way][1] * (phase - 0.5) * HEIGHT * 0.7,
    )
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    size = 22
    inside = {
        "square": (abs(columns - x) < size) & (abs(rows - y) < size),
        "circle": (columns - x) ** 2 + (rows - y) ** 2 < size**2,
        "bar": (abs(columns - x) < size / 3) & (abs(rows - y) < 1.5 * size),
    }[shape]
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    image += ((rows + columns) // 12 % 2 * 12).astype(np.uint8)[..., None]
    image[inside] = COLOURS[colour]
    return image


if __name__ == "__main__":
    main()
