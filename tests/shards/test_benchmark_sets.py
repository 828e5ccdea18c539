"""The sets of benchmarks are supported everywhere: by the loader, other packages, verify, inspect and the card."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import av
import pytest

from shards import schema
from shards.companions import companion_path
from shards.config import LoaderConfig
from shards.dataset import Dataset
from shards.inspect import page
from shards.inspect.tables import tables
from shards.loader import Loader
from shards.stats import ShardError
from shards.verify.run import verify
from tests.paths import REPOSITORY
from tests.shards.benchmark_samples import key, make_benchmarks, sample

SPLITS = [(name, split) for name, spec in schema.SETS.items() if spec.is_benchmark for split in spec.splits]
HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def expected(set_name: str, split: str) -> dict[str, dict[str, object]]:
    made = [sample(set_name, index, split=split) for index in range(3)]
    return {one.key: schema.to_json(one.record) for one in made}


@pytest.mark.parametrize(("set_name", "split"), SPLITS)
def test_the_loader_reads_frames_of_clips_and_windows_of_long_samples(
    dataset: Dataset, set_name: str, split: str
) -> None:
    config = LoaderConfig(global_batch=2, frames=3, windows=2, size=32, workers=0)
    batches = list(Loader(dataset.root, set_name, split, config, is_training=False))
    assert [name for batch in batches for name in batch.keys] == [key(set_name, i, split) for i in range(3)]
    windows = (2,) if schema.SETS[set_name].is_long else ()
    assert batches[0].video.shape == (2, *windows, 3, 3, 32, 32)
    assert not any(batch.verbs_BV.any() or any(batch.narrations) or any(batch.failures) for batch in batches)


def test_scene_negatives_need_segments(dataset: Dataset) -> None:
    with pytest.raises(ShardError, match="egomcq: scene_negatives needs the field segment"):
        Loader(dataset.root, "egomcq", "test", LoaderConfig(scene_negatives=True), is_training=False)


def test_the_long_sets() -> None:
    assert [name for name, spec in schema.SETS.items() if spec.is_long] == ["summaries", "summarymcq", "howto100m"]


def test_each_set_has_its_own_letter() -> None:
    letters = [spec.letter for spec in schema.SETS.values()]
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize(("set_name", "split"), SPLITS)
def test_webdataset_reads_every_sample(dataset: Dataset, set_name: str, split: str) -> None:
    import webdataset as wds

    tars = [str(shard.path) for shard in dataset.sets[set_name][split].shards]
    seen = {}
    for one in wds.WebDataset(tars, shardshuffle=False).decode("pil"):
        with av.open(io.BytesIO(one["mp4"])) as container:
            assert sum(1 for _ in container.decode(video=0)) == one["json"]["num_frames"]
        assert one["txt"] == one["json"]["text"]
        seen[one["__key__"]] = one["json"]
    assert seen == expected(set_name, split)


@pytest.mark.parametrize("set_name", ["egomcq", "epic_mir", "howto100m"])
def test_datasets_finds_sets_and_splits_by_the_card(
    dataset: Dataset, set_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import datasets.config

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset(str(dataset.root), set_name)
    assert set(loaded) == {HUB_SPLITS[split] for split in schema.SETS[set_name].splits}
    for split in schema.SETS[set_name].splits:
        rows = loaded[HUB_SPLITS[split]].cast_column("mp4", datasets.Video(decode=False))
        assert {row["__key__"]: row["json"] for row in rows} == expected(set_name, split)


def test_verify_finds_no_problems(dataset: Dataset) -> None:
    assert verify(dataset.root).findings == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "absent"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "sha256 is"),
        (lambda path: path.write_text(path.read_text().replace('"answer": 0', '"answer": 7', 1)), "answer = 7"),
        (lambda path: path.write_text("{"), "not JSON"),
    ],
)
def test_verify_finds_altered_questions(dataset: Dataset, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(dataset.root, tmp_path / "d")
    damage(tmp_path / "d" / companion_path("egomcq", "test"))
    found = verify(tmp_path / "d").findings
    assert {finding.file for finding in found} == {"egomcq/test/questions.json"}
    assert any(message in finding.problem for finding in found)


def test_verify_finds_files_that_the_manifest_does_not_list(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.root, tmp_path / "d")
    (tmp_path / "d" / "egomcq" / "test" / "answers.json").write_text("{}")
    (found,) = verify(tmp_path / "d").findings
    assert found.file == "egomcq/test/answers.json" and "unexpected" in found.problem


def test_the_card_lists_fields_and_companions(dataset: Dataset) -> None:
    card = (dataset.root / "README.md").read_text()
    for set_name, spec in schema.SETS.items():
        assert (f"`{set_name}`: {spec.title}" in card) == spec.is_benchmark
        for split in spec.companions:
            assert f"- `{companion_path(set_name, split)}`" in card
    assert "`noun_classes`" in card and "`label`" in card


def test_the_manifest_has_the_hash_of_each_companion(dataset: Dataset) -> None:
    listed = json.loads((dataset.root / "dataset.json").read_text())["files"]
    assert {companion_path(name, split) for name, spec in schema.SETS.items() for split in spec.companions} < set(
        listed
    )


def test_inspect_shows_every_set(dataset: Dataset, tmp_path: Path) -> None:
    html = page.write(dataset, tmp_path / "page.html", samples=2).read_text()
    for set_name, split in SPLITS:
        assert f"{set_name}/{split}" in html and key(set_name, 0, split) in html
    assert len(list(tables(dataset))) >= 3


def test_the_docs_example_counts_answerable_questions(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPOSITORY / "docs" / "shards.md").read_text()
    example = text.split("## Questions and labels\n", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    exec(example.replace('"ROOT"', repr(str(dataset.root))), {})
    assert capsys.readouterr().out == "2 of 3 questions\n"
