"""Creates the media of `benchmarks/loader.py`: videos as shards, in the published layout and as 15 s chunks."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.toolchain import find_ffmpeg
from shards import schema
from shards.dataset import open_dataset, read_member

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("video_uid", "video_dur", "narration_source", "narration_ind", "narration_time", "clip_start", "clip_end",
           "clip_text", "tag_verb", "tag_noun")  # fmt: skip
LONG_SECONDS = 600  # of a chunk of the published layout
SHORT_SECONDS = 15  # of a short chunk


@dataclass(frozen=True, kw_only=True)
class Media:
    """A dataset in all layouts."""

    name: str
    shards: Path
    split: str
    long_chunks: dict[str, Path]  # video → a 600 s file as published, short side 256, which repeats the video
    short_chunks: dict[str, list[Path]]  # video → its 15 s files, short side 288, default GOP length
    bytes_per_clip: float


def make_embedded(work: Path) -> Media:
    """Render and build the embedded dataset."""
    build = [sys.executable, str(ROOT / "preprocessing" / "build_shards.py")]
    output = work / "embedded" / "shards"
    run([*build, f"output={output}", f"demo_root={work / 'embedded' / 'source'}", "demo.size=small", "dask.workers=2"])
    videos = next(path.parent for path in (work / "embedded" / "source").rglob("*.mp4"))
    return _media("embedded", output, videos, work / "embedded")


def make_single_video(work: Path, video: Path, *, clips: int = 300) -> Media:
    """Build a dataset of one video, with EgoClip-like clips of 1 s on average and summaries of all of it."""
    source = work / "video" / "source"
    (source / "videos").mkdir(parents=True, exist_ok=True)
    target = source / "videos" / "video.mp4"
    if not target.exists():
        target.symlink_to(video.resolve())
    seconds = 29.9
    rng = np.random.default_rng(0)
    rows = []
    for index in range(clips):
        length = float(np.clip(rng.gamma(1.25, 0.8), 0.1, 10.0))
        start = float(rng.uniform(0, seconds - length))
        rows.append(_row(index, start, start + length, seconds, "#C C acts"))
    summaries = [_row(i, 0.5 * i, seconds - 0.5 * i, seconds, "#Summary C acted") for i in range(16)]
    for name, table, extra in (("egoclip.csv", rows, ["clip_idx"]), ("egosummary_full.csv", summaries, [])):
        with (source / name).open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, [*extra, *COLUMNS], delimiter="\t")
            writer.writeheader()
            writer.writerows({**row, **dict.fromkeys(extra, i)} for i, row in enumerate(table))
    metadata = {"video_uid": "video", "duration_sec": seconds, "is_stereo": False}
    metadata |= {"split_em": "train", "split_av": None, "split_fho": None}
    (source / "ego4d.json").write_text(json.dumps({"videos": [metadata]}))
    output = work / "video" / "shards"
    run(
        [
            sys.executable,
            str(ROOT / "preprocessing" / "build_shards.py"),
            f"--config={ROOT / 'configs' / 'preprocess' / 'ego4d.yaml'}",
            f"output={output}",
            f"work={work / 'video' / 'work'}",
            f"videos.root={source / 'videos'}",
            f"annotations.egoclip={source / 'egoclip.csv'}",
            f"annotations.egosummary={source / 'egosummary_full.csv'}",
            f"annotations.metadata={source / 'ego4d.json'}",
            "annotations.exclude=[]",
            "dask.workers=2",
            "max_failed_fraction=0.5",
        ]
    )
    return _media("video", output, source / "videos", work / "video")


def _row(index: int, start: float, end: float, seconds: float, text: str) -> dict[str, object]:
    return {
        "video_uid": "video",
        "video_dur": seconds,
        "narration_source": "narration_pass_1",
        "narration_ind": index,
        "narration_time": round((start + end) / 2, 4),
        "clip_start": round(start, 4),
        "clip_end": round(end, 4),
        "clip_text": f"{text} {index}",
        "tag_verb": f"[{index % 118}]",
        "tag_noun": f"[{index % 582}]",
    }


def _media(name: str, shards: Path, videos: Path, work: Path) -> Media:
    """Return a built dataset, with the other two layouts of some of its training videos."""
    dataset = open_dataset(shards)
    rows = dataset.rows("clips", "train", ["video_uid", "mp4_size"])
    uids = sorted(set(rows["video_uid"].to_pylist()))[:4]
    long_chunks, short_chunks = {}, {}
    ffmpeg = [str(find_ffmpeg(None)), "-v", "error", "-nostdin", "-y"]
    for uid in uids:
        source = next(videos.glob(f"{uid}.*"))
        folder = work / "layouts" / uid
        folder.mkdir(parents=True, exist_ok=True)
        scaled, long_file = folder / "scaled.mp4", folder / "long.mp4"
        if not long_file.exists():
            run([*ffmpeg, "-i", str(source), "-filter:v", "scale=-2:256", "-an", str(scaled)])
            repeat = ["-stream_loop", "40", "-i", str(scaled), "-t", str(LONG_SECONDS)]
            run([*ffmpeg, *repeat, "-c", "copy", str(long_file)])
            split = ["-f", "segment", "-segment_time", str(SHORT_SECONDS), "-reset_timestamps", "1"]
            forced = ["-force_key_frames", f"expr:gte(t,n_forced*{SHORT_SECONDS})"]
            pattern = str(folder / "short-%03d.mp4")
            run([*ffmpeg, "-i", str(source), "-an", "-filter:v", "scale=-2:288", *forced, *split, pattern])
        long_chunks[uid] = long_file
        short_chunks[uid] = sorted(folder.glob("short-*.mp4"))
    return Media(
        name=name,
        shards=shards,
        split="train",
        long_chunks=long_chunks,
        short_chunks=short_chunks,
        bytes_per_clip=float(np.mean(rows["mp4_size"].to_numpy())),
    )


def run(command: list[str]) -> None:
    """Run a command; raise `RuntimeError` with the end of its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")


def stored(media: Media, level: str) -> list[tuple[schema.MediaRecord, bytes]]:
    """Return (record, mp4) of all clips (level child) or summaries (level parent)."""
    set_name = "clips" if level == "child" else "summaries"
    samples = []
    for shard in open_dataset(media.shards).split(set_name, media.split).shards:
        for row in shard.rows(["json_offset", "json_size", "mp4_offset", "mp4_size"]).to_pylist():
            value = json.loads(read_member(shard.path, row["json_offset"], row["json_size"]))
            record = schema.from_json(set_name, value)
            samples.append((record, read_member(shard.path, row["mp4_offset"], row["mp4_size"])))
    return samples


def jpeg_clips(media: Media) -> list[tuple[schema.MediaRecord, list[bytes]]]:
    """Return clips as 8 JPEGs each, from the middles of 8 equal parts, at quality 85, 4:2:0."""
    import av
    import simplejpeg

    from shards import sampling

    clips = []
    for record, mp4 in stored(media, "child")[:200]:
        numbers = sampling.frame_numbers(record.clip_frames, 8, None) + record.first_frame
        with av.open(io.BytesIO(mp4)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        jpegs = [simplejpeg.encode_jpeg(frames[i], quality=85, colorsubsampling="420") for i in numbers.tolist()]
        clips.append((record, jpegs))
    return clips
