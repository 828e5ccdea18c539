"""Builds in which a set ends up without samples: the others are built, verified and can be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocessing.build_shards import main
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.inspect.__main__ import main as inspect
from shards.loader import Loader
from shards.verify.__main__ import main as verify
from tests.paths import REPOSITORY
from tests.preprocessing.annotation_files import CLIP_COLUMNS, SUMMARY_COLUMNS, delimited, question, table, write
from tests.preprocessing.annotation_files import row as annotated
from tests.preprocessing.annotations.test_epic_mir import EPIC_COLUMNS, epic_row
from tests.preprocessing.coded_video import steady, write_video
from tests.preprocessing.world import ledger_of

pytestmark = pytest.mark.medium

FIELD = REPOSITORY / "tests" / "preprocessing" / "annotations" / "field"
FILES = {
    "egoclip": "egoclip.csv",
    "egosummary": "egosummary_full.csv",
    "narrations": "narration.json",
    "egomcq": "egomcq.json",
    "summarymcq": "summarymcq_full.json",
    "epic_mir.train": "epic.csv",
    "epic_mir.train_sentences": "epic_sentences.csv",
    "charades_ego.classes": "classes.txt",
    "charades_ego.train": "charades.csv",
    "charades_ego.test": "charades_test.csv",
    "howto100m.train": "howto.csv",
}
CHARADES = ["id", "cls", "t_start", "t_end", "narration"]
HOWTO = ["video_uid", "clip_start", "clip_end", "fps", "label"]
EMPTY: dict[str, Any] = {
    "egoclip": table([], CLIP_COLUMNS),
    "egosummary": table([], SUMMARY_COLUMNS),
    "narrations": {},
    "egomcq": {},
    "summarymcq": {},
    "epic_mir.train": delimited([], EPIC_COLUMNS, ","),
    "epic_mir.train_sentences": delimited([], ["narration_id", "narration"], ","),
    "charades_ego.classes": "c000 Holding some clothes\n",
    "charades_ego.train": delimited([], CHARADES, "\t"),
    "charades_ego.test": delimited([], ["id", "actions"], ","),
    "howto100m.train": delimited([], HOWTO, "\t"),
}


def filled(name: str, uid: str) -> dict[str, Any]:
    """Return the content of a set's files, over the first seconds of a video."""
    rows = [annotated(i, video_uid=uid, video_dur=6.0) for i in range(4)]
    spans = [annotated(0, video_uid=uid, clip_start=0.0, clip_end=4.0, clip_text="#Summary C cooks")]
    epic = [
        epic_row(i, video_id=uid, start_timestamp=f"00:00:0{i}.50", stop_timestamp=f"00:00:0{i + 1}.00")
        for i in range(3)
    ]
    narrations = [{"timestamp_sec": 0.5 + i, "narration_text": f"#C C does {i}"} for i in range(4)]
    choices = {str(i): {"video_uid": uid, "clip_start": 0.5 + i, "clip_end": 1.5 + i} for i in range(4)}
    return {
        "clips": {"egoclip": table(rows, CLIP_COLUMNS)},
        "summaries": {"egosummary": table(spans, SUMMARY_COLUMNS)},
        "narrations": {"narrations": {uid: {"narration_pass_1": {"narrations": narrations, "summaries": []}}}},
        "egomcq": {"egomcq": {"0": question(choices=choices)}},
        "summarymcq": {"summarymcq": {"0": question(choices=choices, kind=3)}},
        "epic_mir": {
            "epic_mir.train": delimited(epic, EPIC_COLUMNS, ","),
            "epic_mir.train_sentences": "narration_id,narration\nP01_11_0,take plate\n",
        },
        "charades_ego": {
            "charades_ego.train": "\t".join(CHARADES) + f"\n{uid}\tc000\t0.5\t2\tholds\n",
        },
        "howto100m": {"howto100m.train": "\t".join(HOWTO) + f"\n{uid}\t0\t4\t30\t0\n"},
    }[name]


class Case:
    """The videos of all builds here, with chunks that they share; `build` builds from some annotation files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for uid in ("u1", "u2"):
            write_video(root / "videos" / f"{uid}.mp4", steady(6.0))

    def build(self, folder: Path, contents: dict[str, Any], *overrides: str) -> int:
        """Build from files with these contents (configuration key → text or JSON) into `folder/shards`."""
        folder.mkdir(exist_ok=True)
        files = [f"annotations.{key}={write(folder / FILES[key], value)}" for key, value in contents.items()]
        return self.run(folder, *files, *overrides)

    def run(self, folder: Path, *overrides: str) -> int:
        arguments = [
            f"--config={REPOSITORY / 'configs' / 'preprocess' / 'ego4d.yaml'}",
            f"output={folder / 'shards'}",
            f"work={self.root / 'work'}",
            f"videos.root={self.root / 'videos'}",
            "annotations.exclude=[]",
            "annotations.metadata=null",
            "annotations.egoclip=null",
            "annotations.egosummary=null",
            "chunk.seconds=4",
            "chunk.short_side=96",
            "dask.workers=1",
        ]
        return main([*arguments, *overrides])


@pytest.fixture(scope="module")
def case(make_once: Callable[[str, Callable[[Path], Case]], Case]) -> Iterator[Case]:
    yield make_once("empty-sets", Case)


def check(folder: Path, expected: dict[str, int]) -> None:
    """Check that the dataset is sound and has these numbers of samples per set, which the loader reads."""
    root = folder / "shards"
    assert verify([str(root)]) == 0
    assert inspect([str(root)]) == 0
    assert inspect([str(root), "--html", str(folder / "page.html")]) == 0
    found: dict[str, int] = {}
    for set_name, split, entry in open_dataset(root).splits():
        found[set_name] = found.get(set_name, 0) + entry.samples
        config = LoaderConfig(global_batch=1, frames=2, size=32, windows=2, narrations=2, workers=0)
        with Loader(root, set_name, split, config, is_training=False) as loader:
            keys = [key for batch in loader for key in batch.keys]
        assert len(keys) == len(set(keys)) == entry.samples
    assert found == expected
    card = (root / "README.md").read_text()
    assert all(f"{name}/" in card for name in expected)
    rows = ledger_of(folder)
    assert sum(row["status"] == "packed" and row["set"] != "videos" for row in rows) == sum(expected.values())


def test_one_filled_set_is_built_beside_empty_ones(case: Case, tmp_path: Path) -> None:
    contents = {key: value for key, value in EMPTY.items() if key != "narrations"}
    assert case.build(tmp_path, contents | filled("clips", "u1")) == 0
    check(tmp_path, {"clips": 4})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("summaries", 1),
        ("narrations", 4),
        ("egomcq", 4),
        ("summarymcq", 4),
        ("epic_mir", 3),
        ("charades_ego", 1),
        ("howto100m", 1),
    ],
)
def test_each_set_is_built_beside_empty_ones(case: Case, tmp_path: Path, name: str, expected: int) -> None:
    contents = {key: value for key, value in EMPTY.items() if key != "narrations"} | filled(name, "u1")
    if name == "narrations":
        del contents["egoclip"], contents["egosummary"]
    assert case.build(tmp_path, contents) == 0
    check(tmp_path, {"clips" if name == "narrations" else name: expected})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["clips", "summaries", "egomcq", "summarymcq", "epic_mir", "charades_ego", "howto100m"]
)
def test_a_set_of_absent_videos_is_left_out(case: Case, tmp_path: Path, name: str) -> None:
    """All items of one set are filtered; those of the others are built."""
    other = "egomcq" if name != "egomcq" else "summarymcq"
    contents = {"egoclip": EMPTY["egoclip"]} if name == "summaries" else {}
    contents |= {"charades_ego.classes": EMPTY["charades_ego.classes"]} if name == "charades_ego" else {}
    contents |= filled(name, "absent") | filled(other, "u1")
    assert case.build(tmp_path, contents, "videos.allow_missing=true") == 0
    check(tmp_path, {other: 4})
    assert {row["reason"] for row in ledger_of(tmp_path) if row["set"] == name} == {"video absent"}


@pytest.mark.slow
def test_a_limit_that_selects_no_video_of_a_set_builds_the_others(case: Case, tmp_path: Path) -> None:
    contents = filled("clips", "u1") | filled("egomcq", "u2")
    assert case.build(tmp_path, contents, "videos.limit=1") == 0
    (chosen,) = open_dataset(tmp_path / "shards").sets
    check(tmp_path, {chosen: 4})
    assert sum(row["reason"] == "beyond videos.limit" for row in ledger_of(tmp_path)) == 5  # four clips and a video


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"egoclip": EMPTY["egoclip"], "egosummary": EMPTY["egosummary"]}, "have 0 rows"),
        (
            {"egoclip": table([annotated(1, clip_text=" "), annotated(2, tag_verb="x")])},
            "1 clips filtered: empty text; 1 clips failed: malformed tag_verb",
        ),
        (filled("clips", "u9"), "4 clips filtered: video absent"),
        ({"egomcq": {}, "narrations": {}}, "contains no question"),
        ({"howto100m.train": EMPTY["howto100m.train"]}, "nothing to build"),
    ],
)
def test_a_build_without_any_sample_is_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: dict[str, Any], message: str
) -> None:
    assert case.build(tmp_path, contents, "videos.allow_missing=true") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "shards" / "dataset.json").exists()


@pytest.mark.slow
def test_files_without_summaries_from_the_field(case: Case, tmp_path: Path) -> None:
    for number, key in enumerate(("egoclip", "narrations")):
        folder = tmp_path / key
        folder.mkdir()
        path = FIELD / ("egoclip.csv" if key == "egoclip" else "no-summaries.json")
        text = path.read_text().replace('"a": {"narr', '"u1": {"narr').replace('"b": {"narr', '"u2": {"narr')
        assert case.run(folder, f"annotations.{key}={write(folder / path.name, text)}") == 0
        check(folder, {"clips": (12, 8)[number]})


def test_unreadable_lengths_from_the_field(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"classes": "charades_classes.txt", "test": "charades_length_nan.csv"}
    assert case.run(tmp_path, *(f"annotations.charades_ego.{key}={FIELD / name}" for key, name in files.items())) == 0
    check(tmp_path, {"charades_ego": 2})
    labels = json.loads((tmp_path / "shards" / "charades_ego" / "test" / "labels.json").read_text())
    assert [video["actions"] for video in labels["videos"]] == [[1, 92], [2]]
    assert "1 values of the column length are ignored" in " ".join(capsys.readouterr().out.split())
