"""Compares the CPU time of preprocessing with the published recipe and with bare decoding of the same source.

    python benchmarks/preprocessing.py [--video FILE] [--seconds 120] [--repeats 3] [--quick]

`--video` is any video, which is scaled up to 1920 × 1080 and repeated; the default is one of the embedded dataset. CPU
seconds are user and system time of all processes, without the start of Dask's workers, which happens once per build.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Run as a file, this folder would come first in the path, and this file would shadow the package of its name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import pyarrow as pa  # noqa: E402

from benchmarks.measuring import elapsed, interleave, show  # noqa: E402
from preprocessing import jobs, toolchain  # noqa: E402
from preprocessing.annotations.tables import NARRATION_SCHEMA, SUMMARY_SCHEMA  # noqa: E402
from preprocessing.config import BuildConfig, DaskConfig  # noqa: E402
from preprocessing.demo import DemoConfig, generate  # noqa: E402
from preprocessing.hierarchy import join  # noqa: E402
from preprocessing.pack import PackTask, pack_shard  # noqa: E402
from preprocessing.plan import clip_items, plan_shards, summary_items, write_plan  # noqa: E402
from preprocessing.video.chunks import chunk_path  # noqa: E402
from preprocessing.video.clips import Cutter, read_packet_span  # noqa: E402
from preprocessing.video.probe import ProbedVideo, probe  # noqa: E402
from preprocessing.video.transcode import ChunkTask, make_chunk  # noqa: E402
from shards.keys import make_key  # noqa: E402

FFMPEG = toolchain.find_ffmpeg(None)
CLIPS_PER_SECOND = 0.365  # EgoClip: 3,847,723 clips in 2,927 h
TOOLCHAIN = {"benchmark": "1"}


def main() -> None:
    """Measure all parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--video", type=Path, help="a video from which the 1080p source is made")
    parser.add_argument("--seconds", type=int, default=120, help="duration of the source")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short source, one repeat: a smoke test")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats = 20, 1
    with tempfile.TemporaryDirectory(prefix="hiervl-bench-") as folder:
        root = Path(folder)
        path = make_source(options.video, root, options.seconds)
        pipeline = measure_pipeline(path, root, options.repeats)
        cuts = measure_cuts(root, options.repeats)
        scaling = measure_workers(path, root, options.repeats)
        scheduler = measure_scheduler(1000 if options.quick else 10_000)
    show("preprocessing", [*pipeline.pop("rows"), *cuts.pop("rows"), *scaling.pop("rows"), *scheduler.pop("rows")],
         {"pipeline": pipeline, "cuts": cuts, "workers": scaling, "scheduler": scheduler})  # fmt: skip


def make_source(video: Path | None, root: Path, seconds: int) -> Path:
    """Return a camera-like 1920 × 1080 H.264 video of `seconds` at 30 frames/s with key frames every 2 s."""
    if video is None:
        made = generate(DemoConfig(size="tiny"), root / "demo")
        video = max(made.videos.glob("*.mp4"), key=lambda path: path.stat().st_size)
    path = root / "source.mp4"
    grain = "scale=1920:1080,fps=30,noise=alls=3:allf=t"  # noise, since a scaled-up video decodes too easily
    command = [FFMPEG, "-v", "error", "-stream_loop", "-1", "-i", str(video), "-t", str(seconds), "-an", "-vf", grain]
    subprocess.run(
        [*command, "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-g", "60", str(path)], check=True
    )
    return path


def make_tasks(path: Path, work: Path, *, chunk_seconds: int) -> list[ChunkTask]:
    """Return the tasks that make the chunks of the source."""
    source = probe(path)
    config = dataclasses.replace(BuildConfig().chunk, seconds=chunk_seconds)
    count = -(-source.frames(config.fps) // (config.seconds * config.fps))
    return [
        ChunkTask(
            video_uid="source", source=source, index=i, is_stereo=False, config=config, ffmpeg=FFMPEG, work=work,
            toolchain=TOOLCHAIN,
        )
        for i in range(count)
    ]  # fmt: skip


def make_plans(source: ProbedVideo, work: Path) -> list[tuple[str, int]]:
    """Plan shards of clips of 1.0 ± 0.9 s at EgoClip's density, and of a summary every two minutes."""
    rng = random.Random(0)
    clips = []
    for i in range(int(source.duration * CLIPS_PER_SECOND)):
        length = min(60.0, max(0.1, rng.gauss(1.0, 0.9)))
        start = rng.uniform(0, max(0.0, source.duration - length))
        clips.append(_row("c", i, start, start + length, [3], [5]))
    span = min(120.0, source.duration)
    summaries = [_row("s", i, i * span, (i + 1) * span - 0.5, [1], [2]) for i in range(int(source.duration // span))]
    narrations = pa.Table.from_pylist(clips, schema=NARRATION_SCHEMA)
    table = pa.Table.from_pylist(summaries, schema=SUMMARY_SCHEMA)
    items = {
        "clips": clip_items(narrations),
        "summaries": summary_items(table, narrations, join(narrations, table, match_pass=False)),
    }
    made = []
    for name, part in items.items():
        for plan in plan_shards(
            part, set_name=name, split="train", first_number=0, kbps=300, config=BuildConfig().shard
        ):
            write_plan(work, plan)
            made.append((name, plan.number))
    return made


def measure_pipeline(path: Path, root: Path, repeats: int) -> dict:
    """Compare the CPU time of the whole pipeline with the published recipe and with bare decoding and scaling."""
    source = probe(path)
    turn = iter(range(10**6))

    def ours() -> None:
        folder = root / f"ours-{next(turn)}"
        work = folder / "work"
        tasks = make_tasks(path, work, chunk_seconds=600)
        for task in tasks:
            make_chunk(task)
        for name, number in make_plans(source, work):
            pack_shard(
                PackTask(
                    root=folder / "shards", work=work, set_name=name, split="train", number=number,
                    videos={"source": len(tasks)}, chunk=tasks[0].config, end_tolerance=0.5, toolchain=TOOLCHAIN,
                )
            )  # fmt: skip

    def published() -> None:
        folder = root / f"published-{next(turn)}"
        folder.mkdir()
        small = folder / "small.mp4"
        _ffmpeg("-i", str(path), "-filter:v", "scale=-2:256", str(small))
        for start in range(0, int(source.duration), 600):
            # Without the recipe's `-async 1`, which is for audio and no longer exists in current versions of ffmpeg.
            _ffmpeg("-i", str(small), "-ss", str(start), "-to", str(start + 600), str(folder / f"{start}.mp4"))

    def bare() -> None:
        _ffmpeg("-threads", "1", "-i", str(path), "-an", "-vf", "scale=-2:256", "-f", "null", "-")

    taken = interleave({"ours": ours, "published": published, "bare": bare}, repeats)
    against_published = taken["published"].cpu / taken["ours"].cpu
    against_bare = taken["ours"].cpu / taken["bare"].cpu
    per_second = taken["ours"].cpu / source.duration
    return {
        "rows": [
            ("CPU time, published two-pass recipe ÷ ours (1080p source)", f"{against_published:.2f}", "2.5",
             "x264 at its default preset, twice"),
            ("CPU time, ours ÷ bare decode and scale (1080p source)", f"{against_bare:.2f}", "≤ 1.5",
             "x264 at 30 frames/s; decoding itself is the lower bound"),
            ("CPU seconds per second of source (1080p)", f"{per_second:.3f}", "", "decoding"),
        ],
        "cpu_seconds": {name: result.cpu for name, result in taken.items()},
        "source_seconds": source.duration,
        "published_over_ours": against_published,
        "ours_over_bare": against_bare,
    }  # fmt: skip


def measure_cuts(root: Path, repeats: int) -> dict:
    """Measure the rates of packet cuts, and of complete samples written to a shard, on one core."""
    folder = sorted(root.glob("ours-*"))[0]
    work = folder / "work"
    frames = 30 * 20
    rng = random.Random(1)
    wanted = [(first, first + max(1, round(rng.gauss(30, 27)))) for first in rng.choices(range(frames - 120), k=400)]
    wanted = [(first, min(stop, frames)) for first, stop in wanted]
    span = read_packet_span([(chunk_path(work, "source", 0, "full"), 0)], fps=30, first=0, stop=frames)
    with Cutter(span) as cutter:
        mux = interleave({"mux": lambda: [cutter._mux(*cutter._bounds(*pair)) for pair in wanted]}, repeats)["mux"]
    cuts = len(wanted) / mux.cpu

    number = iter(range(100, 10**6))
    rows = [_row("c", i, first / 30, stop / 30, [1], [2]) for i, (first, stop) in enumerate(wanted)]
    items = clip_items(pa.Table.from_pylist(rows, schema=NARRATION_SCHEMA))
    config = make_tasks(root / "source.mp4", work, chunk_seconds=600)[0].config

    def pack() -> None:
        (plan,) = plan_shards(
            items, set_name="clips", split="train", first_number=next(number), kbps=300, config=BuildConfig().shard
        )
        write_plan(work, plan)
        task = PackTask(
            root=root / "packed", work=work, set_name="clips", split="train", number=plan.number, videos={"source": 1},
            chunk=config, end_tolerance=0.5, toolchain=TOOLCHAIN,
        )  # fmt: skip
        assert pack_shard(task).samples == len(rows)

    packed = len(rows) / interleave({"pack": pack}, repeats)["pack"].cpu
    return {
        "rows": [
            ("packet cuts per second and core", f"{cuts:,.0f}", "2,000", "PyAV's calls, one per packet"),
            ("complete samples with JPEG, written to a shard, per second and core", f"{packed:,.0f}", "500",
             "decoding and encoding the key frame"),
        ],
        "cuts_per_second": cuts,
        "samples_per_second": packed,
    }  # fmt: skip


def measure_workers(path: Path, root: Path, repeats: int) -> dict:
    """Compare two workers on two cores with one worker on one core, on the same chunks."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return {"rows": [("two workers ÷ one", "not measured: one core", "1.9", "")], "speed_up": None}
    turn = iter(range(10**6))
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers in (1, 2):
            os.sched_setaffinity(0, set(cores[:workers]))  # inherited by the workers and their ffmpeg processes
            try:
                with jobs.cluster(DaskConfig(workers=workers), scratch=str(root / "dask")) as client:
                    tasks = make_tasks(path, root / f"workers-{next(turn)}", chunk_seconds=10)
                    work = [
                        jobs.DaskJob(name=f"c{t.index}", stage="c", function=make_chunk, task=t, runs_ffmpeg=True)
                        for t in tasks
                    ]
                    list(
                        jobs.run(client, [dataclasses.replace(job, name=f"warm-{job.name}") for job in work[:workers]])
                    )
                    with elapsed() as taken:
                        for ended in jobs.run(client, work):
                            assert ended.error is None, ended.error
                    walls[workers].append(taken.wall)
            finally:
                os.sched_setaffinity(0, set(cores))
    best = {workers: min(times) for workers, times in walls.items()}
    speed_up = best[1] / best[2]
    return {
        "rows": [("two workers on two cores ÷ one on one (wall time, best runs)", f"{speed_up:.2f}", "1.9",
                  "the cores, which share caches and memory, and on a virtual machine perhaps one core")],
        "speed_up": speed_up,
        "wall_seconds": {str(workers): times for workers, times in walls.items()},
    }  # fmt: skip


def measure_scheduler(tasks: int) -> dict:
    """Measure the overhead of Dask and our loop per task, with tasks that do nothing."""
    with jobs.cluster(DaskConfig(workers=1), scratch=tempfile.gettempdir()) as client:
        work = [jobs.DaskJob(name=f"nothing-{i}", stage="n", function=str, task=i) for i in range(tasks)]
        began = time.perf_counter()
        assert sum(1 for _ in jobs.run(client, work)) == tasks
        each = (time.perf_counter() - began) / tasks
    return {
        "rows": [(f"scheduling a task, of {tasks:,} (wall time)", f"{1000 * each:.2f} ms", "5 ms", "Dask's scheduler")],
        "tasks": tasks,
        "seconds_per_task": each,
    }


def _row(letter: str, index: int, start: float, end: float, verbs: list[int], nouns: list[int]) -> dict:
    return {
        "key": make_key("source", letter, 1, index),
        "video_uid": "source",
        "narration_source": "narration_pass_1",
        "narration_ind": index,
        "narration_time": (start + end) / 2,
        "clip_start": start,
        "clip_end": end,
        "text": f"#C C does thing {index}",
        "tag_verb": verbs,
        "tag_noun": nouns,
    }


def _ffmpeg(*arguments: str) -> None:
    subprocess.run([FFMPEG, "-v", "error", "-nostdin", "-y", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
