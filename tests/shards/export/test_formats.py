"""Every export is read back by the library that it is for, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import webdataset as wds
from datasets import Video, load_dataset

from hiervl_train.models.torchvision_ops import declare_missing
from shards import files
from shards.dataset import Dataset, open_dataset, read_member
from shards.export import __main__ as entry
from shards.export.job import caption_of
from tests.shards.coded import coded_dataset, coded_summary
from tests.shards.verify.test_features import write_features


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    summaries = [coded_summary(n, seconds=6 + n, narrations=2, video=f"video-{n:03d}") for n in range(2)]
    found = coded_dataset(tmp_path_factory.mktemp("export") / "shards", (4, 3), summaries=summaries)
    write_features(found, name="f")
    return found


def export(form: str, dataset: Dataset, out: Path, *words: str) -> int:
    return entry.main([form, str(dataset.root), str(out), *words])


def videos(dataset: Dataset) -> dict[str, bytes]:
    """Return key → mp4 of all samples."""
    found = {}
    for _, _, split in dataset.splits():
        for shard in split.shards:
            for row in shard.rows().to_pylist():
                found[row["key"]] = read_member(shard.path, row["mp4_offset"], row["mp4_size"])
    return found


def digests(folder: Path) -> dict[str, str]:
    listed = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in listed}


def test_features_tar_joins_the_clips_by_key_in_webdataset(dataset: Dataset, tmp_path: Path) -> None:
    assert export("features-tar", dataset, tmp_path / "out", "--features", "f", "--sets", "clips") == 0
    sizes = json.loads((tmp_path / "out" / "clips" / "train" / "sizes.json").read_text())
    assert sizes == {"00000.tar": 4, "00001.tar": 3}

    def pipeline(root: Path) -> Any:
        return wds.WebDataset([str(root / "clips" / "train" / name) for name in sizes], shardshuffle=False)

    for clip, own in zip(pipeline(dataset.root), pipeline(tmp_path / "out"), strict=True):
        assert clip["__key__"] == own["__key__"]
        number, row = (int(value) for value in np.load(io.BytesIO(own["video.npy"]))[0, :2])
        text = np.load(io.BytesIO(own["text.npy"]), allow_pickle=False)
        assert text.tolist() == list(range(row)) and 0 <= number < 2
    assert export("features-tar", dataset, tmp_path / "none") == 2
    assert export("features-tar", dataset, tmp_path / "none", "--features", "f", "--sets", "summaries") == 2


def test_folders_are_read_by_hugging_face_datasets(dataset: Dataset, tmp_path: Path) -> None:
    assert export("folders", dataset, tmp_path / "out") == 0
    expected = videos(dataset)
    for set_name, count in (("clips", 7), ("summaries", 2)):
        data = str(tmp_path / "out" / set_name / "train")
        loaded = load_dataset("videofolder", data_dir=data, split="train", cache_dir=str(tmp_path / "cache"))
        rows = list(loaded.cast_column("video", Video(decode=False)))
        assert len(rows) == count
        for row in rows:
            assert Path(row["video"]["path"]).read_bytes() == expected[row["key"]]
            assert row["text"].startswith("#") and row["clip_end"] > row["clip_start"]


@pytest.mark.parametrize(("form", "token"), [("llava", "<image>"), ("qwen-vl", "<video>")])
def test_conversations_name_playable_videos(dataset: Dataset, tmp_path: Path, form: str, token: str) -> None:
    questions = tmp_path / "prompts.json"
    questions.write_text(json.dumps({"clips": ["What is done?", "What do the hands do?"]}))
    assert export(form, dataset, tmp_path / "out", "--prompts", str(questions)) == 0
    cache = str(tmp_path / "cache")
    for name, count in (("clips_train", 7), ("summaries_train", 2)):
        rows = list(load_dataset("json", data_files=str(tmp_path / "out" / f"{name}.json"), cache_dir=cache)["train"])
        assert len(rows) == count
        for row in rows:
            human, assistant = row["conversations"]
            assert human["value"].startswith(f"{token}\n") and assistant["from"] == "gpt"
            assert assistant["value"].startswith("The camera wearer d") and assistant["value"].endswith(".")
            with av.open(str(tmp_path / "out" / "videos" / row["video"])) as container:
                assert sum(1 for _ in container.decode(video=0)) > 12
    asked = {row["conversations"][0]["value"].split("\n")[1] for row in json.loads(_clips(tmp_path))}
    assert asked == {"What is done?", "What do the hands do?"}
    questions.write_text('{"clips": []}')
    assert export(form, dataset, tmp_path / "bad", "--prompts", str(questions)) == 2


def _clips(folder: Path) -> str:
    return (folder / "out" / "clips_train.json").read_text()


def test_qwen_s_own_reader_reads_them(dataset: Dataset, tmp_path: Path) -> None:
    declare_missing()  # it imports torchvision
    reader = pytest.importorskip("qwen_vl_utils", reason="needs the package qwen-vl-utils")
    assert export("qwen-vl", dataset, tmp_path / "out", "--sets", "summaries") == 0
    (row, _) = json.loads((tmp_path / "out" / "summaries_train.json").read_text())
    content = [{"type": "video", "video": str(tmp_path / "out" / "videos" / row["video"]), "nframes": 4}]
    _, found = reader.process_vision_info([{"role": "user", "content": content}])
    assert found[0].shape[:2] == (4, 3)


def test_the_folder_for_the_hub_is_a_dataset(dataset: Dataset, tmp_path: Path) -> None:
    assert export("hf", dataset, tmp_path / "out", "--features", "f") == 0
    assert open_dataset(tmp_path / "out").fingerprint == dataset.fingerprint
    loaded = load_dataset(str(tmp_path / "out"), "clips", split="train", cache_dir=str(tmp_path / "cache"))
    keys = [row["__key__"] for row in loaded.cast_column("mp4", Video(decode=False))]
    assert keys == dataset.split("clips", "train").rows(["key"])["key"].to_pylist()
    assert (tmp_path / "out" / "features" / "f" / "feature.json").is_file()
    assert "*.tar filter=lfs" in (tmp_path / "out" / ".gitattributes").read_text()
    assert export("hf", dataset, tmp_path / "part", "--sets", "clips") == 2


@pytest.mark.parametrize("form", ["folders", "llava", "features-tar"])
def test_a_stopped_export_goes_on(dataset: Dataset, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--sets", "clips", "--features", "f")
    assert export(form, dataset, tmp_path / "whole", *words) == 0
    write, calls = files.write_json, 0

    def stop(path: Path, value: Any) -> None:
        nonlocal calls
        calls += path.parts[-4] == ".export"
        if calls == 2:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", stop)
        assert export(form, dataset, tmp_path / "parts", *words) == 130
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts" / ".export").rglob("00000*")}
    assert before and export(form, dataset, tmp_path / "parts", *words) == 0
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_withdrawn_videos_are_left_out_also_later(dataset: Dataset, tmp_path: Path) -> None:
    assert export("folders", dataset, tmp_path / "out", "--sets", "clips") == 0
    listed = dataset.root / "denylist.txt"
    listed.write_text("video-000\n")
    try:
        assert export("folders", dataset, tmp_path / "out", "--sets", "clips") == 0
    finally:
        listed.unlink()
    lines = (tmp_path / "out" / "clips" / "train" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_uid"] for line in lines] == ["video-001"] * 3


def test_what_cannot_be_exported_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    assert export("nonsense", dataset, tmp_path / "out") == 2
    assert export("folders", dataset, dataset.root / "out") == 2
    assert export("folders", dataset, tmp_path / "out", "--sets", "nonsense") == 2


def test_captions_lose_their_tags() -> None:
    assert caption_of({"text": "#Summary C made tea"}, raw=False) == "The camera wearer made tea."
    assert caption_of({"text": "#O A man X walks!"}, raw=False) == "A man X walks!"
    assert caption_of({"text": "#C C walks"}, raw=True) == "#C C walks"


def test_mosaicml_streaming_reads_every_sample(dataset: Dataset, tmp_path: Path) -> None:
    declare_missing()  # it imports torchvision
    streaming = pytest.importorskip("streaming", reason="needs the package mosaicml-streaming")
    assert export("mds", dataset, tmp_path / "out") == 0
    found = streaming.StreamingDataset(local=str(tmp_path / "out" / "clips" / "train"), batch_size=1)
    expected = videos(dataset)
    assert [found[i]["key"] for i in range(7)] == [key for key in expected if "_c" in key]
    assert all(found[i]["mp4"] == expected[found[i]["key"]] for i in range(len(found)))
    assert found[6]["txt"] == "#C C does 6" and json.loads(found[6]["json"])["tag_noun"] == [6, 7]


def test_litdata_reads_every_sample(dataset: Dataset, tmp_path: Path) -> None:
    litdata = pytest.importorskip("litdata", reason="needs the package litdata")
    for _ in range(2):
        assert export("litdata", dataset, tmp_path / "out", "--sets", "clips") == 0
    found = litdata.StreamingDataset(str(tmp_path / "out" / "clips" / "train"), cache_dir=str(tmp_path / "cache"))
    expected = videos(dataset)
    assert len(found) == 7
    assert all(found[i]["mp4"] == expected[found[i]["key"]] for i in range(len(found)))


def test_lance_reads_every_sample(dataset: Dataset, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="needs the package pylance")
    for _ in range(2):
        assert export("lance", dataset, tmp_path / "out") == 0
    table = lance.dataset(str(tmp_path / "out" / "clips_train.lance"))
    expected = videos(dataset)
    rows = table.take([6, 0]).to_pylist()
    assert [row["text"] for row in rows] == ["#C C does 6", "#C C does 0"] and table.count_rows() == 7
    assert all(row["mp4"] == expected[row["key"]] and row["clip_end"] > row["clip_start"] for row in rows)


def test_a_package_that_is_not_installed_is_named(dataset: Dataset, tmp_path: Path, capfd: Any) -> None:
    if importlib.util.find_spec("streaming") is None:
        assert export("mds", dataset, tmp_path / "out") == 2
        assert "pip install mosaicml-streaming" in capfd.readouterr().err
