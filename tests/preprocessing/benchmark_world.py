"""Small benchmarks in their published formats over coded videos, one of them broken, one unreadable, one missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simplejpeg

from preprocessing.build_shards import main
from tests.paths import REPOSITORY
from tests.preprocessing.coded_video import coded_frame, steady, write_video
from tests.preprocessing.world import overwrite

CHUNK_SECONDS = 4
SIZE = (160, 120)  # pixels of the sources
SECONDS = {"v1": 13.0, "v.2 ü": 9.0, "broken": 12.0, "nonsense": 20.0, "absent": 30.0}
SOUND = ("v1", "v.2 ü")
TIMES = ((0.1, 1.3), (3.8, 4.4), (5.0, 5.1), (6.0, 8.5))  # s of clips in each video; the second crosses chunks
LATE = (80.0, 81.0)
SETS = ("egomcq", "summarymcq", "epic_mir", "charades_ego", "howto100m")


@dataclass(frozen=True)
class BenchmarkWorld:
    """Videos and the benchmarks' files below `root`."""

    root: Path

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    def annotations(self, set_name: str) -> list[str]:
        """Return the overrides for a set's annotation files."""
        keys = {
            "egomcq": {"": "egomcq.json"},
            "summarymcq": {"": "summarymcq_full.json"},
            "epic_mir": {
                ".train": "epic_train.csv",
                ".train_sentences": "epic_train_sentence.csv",
                ".test": "epic_test.csv",
                ".test_sentences": "epic_test_sentence.csv",
            },
            "charades_ego": {
                ".train": "charades_train.csv",
                ".test": "charades_test.csv",
                ".classes": "classes.txt",
            },
            "howto100m": {".train": "howto_train.csv", ".val": "howto_val.csv"},
        }[set_name]
        return [f"annotations.{set_name}{key}={self.root / name}" for key, name in keys.items()]

    def build(self, output: Path, sets: Sequence[str], *overrides: str) -> int:
        """Build some sets in this process with the configuration of the first; return the exit code."""
        arguments = [
            f"--config={REPOSITORY / 'configs' / 'preprocess' / f'{sets[0]}.yaml'}",
            f"output={output / 'shards'}",
            f"work={output / 'work'}",
            f"videos.root={self.videos}",
            "videos.pattern='*'",
            "videos.allow_missing=false",
            "annotations.metadata=null",
            f"chunk.seconds={CHUNK_SECONDS}",
            "chunk.short_side=96",
            "shard.max_samples=8",
            "dask.workers=1",
            "max_failed_fraction=0.8",
            "licence=Made for tests.",
        ]
        files = [override for name in sets for override in self.annotations(name)]
        return main([*arguments, *files, *overrides])


def make_benchmark_world(root: Path) -> BenchmarkWorld:
    """Return a world with every benchmark over the same videos."""
    world = BenchmarkWorld(root)
    for uid in ("v1", "v.2 ü", "broken"):
        write_video(world.videos / f"{uid}.mp4", steady(SECONDS[uid]), size=SIZE, options={"crf": "28"})
    overwrite(world.videos / "broken.mp4", 0.45, 0.5)
    (world.videos / "nonsense.mp4").write_bytes(b"this is no video\n" * 50)
    write_questions(root / "egomcq.json", kinds=(1, 2))
    write_questions(root / "summarymcq_full.json", kinds=(3,))
    for split, uids in (("train", ("v1", "broken")), ("test", ("v.2 ü", "absent", "nonsense"))):
        write_epic(root, split, uids)
    write_charades(root)
    for split, uids in (("train", ("v1", "absent")), ("val", ("v.2 ü", "broken"))):
        rows = [(uid, start, end, 30, i) for uid in uids for i, (start, end) in enumerate(((0.0, 7.5), (5.0, 8.9)))]
        columns = ("video_uid", "clip_start", "clip_end", "fps", "label")
        write_rows(root / f"howto_{split}.csv", columns, [*rows, ("v1", 0, 5, 30, "tea")], "\t")
    return world


def write_questions(path: Path, kinds: Sequence[int]) -> None:
    """Write, for each time and kind, a question whose choices are that time in each video; and a malformed one."""
    tree: dict[str, Any] = {}
    for time in (*TIMES, LATE):
        for kind in kinds:
            choices = {str(i): _leaf(uid, time) for i, uid in enumerate(SECONDS)}
            answer = len(tree) % len(choices)
            tree[str(len(tree))] = {
                "query": choices[str(answer)],
                "answer": answer,
                "choices": choices,
                "types": kind,
            }
    tree[str(len(tree))] = {**tree["0"], "answer": 9}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def write_epic(root: Path, split: str, uids: Sequence[str], *, fps: int = 60) -> None:
    """Write a retrieval table over some videos, and the table of its sentences."""
    rows = []
    for uid in uids:
        for i, (start, end) in enumerate(TIMES):
            clock = [f"00:00:{time:05.2f}" for time in (start, end)]
            numbers = [int(time * fps) + 1 for time in (start, end)]
            rows.append((f"{uid}_{i}", uid, *clock, *numbers, f"cut {i}", i, f"[{i}, 20]"))
    columns = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "start_frame", "stop_frame")
    write_rows(root / f"epic_{split}.csv", (*columns, "narration", "verb_class", "all_noun_classes"), rows, ",")
    sentences = [(f"{uids[0]}_{i}", f"cut {i}") for i in range(len(TIMES))]
    write_rows(root / f"epic_{split}_sentence.csv", ("narration_id", "narration"), sentences, ",")


def write_charades(root: Path) -> None:
    """Write action segments of two videos, and a table of whole videos."""
    (root / "classes.txt").write_text("c000 Holding some clothes\nc001 FfmpegInput a door\n")
    columns = ("id", "cls", "t_start", "t_end", "narration")
    rows = [(uid, f"c00{i % 2}", *time, "") for uid in ("v1", "absent") for i, time in enumerate(TIMES)]
    write_rows(root / "charades_train.csv", columns, [*rows, ("v1", "c157", 0, 1, "")], "\t")
    whole = [("v.2 ü", "c001 0.00 2.10;c000 1 2"), ("broken", "c000 0 1"), ("nonsense", "")]
    write_rows(root / "charades_test.csv", ("id", "actions"), whole, ",")


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str) -> None:
    """Write a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(rows)


def write_frames(folder: Path, count: int, *, size: tuple[int, int] = SIZE) -> Path:
    """Write coded frames 0 … `count` − 1 as `frame_0000000001.jpg` and so on."""
    folder.mkdir(parents=True)
    for number in range(count):
        jpg = simplejpeg.encode_jpeg(coded_frame(number, *size), quality=95)
        (folder / f"frame_{number + 1:010d}.jpg").write_bytes(jpg)
    return folder


def _leaf(uid: str, time: tuple[float, float]) -> dict[str, Any]:
    return {
        "video_uid": uid,
        "clip_start": time[0],
        "clip_end": time[1],
        "clip_text": f"#C C does {time[0]}",
        "tag_verb": None,
    }
