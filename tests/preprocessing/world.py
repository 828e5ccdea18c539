"""A small dataset in EgoClip's format for tests of whole builds: coded videos, some of them broken or missing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from shards.keys import make_key
from tests.paths import REPOSITORY
from tests.preprocessing.coded_video import steady, write_video

COLUMNS = ["video_uid", "video_dur", "narration_source", "narration_ind", "narration_time", "clip_start", "clip_end",
           "clip_text", "tag_verb", "tag_noun"]  # fmt: skip
CHUNK_SECONDS = 4


@dataclass
class World:
    """Videos and annotation files below `root`."""

    root: Path
    durations: dict[str, float] = field(default_factory=dict)
    clips: list[dict[str, object]] = field(default_factory=list)
    summaries: list[dict[str, object]] = field(default_factory=list)

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    def video(self, uid: str, seconds: float, *, extension: str = "mp4", **options: object) -> Path:
        """Add a coded video that lasts `seconds`."""
        self.durations[uid] = seconds
        fps = options.pop("fps", 30)
        return write_video(self.videos / f"{uid}.{extension}", steady(seconds, fps), **options)

    def clip(self, uid: str, start: float, end: float, text: str, *, tags: bool = True, source: int = 1) -> str:
        """Add a narration; return its key."""
        return self._add(self.clips, "c", uid, start, end, f"#C C {text}", tags, source)

    def summary(self, uid: str, start: float, end: float, text: str, *, tags: bool = True, source: int = 1) -> str:
        """Add a summary; return its key."""
        return self._add(self.summaries, "s", uid, start, end, f"#Summary C {text}", tags, source)

    def _add(
        self,
        rows: list[dict[str, object]],
        letter: str,
        uid: str,
        start: float,
        end: float,
        text: str,
        tags: bool,
        n: int,
    ) -> str:
        index = len(rows)
        rows.append(
            {
                "video_uid": uid,
                "video_dur": self.durations.get(uid, 60.0),
                "narration_source": f"narration_pass_{n}",
                "narration_ind": index,
                "narration_time": (start + end) / 2,
                "clip_start": start,
                "clip_end": end,
                "clip_text": text,
                "tag_verb": json.dumps([index % 118]) if tags else "[]",
                "tag_noun": json.dumps([index % 582, 7]) if tags else "[]",
            }
        )
        return make_key(uid, letter, n, index)

    def copy(self, root: Path) -> World:
        """Return a copy below `root`, which can be modified."""
        shutil.copytree(self.root, root, copy_function=shutil.copy2)
        return replace(self, root=root, clips=list(self.clips), summaries=list(self.summaries))

    def write(self) -> None:
        """Write the annotation files."""
        self.root.mkdir(parents=True, exist_ok=True)
        for name, rows, extra in (
            ("egoclip.csv", self.clips, ["clip_idx"]),
            ("egosummary_full.csv", self.summaries, []),
        ):
            with (self.root / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [*extra, *COLUMNS], delimiter="\t")
                writer.writeheader()
                writer.writerows({**row, **dict.fromkeys(extra, i)} for i, row in enumerate(rows))
        videos = [
            {
                "video_uid": uid,
                "duration_sec": seconds,
                "is_stereo": False,
                "split_em": "val" if uid == "val" else "train",
                "split_av": None,
                "split_fho": None,
            }
            for uid, seconds in self.durations.items()
        ]
        (self.root / "ego4d.json").write_text(json.dumps({"videos": videos}))

    def arguments(self, output: Path, *overrides: str) -> list[str]:
        """Return the command line that builds this world into the folders `shards` and `work` of `output`."""
        return [sys.executable, str(REPOSITORY / "preprocessing" / "build_shards.py"), *self.options(output, overrides)]

    def options(self, output: Path, overrides: Sequence[str] = ()) -> list[str]:
        """Return the arguments of that command line."""
        return [
            f"--config={REPOSITORY / 'configs' / 'preprocess' / 'ego4d.yaml'}",
            f"output={output / 'shards'}",
            f"work={output / 'work'}",
            f"videos.root={self.videos}",
            f"annotations.egoclip={self.root / 'egoclip.csv'}",
            f"annotations.egosummary={self.root / 'egosummary_full.csv'}",
            f"annotations.metadata={self.root / 'ego4d.json'}",
            "annotations.exclude=[]",
            f"chunk.seconds={CHUNK_SECONDS}",
            "chunk.short_side=96",
            "shard.max_samples=16",
            "dask.workers=2",
            "max_failed_fraction=0.7",
            *overrides,
        ]

    def build(self, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        """Build in a separate process, as a user would."""
        return subprocess.run(
            self.arguments(output, *overrides),
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=os.environ,
            timeout=300,
        )


def make_world(root: Path) -> World:
    """Return a world with intact, irregular, broken, unreadable and missing videos."""
    world = World(root=root)
    world.video("plain", 13.0)
    world.video("val", 9.0)
    world.video("odd.id ü", 9.0, extension="mkv", start=2.5, fps=Fraction(30000, 1001))
    world.video("broken", 12.0, options={"crf": "28"})
    overwrite(world.videos / "broken.mp4", 0.45, 0.5)
    (world.videos / "nonsense.mp4").write_bytes(b"this is no video\n" * 50)
    world.durations |= {"nonsense": 20.0, "absent": 30.0}
    for uid in ("plain", "val", "odd.id ü", "broken", "nonsense", "absent"):
        for second in range(0, 8, 2):
            world.clip(uid, second + 0.1, second + 1.3, f'does "thing" {second}\nin {uid}', tags=second != 0)
        world.clip(uid, 3.8, 4.4, "works across a chunk boundary")
        world.clip(uid, 5.0, 5.1, "blinks")
        world.clip(uid, 80.0, 81.0, "comes too late")
        world.summary(uid, 0.0, 7.5, "prepared tea")
    world.summary("plain", 2.0, 12.9, "prepared tea")
    world.summary("plain", 12.0, 12.9, "did nothing", source=2)
    world.write()
    return world


def overwrite(path: Path, start: float, end: float, *, zeros: bool = False) -> None:
    """Overwrite the part of a file from `start` to `end` (fractions of its size) with noise or zeros."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * end)
    data[first:last] = bytes(last - first) if zeros else np.random.default_rng(0).bytes(last - first)
    path.write_bytes(data)


def files_of(root: Path) -> dict[str, bytes]:
    """Return the content of every file of a dataset by relative path, without the code revision that two files state.

    A commit between two builds would otherwise make them different.
    """
    files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    if "dataset.json" in files:
        manifest = json.loads(files["dataset.json"])
        revision = manifest["provenance"].pop("code_revision").encode()
        del manifest["sha256"], manifest["files"]["README.md"]
        files["dataset.json"] = json.dumps(manifest).encode()
        files["README.md"] = files["README.md"].replace(revision, b"REVISION")
    return files


def ledger_of(output: Path) -> list[dict[str, str]]:
    """Return the ledger's rows."""
    return pq.read_table(output / "shards" / "ledger.parquet").to_pylist()
