"""Exclusions and splits that change after a build are carried out or refused, and never passed over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocessing.build_shards import main
from shards.dataset import open_dataset
from shards.verify.__main__ import main as verify
from tests.preprocessing.world import World, files_of, ledger_of

pytestmark = pytest.mark.medium


class Lists:
    """A finished build over four videos, and the lists that its command line names, all below `root`.

    Video d is in the list of validation videos and e in that of excluded ones.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = root / "o"

    @property
    def world(self) -> World:
        return World(root=self.root / "in")

    @property
    def excluded(self) -> Path:
        return self.root / "excluded.txt"

    @property
    def val(self) -> Path:
        return self.root / "val.txt"

    @property
    def denylist(self) -> Path:
        return self.output / "shards" / "denylist.txt"

    def denied(self) -> frozenset[str]:
        """Return the videos that loaders skip."""
        return open_dataset(self.output / "shards").denylist

    def build(self, *overrides: str) -> int:
        """Run the command; later overrides count more."""
        lists = (f"annotations.exclude=[{self.excluded}]", f"annotations.val_list={self.val}", "dask.workers=1")
        return main(self.world.options(self.output, (*lists, *overrides)))

    def packed(self) -> dict[tuple[str, str], set[str]]:
        """Return (set, split) → the videos of its samples."""
        return {
            (name, split): set(entry.rows(["video_uid"])["video_uid"].to_pylist())
            for name, split, entry in open_dataset(self.output / "shards").splits()
        }

    def state(self) -> dict[str, bytes]:
        """Return the content of every file that the command wrote."""
        return {
            str(path.relative_to(self.output)): path.read_bytes()
            for path in sorted(self.output.rglob("*"))
            if path.is_file()
        }


def make_lists(root: Path) -> Lists:
    lists = Lists(root)
    world = lists.world
    for uid in "abcde":
        world.video(uid, 3.0)
        for second in range(2):
            world.clip(uid, second + 0.1, second + 0.9, f"does thing {second} in {uid}")
        world.summary(uid, 0.0, 2.5, f"did things in {uid}")
    world.write()
    lists.excluded.write_text("e\n")
    lists.val.write_text("d\n")
    assert lists.build() == 0
    return lists


@pytest.fixture(scope="module")
def made(make_once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """The folder of the finished build; not to be modified."""
    return make_once("lists", lambda folder: make_lists(folder / "lists").root)


@pytest.fixture
def lists(made: Path, tmp_path: Path) -> Lists:
    """A copy of the finished build."""
    shutil.copytree(made, tmp_path / "lists", copy_function=shutil.copy2)
    return Lists(tmp_path / "lists")


def test_an_unchanged_command_has_nothing_to_do(lists: Lists, capsys: pytest.CaptureFixture[str]) -> None:
    assert lists.packed() == {(name, split): set(uids) for name in ("clips", "summaries")
                              for split, uids in (("train", "abc"), ("val", "d"))}  # fmt: skip
    before = lists.state()
    assert lists.build() == 0 and "nothing to build" in capsys.readouterr().out
    assert lists.state() == before


def test_a_video_excluded_later_is_withdrawn_and_restored_when_it_is_excluded_no_more(
    lists: Lists, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = {name: data for name, data in lists.state().items() if name.endswith((".tar", "_stats.json"))}
    lists.denylist.write_text("c  # asked for by the family\n")
    for content, expected in (("b\ne\n", "bc"), ("a\ne\nd\n", "acd"), ("c\ne\n", "c"), ("b\ne\n", "bc"), ("e\n", "c")):
        lists.excluded.write_text(content)
        before = lists.state()
        assert lists.build("--dry-run") == 0 and lists.state() == before
        assert lists.build() == 0
        assert "nothing to build" not in capsys.readouterr().out
        assert lists.denied() == set(expected)
        assert lists.denylist.read_text().startswith("c  # asked for by the family\n")
        assert open_dataset(lists.output / "shards").provenance["excluded_videos"] == len(content.split())
        assert lists.build() == 0 and "nothing to build" in capsys.readouterr().out
    assert tars.items() <= lists.state().items()
    assert verify([str(lists.output / "shards")]) == 0


def test_a_withdrawn_video_is_named_and_so_is_the_file(lists: Lists, capsys: pytest.CaptureFixture[str]) -> None:
    lists.excluded.write_text("e\nb\n")
    assert lists.build("--dry-run") == 0
    assert f"1 video (b) would be added to {lists.denylist}" in capsys.readouterr().out
    assert lists.build() == 0
    assert f"1 video (b) are added to {lists.denylist}" in capsys.readouterr().out
    assert lists.denylist.read_text() == "b  # annotations.exclude: excluded.txt\n"
    lists.denylist.unlink()  # a proof at every start, not only when a list has changed
    assert lists.build() == 0 and lists.denied() == {"b"}


def test_a_known_file_that_is_newly_named_as_exclusion_is_not_passed_over(lists: Lists) -> None:
    assert lists.build(f"annotations.exclude=[{lists.excluded}, {lists.world.root / 'egoclip.csv'}]") == 0
    assert lists.denied() == set("abcd")


def test_a_video_that_is_excluded_no_more_is_appended(lists: Lists, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: data for name, data in lists.state().items() if name.endswith((".tar", "_stats.json"))}
    assert lists.build("annotations.exclude=[]") == 0
    assert lists.packed()["clips", "train"] == lists.packed()["summaries", "train"] == set("abce")
    assert before.items() <= lists.state().items() and not lists.denied()
    assert {row["status"] for row in ledger_of(lists.output) if row["video_uid"] == "e"} == {"packed"}
    assert open_dataset(lists.output / "shards").config["annotations"]["exclude"] == []
    capsys.readouterr()
    assert lists.build("annotations.exclude=[]") == 0 and "nothing to build" in capsys.readouterr().out
    assert lists.build() == 0 and lists.denied() == {"e"}


@pytest.mark.parametrize(
    ("val", "named"),
    [
        ("d\nb\n", "clips/train now belong to val"),
        ("b\n", "(d)"),
        ("# none\nunknown\n", "clips/val now belong to train"),
    ],
)
def test_a_video_that_moved_between_splits_is_refused_before_anything_is_written(
    val: str, named: str, lists: Lists, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lists.state()
    lists.val.write_text(val)
    if named == "(d)":  # both directions at once
        named = "1 video ("
    assert lists.build() == 2
    message = capsys.readouterr().err
    assert named in message and "annotations.val_list" in message and str(lists.denylist) in message
    assert lists.state() == before
    moved = set(val.split()) ^ {"d"}
    lists.denylist.write_text("\n".join(sorted(moved & set("abcd"))))  # the remedy that the message names
    assert lists.build() == 0


def test_a_list_or_metadata_that_is_left_out_is_refused_where_it_moves_videos(
    lists: Lists, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lists.build("annotations.val_list=null") == 2 and "1 video (d)" in capsys.readouterr().err
    known = json.loads((lists.world.root / "ego4d.json").read_text())
    for video in known["videos"]:
        video["split_em"] = "test" if video["video_uid"] == "a" else "train"
    (lists.world.root / "ego4d.json").write_text(json.dumps(known))
    assert lists.build() == 2
    assert "1 video (a) in published shards of clips/train now belong to test" in capsys.readouterr().err
    assert lists.build("annotations.split_fields=[]") == 0


def test_swapped_lists_are_noticed_though_each_file_is_known(lists: Lists, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = (f"annotations.exclude=[{lists.val}]", f"annotations.val_list={lists.excluded}")
    assert lists.build(*swapped) == 0
    assert lists.denied() == {"d"}
    assert lists.packed()["clips", "val"] == {"d", "e"}
    capsys.readouterr()
    assert lists.build(*swapped) == 0 and "nothing to build" in capsys.readouterr().out


def test_an_unfinished_build_is_finished_with_its_own_lists_first(
    lists: Lists, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = files_of(lists.output / "shards")
    del expected["dataset.json"]  # it states where the lists are
    (lists.output / "shards" / "dataset.json").unlink()  # as if killed before publishing
    (lists.output / "shards" / "clips" / "val" / "00000_stats.json").unlink()  # and while writing a shard
    before = lists.state()
    for path, content in ((lists.excluded, "e\nb\n"), (lists.excluded, "# none\nf\n"), (lists.val, "b\nd\n")):
        kept = path.read_text()
        path.write_text(content)
        assert lists.build() == 2 and "unfinished build with a different plan" in capsys.readouterr().err
        assert lists.state() == before
        path.write_text(kept)
    assert lists.build() == 0
    assert expected.items() <= files_of(lists.output / "shards").items()


def test_a_video_that_a_benchmark_of_the_same_dataset_needs_cannot_be_withdrawn(
    lists: Lists, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = {"video_uid": "b", "clip_start": 0.1, "clip_end": 0.9, "clip_text": "#C C does", "tag_verb": None}
    others = [{**clip, "clip_start": 0.1 + i / 10} for i in range(5)]
    question = {"query": clip, "answer": 0, "choices": {str(i): row for i, row in enumerate(others)}, "types": 1}
    (lists.root / "egomcq.json").write_text(json.dumps({"0": question}))
    exclude = f"annotations.exclude=[{lists.excluded}, {lists.root / 'egomcq.json'}]"
    before = lists.state()
    assert lists.build(exclude, f"annotations.egomcq={lists.root / 'egomcq.json'}") == 2
    message = capsys.readouterr().err
    assert "1 video (b)" in message and "egomcq" in message and str(lists.output / "work") in message
    assert lists.state() == before
    assert lists.build(exclude) == 0 and lists.denied() == {"b"}
    only = ("annotations.egoclip=null", "annotations.egosummary=null", "annotations.val_list=null",
            "annotations.exclude=[]", f"annotations.egomcq={lists.root / 'egomcq.json'}")  # fmt: skip
    assert lists.build(*only) == 2 and "egomcq, there too, needs them" in capsys.readouterr().err
    assert lists.denied() == {"b"}  # a build of benchmarks does not restore what pretraining excludes
