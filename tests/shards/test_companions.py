"""Questions and labels are typed when they are read; invalid values are refused with their path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import companions, schema
from shards.config import SourceConfig
from shards.dataset import hash_json
from shards.sources import SourceError, open_source
from tests.shards.benchmark_samples import ABSENT, companion, key, make_benchmarks
from tests.shards.servers import faulty_server

SPLITS = [(name, split) for name, spec in schema.SETS.items() for split in spec.companions]


@pytest.mark.parametrize(("set_name", "split"), SPLITS)
def test_a_companion_is_restored_from_its_file(tmp_path: Path, set_name: str, split: str) -> None:
    made = companion(set_name, split)
    path = tmp_path / companions.companion_path(set_name, split)
    companions.write_companion(path, made)
    assert companions.read_companion(tmp_path, set_name, split) == made
    assert json.loads(path.read_text())["version"] == 1
    first = path.read_bytes()
    companions.write_companion(path, made)
    assert path.read_bytes() == first


def test_each_set_has_its_own_type(tmp_path: Path) -> None:
    for set_name, split in SPLITS:
        companions.write_companion(tmp_path / companions.companion_path(set_name, split), companion(set_name, split))
    questions = companions.read_questions(tmp_path / "egomcq/test/questions.json")
    assert questions.questions[1].choices == (key("egomcq", 1), key("egomcq", 0))
    assert questions.keys() == [*(key("egomcq", i) for i in range(3)), ABSENT]
    assert companions.read_companion(tmp_path, "epic_mir", "train", companions.EpicLabels).videos[1].noun_classes == (
        1,
        9,
    )
    assert (
        companions.read_companion(tmp_path, "charades_ego", "test", companions.CharadesLabels).videos[0].actions == ()
    )
    assert [
        video.label for video in companions.read_companion(tmp_path, "howto100m", "val", companions.HowToLabels).videos
    ] == [0, 1, 2]


@pytest.mark.parametrize(("set_name", "split"), SPLITS)
def test_a_companion_that_is_not_the_published_one_is_refused(tmp_path: Path, set_name: str, split: str) -> None:
    root = make_benchmarks(tmp_path / "dataset").root
    name = companions.companion_path(set_name, split)
    published = (root / name).read_bytes()
    source = open_source(root, SourceConfig())
    for altered in (published + b"\n", published[:-1], b"{}", published.replace(b" ", b"", 1), b"\0" + published[1:]):
        (root / name).write_bytes(altered)
        with pytest.raises(companions.CompanionError, match=r"altered since dataset\.json was written: its sha256 is"):
            companions.read_companion(source, set_name, split)
    (root / name).write_bytes(published)
    assert companions.read_companion(source, set_name, split) == companion(set_name, split)
    (root / name).unlink()
    with pytest.raises(companions.CompanionError, match="no such file"):
        companions.read_companion(source, set_name, split)


def test_a_dataset_that_lists_no_hash_of_a_companion_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_benchmarks(tmp_path / "dataset").root
    manifest = json.loads((root / "dataset.json").read_bytes())
    manifest["files"] = {name: hash_ for name, hash_ in manifest["files"].items() if not name.startswith("egomcq/")}
    del manifest["sha256"]
    (root / "dataset.json").write_text(json.dumps({**manifest, "sha256": hash_json(manifest)}))
    found = companions.read_companion(open_source(root, SourceConfig()), "egomcq", "test")
    assert found == companion("egomcq", "test")
    assert "egomcq/test/questions.json is used unchecked: dataset.json lists no hash of it" in caplog.text


def test_a_fetched_companion_that_was_altered_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    root = make_benchmarks(tmp_path / "dataset").root
    with faulty_server(root) as server:
        config = SourceConfig(cache=tmp_path / "cache", first_wait_seconds=0.0)
        labels = companions.read_companion(open_source(server.url, config), "epic_mir", "test")
        (copy,) = (tmp_path / "cache").rglob("epic_mir/test/labels.json")
        copy.write_bytes(copy.read_bytes().replace(b"open", b"shut") + b" ")
        assert companions.read_companion(open_source(server.url, config), "epic_mir", "test") == labels
        assert server.requests["/epic_mir/test/labels.json"] == 2
        (root / "epic_mir" / "test" / "labels.json").write_bytes(copy.read_bytes() + b" ")
        copy.unlink()
        with pytest.raises(SourceError, match=r"epic_mir/test/labels\.json"):  # the server's own copy was altered
            companions.read_companion(open_source(server.url, config), "epic_mir", "test")


def test_companions_of_a_dataset_behind_a_url_are_fetched_and_checked(tmp_path: Path) -> None:
    root = make_benchmarks(tmp_path / "dataset").root
    labels = companions.read_companion(root, "epic_mir", "test", companions.EpicLabels)
    path = "/epic_mir/test/labels.json"
    with faulty_server(root) as server:
        source = open_source(server.url, SourceConfig(cache=tmp_path / "cache", first_wait_seconds=0.0))
        server.faults[path].append("wrong")
        for _ in range(2):
            assert companions.read_companion(source, "epic_mir", "test", companions.EpicLabels) == labels
        assert server.requests[path] == 2  # the altered reply and its repetition; the copy serves the second call
        (source.file("epic_mir/test/labels.json")).write_text("{}")
        assert companions.read_companion(source, "epic_mir", "test") == labels  # an altered copy is fetched again
        server.faults["/howto100m/val/labels.json"].append("403")
        with pytest.raises(SourceError, match=r"/howto100m/val/labels\.json: HTTP 403"):
            companions.read_companion(source, "howto100m", "val")


def test_a_companion_of_another_kind_than_expected_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        companions.CompanionError, match=r"epic_mir/test/labels\.json holds EpicLabels, not HowToLabels"
    ):
        companions.read_companion(tmp_path, "epic_mir", "test", companions.HowToLabels)


def test_missing_companions_are_named(tmp_path: Path) -> None:
    with pytest.raises(companions.CompanionError, match="clips/val has no questions or labels"):
        companions.read_companion(tmp_path, "clips", "val")
    with pytest.raises(companions.CompanionError, match=r"no such file; preprocessing/build_shards\.py writes it"):
        companions.read_companion(tmp_path, "charades_ego", "test", companions.CharadesLabels)


Change = Callable[[Any], Any]


def put(*path: str | int, value: Any) -> Change:
    """Return what sets one place of a tree."""

    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        del tree[path[-1]]

    return change


@pytest.mark.parametrize(
    ("set_name", "change", "message"),
    [
        ("egomcq", put("version", value=2), "version 2, this code reads 1"),
        ("egomcq", put("questions", 0, "answer", value=3), "question 0: answer = 3; expected 0 … 2"),
        ("egomcq", put("questions", 0, "answer", value=-1), "question 0: answer = -1"),
        ("egomcq", put("questions", 0, "answer", value=True), r"questions\[0\]\.answer: int is expected, not True"),
        ("egomcq", put("questions", 0, "answer", value="1"), "answer: int is expected, not '1'"),
        ("egomcq", put("questions", 0, "type", value="outer"), "one of inter, intra, summary is expected, not 'outer'"),
        ("egomcq", put("questions", 0, "type", value=["inter"]), "is expected"),
        ("egomcq", put("questions", 0, "choices", 1, value="../../etc"), "question 0: '../../etc' is not a valid key"),
        ("egomcq", put("questions", 0, "choices", value=["a"]), "question 0: 1 choices"),
        ("egomcq", put("questions", 0, "choices", value={}), "choices: a list is expected"),
        ("egomcq", put("questions", 0, "text", value=" "), "question 0: the text is empty"),
        ("egomcq", put("questions", 1, "id", value="0"), "question 0 is repeated"),
        ("egomcq", put("questions", 0, "hint", value=1), r"unknown fields \['hint'\]"),
        ("egomcq", drop("questions", 0, "type"), r"questions\[0\]: missing fields \['type'\]"),
        ("egomcq", drop("questions"), r"missing fields \['questions'\]"),
        ("egomcq", put("questions", value=None), "questions: a list is expected, not None"),
        ("epic_mir", put("videos", 0, "verb_class", value=97), "P01_01_0: verb_class = 97; expected 0 … 96"),
        ("epic_mir", put("sentences", 1, "noun_classes", value=[]), "P01_01_1: noun_classes = []"),
        ("epic_mir", put("sentences", 1, "noun_classes", value=[300]), "0 … 299"),
        ("epic_mir", put("videos", 0, "key", value=""), r"videos\[0\]: '' is not a valid key"),
        ("epic_mir", put("videos", 1, "narration_id", value="P01_01_0"), "P01_01_0 is repeated"),
        ("charades_ego", put("videos", 1, "actions", value=[2]), "classes are 0 … 1"),
        ("charades_ego", put("videos", 1, "actions", value=[0.0]), "int is expected, not 0.0"),
        ("howto100m", put("videos", 1, "label", value=-1), "label = -1; classes start at 0"),
        ("howto100m", put("classes", value=["a", "b"]), "label = 2; classes are 0 … 1"),
    ],
)
def test_invalid_values_are_refused_with_their_path(
    tmp_path: Path, set_name: str, change: Change, message: str
) -> None:
    split = next(iter(schema.SETS[set_name].companions))
    tree = companions.to_json(companion(set_name, split))
    change(tree)
    path = tmp_path / companions.companion_path(set_name, split)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(tree))
    with pytest.raises(companions.CompanionError, match=message.replace("[]", r"\[\]")) as caught:
        companions.read_companion(tmp_path, set_name, split)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00", '{"version": 1'])
def test_a_file_that_is_not_a_companion_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(companions.CompanionError, match=r"q\.json"):
        companions.read_questions(tmp_path / "q.json")


def test_an_invalid_companion_is_not_written(tmp_path: Path) -> None:
    bad = companions.HowToLabels(classes=("a",), videos=(companions.HowToVideo(key="k", label=1),))
    with pytest.raises(companions.CompanionError, match="label = 1"):
        companions.write_companion(tmp_path / "labels.json", bad)
    assert not list(tmp_path.iterdir())
