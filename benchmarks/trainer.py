"""Measures real training runs: the cost of data loading and of checkpoints, scaling to two ranks, and memory.

    python benchmarks/trainer.py [--shards ROOT] [--parts data checkpoint scaling] [--rounds 3] [--out FILE]

On a GPU it trains the published size (bfloat16, compiled), else that of configs/pretrain/small.yaml with one thread per
rank. Each run is the real trainer in a process of its own; the arms are interleaved, and a figure is the median over
the rounds.

    data        clips/s from shards, compared with repeating the first batch of each step type; fraction of time spent
                waiting; utilisation; peak memory; for several batch sizes, the largest also with cached gradients
    checkpoint  time added to the steps around a save, by the background thread and by a blocking torch.save with fsync;
                for the measured size and for a state of the published size (on a CPU with 32 × 32 pixels)
    scaling     two gloo ranks on CPUs, compared with one rank of the same batch per rank and with two independent runs;
                seconds of averaging gradients, also of the published size
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's files have the names of packages
from benchmarks.measuring import show  # noqa: E402
from benchmarks.trainer_runs import PERIOD, SAVES, MeasuredRun, reduce_published, run, run_together, windows  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("data", "checkpoint", "scaling")
MEMORY = ("peak_resident_gb", "gpu_peak_gb")
Row = tuple[str, str, str, str]

# No downloads and no other work; captions of one length, so that all batches have the same shape.
PLAIN = ("init={video: null, text: null}", "tokenizer.buckets=[32]", "metrics.tensorboard=false")
# A state of the published size with short steps.
PUBLISHED_STATE = ("model.img_size=32", "sample={frames: 1, windows: 2, narrations: 2}", "speed.compile=false")


class Bench:
    """The settings that all parts share, and the folder of their runs."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self._numbers = itertools.count()

    def job(self, *overrides: str, clips: int, config: str | None = None, ranks: int = 1, **fields: Any) -> MeasuredRun:
        """Return a run with `clips` clips, and the corresponding number of summaries, per rank and step."""
        options = self.options
        config = config or options.config
        summaries = max(2, clips // (4 if config == "small" else 16))
        settings = (
            f"data.root={options.shards}",
            f"data.workers={options.workers}",
            f"schedule.clips={clips * ranks}",
            f"schedule.summaries={summaries * ranks}",
            "schedule.clip_micro_batch=null",
            "schedule.summary_micro_batch=null",
            "schedule.epochs=100000",
            *PLAIN,
            *([] if options.device == "cuda" else ["distributed.backend=gloo", "speed={bf16: false, compile: false}"]),
            *overrides,
        )
        plain = {"warmup": options.warmup, "steps": options.steps, "config": config}
        return MeasuredRun(folder=self.folder / f"run{next(self._numbers)}", overrides=settings, **{**plain, **fields})

    def rounds(self, arms: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """Run the arms interleaved; return the results of each by round."""
        results: dict[str, list[Any]] = {name: [] for name in arms}
        for number in range(self.options.rounds):
            for name, arm in arms.items():
                print(f"round {number + 1} of {self.options.rounds}: {name}", file=sys.stderr, flush=True)
                results[name].append(arm())
        return results


def measure_data(bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """Compare shards with batches in memory for each batch size, and cached gradients for the largest."""
    options = bench.options
    arms: dict[str, Callable[[], Any]] = {}
    for clips in options.batches:
        for batches in ("shards", "memory"):
            arms[f"{batches} {clips}"] = lambda b=batches, c=clips: run(bench.job(clips=c, batches=b))[0]
    most = max(options.batches)
    passes = (f"schedule.clip_micro_batch={max(1, most // 4)}", "schedule.summary_micro_batch=1")
    arms["cached"] = lambda: run(bench.job(*passes, clips=most))[0]
    results = bench.rounds(arms)

    rows: list[Row] = []
    figures: dict[str, Any] = {}
    for clips in options.batches:
        real, memory = results[f"shards {clips}"], results[f"memory {clips}"]
        ratio = statistics.median(
            a["clips_per_second"] / b["clips_per_second"] for a, b in zip(real, memory, strict=True)
        )
        own = statistics.median(  # per CPU second, independent of other load on the cores
            a["clips_per_second"] / a["cpu_share"] / (b["clips_per_second"] / b["cpu_share"])
            for a, b in zip(real, memory, strict=True)
        )
        figure = {
            "ratio": round(ratio, 3),
            "ratio_per_cpu_second": round(own, 3),
            "data_wait_fraction": round(median(real, "data_wait_fraction"), 4),
            **{f"{name}_{key}": round(median(arm, key), 4) for name, arm in (("shards", real), ("memory", memory))
               for key in ("clips_per_second", "mfu", "seconds_per_step", "cpu_share", *MEMORY)
               if key in arm[0]},
        }  # fmt: skip
        figures[f"batch {clips}"] = figure
        shares = f"{figure['shards_cpu_share']:.0%} of the time, in memory {figure['memory_cpu_share']:.0%}"
        bound = f"training had a core for {shares}; {options.workers} + 1 workers share the {cores()} cores"
        rows += [
            (f"{clips} clips per step: clips/s from shards", f"{figure['shards_clips_per_second']:.1f}",
             "600 on an H100, published size", bound),
            ("  ÷ clips/s with batches in memory", f"{ratio:.3f}", "0.97",
             f"per CPU second of the training thread: {own:.3f}" if options.device == "cpu" else ""),
            ("  fraction of time waiting for data", f"{figure['data_wait_fraction']:.1%}", "under 1 %", ""),
            ("  peak memory", memory_text(figure), "", "activations grow with the batch, the rest is constant"),
        ]  # fmt: skip
        if "shards_mfu" in figure:
            rows.append(("  utilisation", f"{figure['shards_mfu']:.1%}", "", "of the run's mfu_denominator"))
    cached = results["cached"]
    figures["cached"] = {
        "batch": most,
        "clip_micro_batch": max(1, most // 4),
        "of_one_pass": round(
            statistics.median(a["clips_per_second"] / b["clips_per_second"]
                              for a, b in zip(cached, results[f"memory {most}"], strict=True)), 3),
        **{key: round(median(cached, key), 4) for key in ("clips_per_second", *MEMORY)
           if key in cached[0]},
    }  # fmt: skip
    text = memory_text({f"memory_{key}": value for key, value in figures["cached"].items()})
    rows.append(
        (f"{most} clips per step in 4 micro-batches: clips/s ÷ those of one pass, peak memory",
         f"{figures['cached']['of_one_pass']:.2f}, {text}", "0.75", "the second encoding: 4/3 of the operations")
    )  # fmt: skip
    return rows, figures


def measure_checkpoint(bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """Compare steps around a save by the background thread, around a blocking torch.save, and without a save."""
    options = bench.options
    clips = min(options.batches)
    cases = {options.config: bench.job(clips=clips, **saving(options, options.save_every))}
    if options.device == "cpu" and not options.no_published:
        cases["published state"] = bench.job(
            *PUBLISHED_STATE, clips=2, config="hiervl_sa", **saving(options, options.published_save_every)
        )
    rows: list[Row] = []
    figures: dict[str, Any] = {}
    for name, job in cases.items():
        print(f"checkpoints: {name}", file=sys.stderr, flush=True)
        result = run(job)[0]
        assert job.save_every is not None
        first, saves = result["saves"][: len(SAVES)], result["saves"][len(SAVES) :]  # the first also allocate memory
        taken: dict[str, list[float]] = {way: [] for way in SAVES}
        for way, seconds in windows(result["steps"], saves, job.save_every):
            taken[way].append(seconds)
        without = statistics.median(taken["none"])
        own: dict[str, list[float]] = {way: [] for way in SAVES}  # CPU seconds of the training thread
        for way, seconds in windows(result["cpu_steps"], saves, job.save_every):
            own[way].append(seconds)
        threads, blocks = ([save for save in saves if save["way"] == way] for way in ("thread", "blocking"))
        figure = {
            "state_mb": round(blocks[-1]["bytes"] / 1e6, 2),
            "step_s": round(without / job.save_every, 4),
            "steps_a_turn": job.save_every,
            **{f"{way}_turn_s": [round(value, 3) for value in values] for way, values in taken.items()},
            "thread_lost_s": round(statistics.median(taken["thread"]) - without, 3),
            "blocking_lost_s": round(statistics.median(taken["blocking"]) - without, 3),
            "thread_lost_cpu_s": round(statistics.median(own["thread"]) - statistics.median(own["none"]), 3),
            "first_thread_call_s": round(median(first[1:2], "call_s"), 4),
            "thread_call_s": round(median(threads, "call_s"), 4),
            "thread_written_s": round(median(threads, "written_s"), 3),
            "blocking_call_s": round(median(blocks, "call_s"), 3),
            "torch_save_s": round(median(blocks, "torch_save_s"), 3),
            "peak_resident_gb": round(result["peak_resident_gb"], 2),
        }
        figures[name] = figure
        calls = (
            f"{figure['thread_lost_cpu_s']:.2f} s are CPU time of the training thread, the rest waiting for a core; "
            f"copying blocks training for {figure['thread_call_s']:.3f} s (the first time "
            f"{figure['first_thread_call_s']:.3f} s); written after {figure['thread_written_s']:.2f} s"
        )
        rows += [
            (f"{name}, {figure['state_mb']:,.0f} MB, steps of {figure['step_s']:.2f} s: added by a background save",
             f"{figure['thread_lost_s']:.2f} s", "", calls),
            ("  added by a blocking torch.save with fsync", f"{figure['blocking_lost_s']:.2f} s", "",
             f"{figure['torch_save_s']:.2f} s of it in torch.save, the rest on the disk"),
        ]  # fmt: skip
    return rows, figures


def measure_scaling(bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """Compare two ranks with one rank, and with two independent runs at the same time."""
    options = bench.options
    clips = options.scaling_clips
    one = ("distributed.backend=gloo", "speed={bf16: false, compile: false}")

    def rate(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {"rate": ranks[0]["clips_per_second"], "reduce_s": ranks[0]["reduce_s"],
                "step_s": ranks[0]["seconds_per_step"]}  # fmt: skip

    def apart() -> dict[str, float]:
        both = run_together([bench.job(*one, clips=clips, config="small") for _ in range(2)])
        return {"rate": sum(ranks[0]["clips_per_second"] for ranks in both)}

    results = bench.rounds(
        {
            "one": lambda: rate(run(bench.job(*one, clips=clips, config="small"))),
            "apart": apart,
            "two": lambda: rate(run(bench.job(*one, clips=clips, config="small", ranks=2), ranks=2)),
        }
    )
    turns = list(zip(results["one"], results["apart"], results["two"], strict=True))
    figures = {
        "clips_a_rank": clips,
        "one_clips_per_second": round(median(results["one"], "rate"), 2),
        "apart_clips_per_second": round(median(results["apart"], "rate"), 2),
        "two_clips_per_second": round(median(results["two"], "rate"), 2),
        "efficiency": round(statistics.median(two["rate"] / one["rate"] / 2 for one, _, two in turns), 3),
        "of_two_apart": round(statistics.median(two["rate"] / apart["rate"] for _, apart, two in turns), 3),
        "reduce_s": round(median(results["two"], "reduce_s"), 4),
        "step_s": round(median(results["two"], "step_s"), 4),
    }
    rows: list[Row] = [
        ("two ranks, one thread each: clips/s ÷ twice those of one", f"{figures['efficiency']:.2f}", "1",
         f"two independent runs reach {figures['apart_clips_per_second'] / figures['one_clips_per_second'] / 2:.2f}"
         f" on these {cores()} cores"),
        ("  ÷ clips/s of two independent runs", f"{figures['of_two_apart']:.2f}", "1", "the slower rank, gloo"),
        ("  averaging gradients, per step", f"{figures['reduce_s']:.3f} s of {figures['step_s']:.3f}", "",
         "including the wait for the slower rank"),
    ]  # fmt: skip
    if not options.no_published:
        figures["reduce_published_s"] = round(reduce_published(2, bench.folder / "reduce"), 3)
        rows.append(
            ("averaging gradients of the published size, two ranks", f"{figures['reduce_published_s']:.2f} s", "",
             "gloo over the loopback interface, one core per rank")
        )  # fmt: skip
    return rows, figures


def saving(options: argparse.Namespace, every: int) -> dict[str, int]:
    """Return the settings of a run with `options.turns` turns of each way of saving, after an uncounted first one."""
    return {"warmup": every, "steps": (options.turns + 1) * len(SAVES) * every, "save_every": every}


def median(results: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the median of a figure over the results that have it."""
    return statistics.median(entry[name] for entry in results if name in entry)


def memory_text(figure: Mapping[str, float]) -> str:
    """Return the peak memory of a run with batches in memory: of the process, and of the GPU if there is one."""
    process = f"{figure['memory_peak_resident_gb']:.2f} GB resident"
    gpu = figure.get("memory_gpu_peak_gb")
    return process if gpu is None else f"{gpu:.1f} GB of the GPU, {process}"


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; defaults depend on the device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--shards", type=Path, default=ROOT / "data" / "embedded" / "shards", metavar="ROOT")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", nargs="+", type=int, help="clips per step; CPU: 8, 16, 32, GPU: 16 to 128")
    parser.add_argument("--scaling-clips", type=int, default=16, help="clips per rank, for the small size")
    parser.add_argument("--workers", type=int, help="of the loader for clips; CPU: 1, GPU: all but 4 cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2 * PERIOD, help=f"steps, a multiple of {PERIOD}")
    parser.add_argument("--steps", type=int, help=f"timed steps, a multiple of {PERIOD}; CPU: 30, GPU: 120")
    parser.add_argument("--turns", type=int, default=4, help="of each way of saving")
    parser.add_argument("--save-every", type=int, help=f"steps per turn, a multiple of {PERIOD}; CPU: 6, GPU: 120")
    parser.add_argument("--published-save-every", type=int, default=3 * PERIOD, help="the same for the published state")
    parser.add_argument("--no-published", action="store_true", help="omit the published size, which needs gigabytes")
    parser.add_argument("--work", type=Path, help="folder on the disk to which checkpoints are written")
    parser.add_argument("--out", type=Path, help="file for the JSON; default: benchmarks/results/trainer.json")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.config = "hiervl_sa" if on_gpu else "small"
    options.batches = options.batches or ([16, 32, 64, 128] if on_gpu else [8, 16, 32])
    options.workers = options.workers or (max(1, cores() - 4) if on_gpu else 1)
    options.steps = options.steps or (20 * PERIOD if on_gpu else 5 * PERIOD)
    options.save_every = options.save_every or (20 * PERIOD if on_gpu else PERIOD)
    for name in ("warmup", "steps", "save_every", "published_save_every"):
        if getattr(options, name) % PERIOD:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: must be a multiple of {PERIOD}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected parts, print and save; return 2 if there is no dataset."""
    options = parse(arguments)
    if not (options.shards / "dataset.json").is_file():
        print(f"{options.shards}: no dataset; `make demo` builds the embedded one", file=sys.stderr)
        return 2
    parts = {"data": measure_data, "checkpoint": measure_checkpoint, "scaling": measure_scaling}
    rows: list[Row] = []
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "config": options.config,
        "workers": options.workers,
    }
    with tempfile.TemporaryDirectory(dir=options.work, prefix="trainer-") as folder:
        for part in options.parts:
            more, figures[part] = parts[part](Bench(options, Path(folder) / part))
            rows += more
    show("trainer", rows, figures, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
