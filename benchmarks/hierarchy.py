"""Compares the hierarchy join at Ego4D's size with the published scan per summary, and times reading the tables.

    python benchmarks/hierarchy.py [--narrations 4000000] [--summaries 100000] [--read]

The data are synthetic, with EgoClip's density. Each step is measured in a single-threaded process of its own, so that
its peak memory includes nothing else. Prints a JSON line and a table row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this folder's files have the names of packages
from preprocessing.annotations import AnnotationsConfig, read_annotations  # noqa: E402
from preprocessing.hierarchy import EPSILON, Hierarchy, join  # noqa: E402

VIDEOS = 9_645
SPAN = 300.0  # s covered by a summary
GAP = 4.9 / 1.6  # s between narrations: 3.85 M in two passes over about 3,000 h
SCANNED = 40  # summaries on which the scan is timed


def synthetic(narrations: int, summaries: int, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Return random tables of narrations and summaries with the columns that `join` reads."""
    rng = np.random.default_rng(seed)
    uids = pa.array([f"{i:08x}-0000-4000-8000-{i * 7919 % 10**12:012d}" for i in range(VIDEOS)])
    length = narrations / VIDEOS * GAP

    def table(rows: int, letter: str, start: np.ndarray, end: np.ndarray) -> pa.Table:
        video = rng.integers(0, VIDEOS, rows)
        source = rng.integers(0, 2, rows)
        columns = {
            "key": pa.array(np.char.add(f"k_{letter}1_", np.char.zfill(np.arange(rows).astype(str), 7))),
            "video_uid": uids.take(pa.array(video)),
            "narration_source": pa.array(["narration_pass_1", "narration_pass_2"]).take(pa.array(source)),
            "clip_start": pa.array(start),
            "clip_end": pa.array(end),
        }
        return pa.table(columns)

    start = rng.random(narrations) * length
    spans = rng.random(summaries) * max(length - SPAN, 1)
    return (
        table(narrations, "c", start, start + rng.exponential(1.0, narrations)),
        table(summaries, "s", spans, spans + SPAN),
    )


def scan(narrations: pa.Table, summaries: pa.Table, count: int) -> tuple[float, list[np.ndarray]]:
    """Return the seconds per summary, and the rows of the first `count` summaries, of the published algorithm.

    It compares each summary with every narration; here on arrays in memory.
    """
    uids = narrations["video_uid"].combine_chunks().dictionary_encode()
    video, names = uids.indices.to_numpy(), {uid: i for i, uid in enumerate(uids.dictionary.to_pylist())}
    start, end = narrations["clip_start"].to_numpy(), narrations["clip_end"].to_numpy()
    rows = summaries.slice(0, count).to_pylist()
    began = time.perf_counter()
    matches = []
    for row in rows:
        first, last = row["clip_start"] - EPSILON, row["clip_end"] + EPSILON
        inside = np.flatnonzero((video == names[row["video_uid"]]) & (start >= first) & (end <= last))
        matches.append(inside[np.argsort(start[inside], kind="stable")])
    return (time.perf_counter() - began) / len(rows), matches


def measure_join(folder: Path) -> dict[str, float]:
    """Time the join of the tables in `folder`, compare it with the scan, and return times (s) and memory (MB)."""
    tables = [pa.ipc.open_file(pa.OSFile(str(folder / name))).read_all() for name in ("n.arrow", "s.arrow")]
    before = _peak()
    began, cpu = time.perf_counter(), time.process_time()
    hierarchy: Hierarchy = join(tables[0], tables[1], match_pass=False)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = _peak()
    each, matches = scan(tables[0], tables[1], SCANNED)
    assert all(np.array_equal(rows, hierarchy.narrations_of(i)) for i, rows in enumerate(matches))
    return {
        "narrations": tables[0].num_rows,
        "summaries": len(hierarchy),
        "pairs": len(hierarchy.rows),
        "join_s": round(seconds, 2),
        "join_cpu_s": round(cpu, 2),
        "tables_mb": round(before),
        "peak_mb": round(peak),
        "scan_s_extrapolated": round(each * len(hierarchy)),
        "scan_over_join": round(each * len(hierarchy) / seconds),
    }


def measure_read(folder: Path) -> dict[str, float]:
    """Time `read_annotations` on the files in `folder`."""
    config = AnnotationsConfig(egoclip=folder / "egoclip.csv", egosummary=folder / "egosummary_full.csv")
    began, cpu = time.perf_counter(), time.process_time()
    annotations = read_annotations(config)
    return {
        "rows": annotations.narrations.num_rows + annotations.summaries.num_rows,
        "rejects": annotations.rejects.num_rows,
        "csv_mb": round(sum(path.stat().st_size for path in folder.glob("*.csv")) / 1e6),
        "read_s": round(time.perf_counter() - began, 1),
        "read_cpu_s": round(time.process_time() - cpu, 1),
        "peak_mb": round(_peak()),
    }


def write_csv(path: Path, table: pa.Table, *, bad_every: int = 10_000) -> None:
    """Write a table in the format of egoclip.csv.

    Every `bad_every`th row has a malformed tag, and one in a hundred a quoted text.
    """
    rng = np.random.default_rng(1)
    words = ["picks up the", "cuts a", "opens", "looks around", "the cutting board", "drawer", "with his left hand"]
    names = "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text"
    with path.open("w", encoding="utf-8") as file:
        file.write("\t".join([*names.split(), "tag_verb", "tag_noun"]) + "\n")
        columns = [table[name].to_pylist() for name in ("video_uid", "narration_source", "clip_start", "clip_end")]
        draws = rng.integers(0, len(words), (table.num_rows, 3))
        tags = rng.integers(0, 118, (table.num_rows, 3))
        for i, (uid, source, start, end) in enumerate(zip(*columns, strict=True)):
            text = "#C C " + " ".join(words[j] for j in draws[i])
            text = f'"{text} ""so"""' if i % 100 == 0 else text
            verb = "[" if i % bad_every == 7 else f"[{tags[i, 0]}]"
            head = f"{i}\t{uid}\t1321.3\t{source}\t{i}\t{(start + end) / 2}\t{start}\t{end}"
            file.write(f"{head}\t{text}\t{verb}\t[{tags[i, 1]}, {tags[i, 2]}]\n")


def main() -> None:
    """Generate the data, measure each step in a process of its own, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--narrations", type=int, default=4_000_000)
    parser.add_argument("--summaries", type=int, default=100_000)
    parser.add_argument("--read", action="store_true", help="also time reading tab-separated files")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        pa.set_cpu_count(1)
        print(json.dumps({"join": measure_join, "read": measure_read}[args.step[0]](Path(args.step[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, csv, table in zip(
            ("n.arrow", "s.arrow"),
            ("egoclip.csv", "egosummary_full.csv"),
            synthetic(args.narrations, args.summaries),
            strict=True,
        ):
            with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            if args.read:
                write_csv(folder / csv, table)
        results = {step: _run(step, folder) for step in (["join", "read"] if args.read else ["join"])}
    print(json.dumps({"benchmark": "hierarchy", "machine": platform.processor() or platform.machine(), **results}))
    figures = results["join"]
    print("| narrations | summaries | join | peak memory (tables) | a scan per summary | ratio |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {figures['narrations']:,} | {figures['summaries']:,} | {figures['join_s']} s | {figures['peak_mb']:,} MB "
        f"({figures['tables_mb']:,} MB) | {figures['scan_s_extrapolated']:,} s (from {SCANNED}) "
        f"| {figures['scan_over_join']}× |"
    )


def _run(step: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, str(folder)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **one_thread})
    return json.loads(done.stdout)


def _peak() -> float:
    """Return the peak memory of this process in MB, from Linux's /proc, since getrusage includes the parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
