"""webdataset, wids, datasets, open_clip and GNU tar read the shards; each test uses the real package."""

from __future__ import annotations

import io
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from PIL import Image

import hiervl_train.models.torchvision_ops  # noqa: F401  open_clip imports torchvision, which this makes importable
from shards import schema
from shards.index import Dataset
from tests.shards import samples

DOCS = Path(__file__).parents[2] / "docs" / "shards.md"


@pytest.fixture
def dataset(sample_dataset: Dataset) -> Dataset:
    return sample_dataset


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "wids"))


def expected(dataset: Dataset, set_name: str, split: str) -> dict[str, dict[str, Any]]:
    """Return key → record of a split, computed from the samples of `samples.make_dataset`."""
    first = [samples.clip(0, tags=()), *(samples.clip(i, tags=(i, 2)) for i in range(1, 4))]
    made = {
        ("clips", "train"): first
        + [samples.clip(i, video=samples.DOTTED_VIDEO, tags=() if i < 2 else (5,)) for i in range(4)],
        ("clips", "val"): [samples.clip(i, video="val-video", tags=()) for i in range(3)],
        ("summaries", "train"): [
            samples.summary(0),
            samples.summary(1, narrations=first[1:]),
            samples.summary(2, narrations=first[1:2]),
        ],
    }
    return {sample.key: schema.to_json(sample.record) for sample in made[set_name, split]}


def decodes(mp4: bytes) -> int:
    with av.open(io.BytesIO(mp4)) as container:
        return sum(1 for _ in container.decode(video=0))


def docs_example(title: str) -> str:
    """Return the code under a heading of docs/shards.md."""
    section = DOCS.read_text().split(f"### {title}\n", 1)[1]
    found = re.search(r"```python\n(.*?)```", section, re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("set_name", ["clips", "summaries"])
def test_webdataset_reads_every_sample(dataset: Dataset, set_name: str) -> None:
    import webdataset as wds

    tars = [str(shard.path) for shard in dataset.sets[set_name]["train"].shards]
    seen = {}
    for sample in wds.WebDataset(tars, shardshuffle=False).decode("pil"):
        assert sample["jpg"].size == (samples.WIDTH, samples.HEIGHT)
        assert decodes(sample["mp4"]) == sample["json"]["num_frames"]
        assert sample["txt"] == sample["json"]["text"]
        seen[sample["__key__"]] = sample["json"]
    assert seen == expected(dataset, set_name, "train")


def test_wids_reads_any_sample_by_its_index(dataset: Dataset) -> None:
    import wids

    folder = dataset.root / "clips" / "train"
    reader = wids.ShardListDataset(str(folder / "shardindex.json"), keep=True)
    assert len(reader) == 8
    seen = {}
    for index in (7, 0, 3, 4, 1, 2, 6, 5):
        sample = reader[index]
        assert decodes(sample[".mp4"].read()) == sample[".json"]["num_frames"]
        assert sample[".txt"] == sample[".json"]["text"]
        seen[sample["__key__"]] = sample[".json"]
    assert seen == expected(dataset, "clips", "train")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("set_name", "split"), [("clips", "train"), ("clips", "val"), ("summaries", "train")])
def test_datasets_finds_sets_and_splits_by_the_card(
    dataset: Dataset, set_name: str, split: str, streaming: bool
) -> None:
    import datasets

    hub_split = {"train": "train", "val": "validation"}[split]
    loaded = datasets.load_dataset(str(dataset.root), set_name, streaming=streaming)
    assert set(loaded) == {"train", "validation"}
    rows = loaded[hub_split].cast_column("mp4", datasets.Video(decode=False))
    seen = {}
    for row in rows:
        assert row["jpg"].size == (samples.WIDTH, samples.HEIGHT)
        assert decodes(row["mp4"]["bytes"]) == row["json"]["num_frames"]
        assert row["txt"] == row["json"]["text"]
        seen[row["__key__"]] = row["json"]
    assert seen == expected(dataset, set_name, split)


def test_datasets_infers_the_types_without_the_card(dataset: Dataset) -> None:
    """The first sample of a tar has no empty list, although the first sample of the set has no tags."""
    import datasets

    tars = [str(shard.path) for shard in dataset.sets["summaries"]["train"].shards]
    rows = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train")
    seen = {row["__key__"]: row["json"] for row in rows.remove_columns(["mp4", "jpg"])}
    assert seen == expected(dataset, "summaries", "train")


@pytest.mark.usefixtures("open_clip_expander")
def test_open_clip_trains_on_key_frames_and_captions(dataset: Dataset) -> None:
    data, received = run_open_clip(dataset)
    captions = {record["text"] for record in expected(dataset, "clips", "train").values()}
    assert data.dataloader.num_samples == 8
    assert {text for text in received if text} == captions


@pytest.fixture
def open_clip_expander(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the docs' example's patch of open_clip afterwards."""
    from open_clip_train import data

    monkeypatch.setattr(data, "tar_file_expander", data.tar_file_expander)


def run_open_clip(dataset: Dataset) -> tuple[Any, list[str]]:
    """Run the example of the docs; return its data and the captions that its tokenizer received."""
    import torch
    from torchvision import transforms

    received: list[str] = []

    def tokenizer(text: str) -> torch.Tensor:
        received.append(text)
        return torch.zeros(1, 77, dtype=torch.long)

    scope: dict[str, Any] = {"ROOT": str(dataset.root), "preprocess": transforms.ToTensor(), "tokenizer": tokenizer}
    # In this process, so that the tokenizer's list is this one.
    exec(docs_example("open_clip").replace("workers=1", "workers=0"), scope)
    assert scope["images"].shape == (2, 3, samples.HEIGHT, samples.WIDTH)
    return scope["data"], received


def test_open_clip_validation_pipeline(dataset: Dataset) -> None:
    import torch
    from open_clip_train.data import get_wds_dataset
    from torchvision import transforms

    tars = "::".join(str(shard.path) for shard in dataset.sets["clips"]["val"].shards)
    args = SimpleNamespace(val_data=tars, val_num_samples=3, batch_size=2, workers=0, world_size=1)
    args.train_data_upsampling_factors = None
    data = get_wds_dataset(
        args, transforms.ToTensor(), is_train=False, tokenizer=lambda text: torch.zeros(1, 77, dtype=torch.long)
    )
    assert [len(images) for images, _ in data.dataloader] == [2, 1]


def test_gnu_tar_lists_and_extracts_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    shard = dataset.sets["clips"]["train"].shards[1]
    listed = subprocess.run(["tar", "tvf", shard.path], capture_output=True, text=True, check=True, env={"TZ": "UTC"})
    assert listed.stderr == ""
    assert all(line.startswith("-rw-r--r-- 0/0") and "1970-01-01" in line for line in listed.stdout.splitlines())
    subprocess.run(["tar", "xf", shard.path, "-C", tmp_path], check=True)
    rows = shard.rows().to_pylist()
    data = shard.path.read_bytes()
    assert len(list(tmp_path.glob("P01*"))) == 4 * len(rows)
    for row in rows:
        for ext in schema.MEMBERS:
            start, size = row[f"{ext}_offset"], row[f"{ext}_size"]
            assert (tmp_path / f"{row['key']}.{ext}").read_bytes() == data[start : start + size]
        record = json.loads((tmp_path / f"{row['key']}.json").read_bytes())
        assert record["video_uid"] == samples.DOTTED_VIDEO


@pytest.mark.parametrize("title", ["webdataset", "wids", "Hugging Face datasets"])
def test_the_examples_of_the_docs_run(dataset: Dataset, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in dataset.root.rglob("*"))
    exec(docs_example(title), {"ROOT": str(dataset.root)})
    assert "video-a_c1_" in (printed := capsys.readouterr().out) or "P01__01" in printed
    assert sorted(path.name for path in dataset.root.rglob("*")) == before, "reading must not change the dataset"


def test_the_index_example_of_the_docs_runs(dataset: Dataset) -> None:
    scope: dict[str, Any] = {}
    example = DOCS.read_text().split("## Index\n", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    exec(example.replace('"ROOT"', repr(str(dataset.root))), scope)
    assert decodes(scope["mp4"]) == 8


def test_key_frames_are_images(dataset: Dataset) -> None:
    shard = dataset.sets["clips"]["train"].shards[0]
    row = shard.rows(["jpg_offset", "jpg_size"]).to_pylist()[0]
    data = shard.path.read_bytes()[row["jpg_offset"] :][: row["jpg_size"]]
    assert Image.open(io.BytesIO(data)).size == (samples.WIDTH, samples.HEIGHT)
