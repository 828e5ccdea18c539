"""Compares the loader's samples/s with the published layout, 15 s chunks and bare decoding of the same bytes.

    python benchmarks/loader.py [--video FILE] [--work FOLDER] [--seconds 3] [--rounds 3] [--out FILE]

Uses the embedded dataset and, with `--video`, a video of at least 30 s. Each case runs in a process of its own that is
pinned to its cores; the cases are interleaved in each round, so that other load affects all of them alike, and a figure
is the median over the rounds. Prints a table and JSON. The published layout needs opencv-python-headless, and the JPEG
layout simplejpeg; without them, their rows show the error. Frames have the shape (T, H, W, C).
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's files have the names of packages
from benchmarks.loader_media import ROOT, Media, jpeg_clips, make_embedded, make_single_video, stored  # noqa: E402
from shards.schema import MediaRecord  # noqa: E402

FRAMES, SIZE, WINDOWS = 4, 224, 16
CASES = {
    "child": ("published", "chunks15", "bare", "pyav", "decord", "jpeg_bare", "jpeg"),
    "parent": ("published", "chunks15", "bare", "pyav", "decord"),
}
TITLES = {
    "published": "published layout: 600 s chunk, OpenCV seeks, float32",
    "chunks15": "15 s chunks, decord get_batch",
    "bare": "bare libavcodec, all frames of the same bytes",
    "pyav": "loader, pyav",
    "decord": "loader, decord",
    "jpeg_bare": "bare libjpeg-turbo, 4 of 8 JPEGs",
    "jpeg": "JPEG layout: 4 of 8 JPEGs, crop, resize",
}
CLIPS_PER_GPU = 562  # clips/s that a GPU consumes (docs/loader.md)


def make_case(media: Media, name: str, level: str) -> Iterator[int]:
    """Yield the number of samples completed since the last step, endlessly."""
    if name in ("pyav", "decord"):
        return loader_case(media, name, level, workers=int(os.environ["BENCH_WORKERS"]))
    if name == "published":
        return published_case(media, level)
    if name == "chunks15":
        return chunk_case(media, level)
    if name == "bare":
        return bare_case(media, level)
    return jpeg_case(media, with_crop=name == "jpeg")


def loader_case(media: Media, decoder: str, level: str, *, workers: int) -> Iterator[int]:
    """The loader as in training: random frames and crops, batches in shared memory."""
    from shards.config import LoaderConfig
    from shards.loader import Loader

    batch = 16 if level == "child" else 2
    config = LoaderConfig(global_batch=batch, decoder=decoder, workers=workers, prefetch=2)  # type: ignore[arg-type]
    with Loader(media.shards, "clips" if level == "child" else "summaries", media.split, config) as loader:
        for _ in itertools.count():
            for samples in loader:
                yield len(samples.keys)


def bare_case(media: Media, level: str) -> Iterator[int]:
    """The lower bound: libavcodec opens the bytes and decodes all frames in one thread, without conversion."""
    import av

    for _, mp4 in itertools.cycle(stored(media, level)):
        with av.open(io.BytesIO(mp4)) as container:
            container.streams.video[0].thread_count = 1
            for _ in container.decode(video=0):
                pass
        yield 1


def spans(media: Media, level: str) -> Iterator[tuple[str, float, float]]:
    """Yield video, start and end (s) of samples in random order, endlessly."""
    rows = [
        (record.video_uid, record.clip_start, record.clip_end)
        for record, _ in stored(media, level)
        if record.video_uid in media.long_chunks
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    return itertools.cycle([rows[i] for i in order])


def windows_of(start: float, end: float, level: str) -> list[tuple[float, float]]:
    """Return the intervals (s) of a span that are read: all of a clip, or the windows of a summary."""
    if level == "child":
        return [(start, max(end, start + 1 / 30))]
    length = min(8.0, end - start)
    room = max(0.0, end - start - length - 1.0)
    return [(start + i / (WINDOWS - 1) * room, start + i / (WINDOWS - 1) * room + length) for i in range(WINDOWS)]


def published_case(media: Media, level: str) -> Iterator[int]:
    """The published loader: open the 600 s chunk, seek to each frame, convert to float32, crop, flip, normalise."""
    import cv2
    import torch

    import hiervl_train.models.torchvision_ops  # noqa: F401 (makes torchvision importable with a CPU-only torch)

    from torchvision import transforms  # isort: skip

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.5, 1.0), antialias=False),
            transforms.RandomHorizontalFlip(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    rng = np.random.default_rng(0)
    for video, start, end in spans(media, level):
        path = str(media.long_chunks[video])
        for first, stop in windows_of(start, end, level):
            capture = cv2.VideoCapture(path)
            edges = np.linspace(first * 30, stop * 30, FRAMES + 1).astype(int)
            shift = int(rng.integers(0, 12_000))  # anywhere in the chunk, which repeats the video many times
            frames = []
            for a, b in itertools.pairwise(edges):
                capture.set(cv2.CAP_PROP_POS_FRAMES, int(rng.integers(a, max(a + 1, b))) + shift)
                is_read, frame = capture.read()
                if is_read:
                    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    frames.append(torch.from_numpy(rgb).permute(2, 0, 1))
            capture.release()
            assert len(frames) == FRAMES, (path, edges)
            transform(torch.stack(frames).float() / 255)
        yield 1


def chunk_case(media: Media, level: str) -> Iterator[int]:
    """15 s chunks: open the one that contains the span, read its frames in one call, crop and resize."""
    import decord

    from shards import sampling
    from shards.decode import _Scaler

    scaler, place, count = _Scaler(), np.random.default_rng(0), itertools.count()
    for video, start, end in spans(media, level):
        for first, stop in windows_of(start, end, level):
            chunks = media.short_chunks[video]
            index = min(int(first // 15), len(chunks) - 1)
            reader = decord.VideoReader(str(chunks[index]), num_threads=1)
            rate = reader.get_avg_fps()
            edges = np.linspace((first - 15 * index) * rate, (stop - 15 * index) * rate, FRAMES + 1).astype(int)
            numbers = [int(place.integers(a, max(a + 1, b))) for a, b in itertools.pairwise(edges)]
            frames = reader.get_batch(np.clip(numbers, 0, len(reader) - 1)).asnumpy()
            height, width = frames.shape[1:3]
            rng = sampling.KeyedRng(next(count))
            crop = sampling.random_crop(width, height, scale=(0.5, 1.0), flip=0.5, rng=rng)
            np.stack([scaler.from_rgb(frame, crop, SIZE) for frame in frames])
        yield 1


def jpeg_case(media: Media, *, with_crop: bool) -> Iterator[int]:
    """Decode 4 of a clip's 8 JPEGs with libjpeg-turbo; with `with_crop`, crop and resize them like the loader."""
    import simplejpeg

    from shards import sampling
    from shards.decode import _Scaler

    scaler, count = _Scaler(), itertools.count()
    for record, jpegs in itertools.cycle(jpeg_clips(media)):
        rng = sampling.KeyedRng(next(count))
        chosen = [jpegs[2 * i + rng.integer(2)] for i in range(FRAMES)]
        frames = [simplejpeg.decode_jpeg(jpeg) for jpeg in chosen]
        if with_crop:
            width, height = record.width, record.height
            crop = sampling.random_crop(width, height, scale=(0.5, 1.0), flip=0.5, rng=rng)
            np.stack([scaler.from_rgb(frame, crop, SIZE) for frame in frames])
        yield 1


def measure_one(options: argparse.Namespace) -> float:
    """Return samples/s of one case in this process, after a warm-up that uses up the loader's prefetched batches."""
    level, name, cores = options.one[0], options.one[1], int(options.one[2])
    media = Media(**_paths(json.loads(os.environ["BENCH_MEDIA"])))
    is_loader = name in ("pyav", "decord")
    mine = sorted(os.sched_getaffinity(0))
    os.environ["BENCH_WORKERS"] = str(cores)
    os.sched_setaffinity(0, mine[:cores] if is_loader else [mine[int(options.one[3])]])
    case = make_case(media, name, level)
    for _ in range(1 + (2 * cores + 1 if is_loader else 2)):
        next(case)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < options.seconds:
        done += next(case)
    return done / (time.perf_counter() - began)


def measure(options: argparse.Namespace, media: Media, level: str, name: str, cores: int) -> float:
    """Return samples/s of a case: one process with workers for the loader, one process per core for the others."""
    environment = {**os.environ, "BENCH_MEDIA": json.dumps(asdict(media), default=str), "OMP_NUM_THREADS": "1"}
    processes = 1 if name in ("pyav", "decord") else cores
    command = [sys.executable, __file__, "--seconds", str(options.seconds), "--one", level, name, str(cores)]
    started = [
        subprocess.Popen(
            [*command, str(core)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for core in range(processes)
    ]
    total = 0.0
    for process in started:
        out, errors = process.communicate(timeout=600)
        if process.returncode:
            raise RuntimeError(f"{level} {name}: {(errors.strip().splitlines() or ['no message'])[-1]}")
        total += float(out.strip().splitlines()[-1])
    return total


def time_to_batch(media: Media) -> dict[str, float]:
    """Return the seconds from creating a loader to its first batch, by position in the epoch at which it resumes."""
    from shards.config import LoaderConfig
    from shards.loader import Loader

    found = {}
    for share in (0.0, 0.1, 0.5, 0.9):
        began = time.perf_counter()
        with Loader(media.shards, "clips", media.split, LoaderConfig(global_batch=4, workers=2)) as loader:
            if share:
                loader.load_state_dict({**loader.state_dict(), "batch": int(share * len(loader))})
            next(iter(loader))
            found[f"{share:.0%}"] = round(time.perf_counter() - began, 3)
    return found


def profile(media: Media) -> dict[str, dict[str, float]]:
    """Return ms per clip by stage, for the loader and for a simple pipeline.

    The simple pipeline opens the file, decodes everything, converts whole frames, crops and resizes. One thread, one
    core; the time of a stage is the difference between a run with and one without it.
    """
    import av

    from shards import sampling
    from shards.decode import PyAVDecoder, _Scaler
    from shards.mp4 import read_packets
    from shards.sampling import Crop

    clips = stored(media, "child")[:120]
    scaler, decoder, blind = _Scaler(), PyAVDecoder(), PyAVDecoder()
    blind._scaler = type("None_", (), {"from_video": lambda self, frame, crop, size: 0})()  # type: ignore[assignment]

    def choose(record: MediaRecord, index: int) -> tuple[np.ndarray, Crop]:
        rng = sampling.KeyedRng(index)
        numbers = sampling.clip_frames(record, frames=FRAMES, rng=rng)
        size = record.width, record.height
        return numbers, sampling.random_crop(*size, scale=(0.5, 1.0), flip=0.5, rng=rng)

    def opened(mp4: bytes) -> None:
        with av.open(io.BytesIO(mp4)) as container:
            for _ in container.demux(video=0):
                pass

    def decoded(mp4: bytes, numbers: np.ndarray, convert: bool, crop: Crop | None) -> None:
        with av.open(io.BytesIO(mp4)) as container:
            container.streams.video[0].thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if convert and number in numbers:
                    pixels = frame.to_ndarray(format="rgb24")
                    if crop is not None:
                        scaler.from_rgb(pixels, crop, SIZE)

    def milliseconds(run: Callable[[MediaRecord, bytes, int], object]) -> float:
        best = min(_timed(lambda: [run(record, mp4, i) for i, (record, mp4) in enumerate(clips)]) for _ in range(3))
        return 1000 * best / len(clips)

    def tables(record: MediaRecord, mp4: bytes, index: int) -> object:
        return read_packets(mp4).needed(mp4, choose(record, index)[0])

    def fast(which: PyAVDecoder) -> Callable[[MediaRecord, bytes, int], object]:
        def run(record: MediaRecord, mp4: bytes, index: int) -> object:
            numbers, crop = choose(record, index)
            return which.decode(mp4, numbers, [crop] * FRAMES, SIZE)

        return run

    open_ms = milliseconds(lambda record, mp4, i: opened(mp4))
    decode_ms = milliseconds(lambda record, mp4, i: decoded(mp4, choose(record, i)[0], False, None))
    convert_ms = milliseconds(lambda record, mp4, i: decoded(mp4, choose(record, i)[0], True, None))
    whole_ms = milliseconds(lambda record, mp4, i: decoded(mp4, choose(record, i)[0], True, choose(record, i)[1]))
    choose_ms = milliseconds(lambda record, mp4, i: choose(record, i))
    tables_ms, blind_ms, fast_ms = milliseconds(tables), milliseconds(fast(blind)), milliseconds(fast(decoder))
    steps = [len(tables(record, mp4, i)) for i, (record, mp4) in enumerate(clips)]
    before = {"open": open_ms, "decode": decode_ms - open_ms, "convert": convert_ms - decode_ms}
    before |= {"crop and resize": whole_ms - convert_ms, "all": whole_ms}
    after = {"choose": choose_ms, "packet tables": tables_ms - choose_ms, "decode": blind_ms - tables_ms}
    after |= {"crop, resize and convert": fast_ms - blind_ms, "all": fast_ms}
    frames = {"stored": statistics.fmean(r.num_frames for r, _ in clips)}
    frames |= {"decoded": statistics.fmean(steps)}
    return {
        name: {stage: round(value, 2) for stage, value in stages.items()}
        for name, stages in (("before ms", before), ("after ms", after), ("frames a clip", frames))
    }


def mixing(lanes: int = 64, batch: int = 512) -> dict[str, float]:
    """Return the share of pairs in a batch that are from one video, in our order and in a full shuffle.

    The simulated dataset has 1/64 of Ego4D's size.
    """
    from shards.order import TrainOrder

    shards, samples, per_segment, segments_per_video = 12, 5000, 18, 23
    rng = np.random.default_rng(0)
    # Whole segments are assigned to shards at random.
    segments = rng.permutation(shards * samples // per_segment + shards)
    video = (segments // segments_per_video)[np.arange(shards * samples) // per_segment].reshape(shards, samples)
    order = TrainOrder(
        fingerprint="mixing", seed=0, samples=(samples,) * shards, bytes=(2**28,) * shards, lanes=lanes,
        global_batch=batch, block_bytes=2**30, denied={},
    )  # fmt: skip
    ours = [video[tuple(order.batch(0, n, range(lanes)).T)] for n in range(order.batches)]
    full = rng.permutation(video.reshape(-1))[: order.batches * batch].reshape(-1, batch)

    def share(batches: list[np.ndarray]) -> float:
        same = [np.unique(videos, return_counts=True)[1] for videos in batches]
        pairs = sum(int((counts * (counts - 1)).sum()) for counts in same)
        return pairs / (len(batches) * batch * (batch - 1))

    return {"ours": round(share(ours), 6), "full shuffle": round(share(list(full)), 6)}


def _timed(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def _paths(value: dict[str, object]) -> dict[str, object]:
    """Return the fields of a `Media` from JSON."""
    value["shards"] = Path(str(value["shards"]))
    return value


def table(rows: list[dict[str, object]]) -> str:
    """Return the figures as text, with ratios to the published layout, 15 s chunks and bare decoding."""
    head = (
        f"{'media':9} {'level':7} {'cores':>5}  {'case':50} {'samples/s':>9} {'÷ publ.':>7} {'÷ 15 s':>7} {'÷ bare':>7}"
    )
    lines = [head]
    figures = {(r["media"], r["level"], r["cores"], r["case"]): float(str(r.get("rate", "nan"))) for r in rows}
    for r in rows:
        key = (r["media"], r["level"], r["cores"])
        ratios = [figures[(*key, str(r["case"]))] / figures.get((*key, base), float("nan")) for base in BASES]
        text = " ".join(f"{ratio:7.2f}" for ratio in ratios)
        rate = f"{r['rate']:9.1f}" if "rate" in r else f"  {r['error']}"
        lines.append(f"{r['media']!s:9} {r['level']!s:7} {r['cores']!s:>5}  {TITLES[str(r['case'])]:50} {rate} {text}")
    return "\n".join(lines)


BASES = ("published", "chunks15", "bare")


def run_all(options: argparse.Namespace) -> dict[str, object]:
    """Measure everything; return the JSON to print."""
    media = [make_embedded(options.work)]
    if options.video:
        media.append(make_single_video(options.work, options.video))
    rates: dict[tuple[str, str, int, str], list[float]] = {}
    errors: dict[tuple[str, str, int, str], str] = {}
    for _ in range(options.rounds):
        for one, level, cores in itertools.product(media, CASES, (1, 2)):
            for name in CASES[level]:
                key = (one.name, level, cores, name)
                try:
                    rates.setdefault(key, []).append(measure(options, one, level, name, cores))
                except RuntimeError as error:
                    errors[key] = str(error)
    rows: list[dict[str, object]] = []
    for key, values in rates.items():
        row: dict[str, object] = dict(zip(("media", "level", "cores", "case"), key, strict=True))
        if values:
            row |= {"rate": round(statistics.median(values), 2), "all": [round(value, 2) for value in values]}
        else:
            row |= {"error": errors[key]}
        rows.append(row)
    result: dict[str, object] = {"rows": rows, "mixing": mixing()}
    for one in media:
        rate = next((r["rate"] for r in rows if (r["media"], r["cores"], r["case"]) == (one.name, 1, "pyav")), None)
        about: dict[str, object] = {"profile": profile(one), "seconds to a batch": time_to_batch(one)}
        about["bytes a clip, mp4"] = round(one.bytes_per_clip)
        try:
            sizes = [sum(map(len, jpegs)) for _, jpegs in jpeg_clips(one)]
            about["bytes a clip, 8 JPEGs"] = round(statistics.fmean(sizes))
        except ImportError as error:
            about["bytes a clip, 8 JPEGs"] = str(error)
        if rate is not None:
            about["cores a GPU at 562 clips/s"] = round(CLIPS_PER_GPU / float(str(rate)), 1)
        result[one.name] = about
    return result


def main(arguments: list[str]) -> int:
    """Measure and print; return 1 if a case failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--video", type=Path, help="an additional video with motion, of at least 30 s")
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "bench", help="folder for generated media, kept")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(measure_one(options))
        return 0
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "load_at_start": round(os.getloadavg()[0], 2)}
    result = {"machine": machine, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), **run_all(options)}
    print(table(result["rows"]))  # type: ignore[arg-type]
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    return int(any("error" in row for row in result["rows"]))  # type: ignore[union-attr]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
