"""Dense features cover every second at the right times, and are read back by what they are exported for."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pytest
import torch
from torch import Tensor

from hiervl_train.features.dense import dense_features, window_starts
from hiervl_train.features.extractor import Reads
from preprocessing import dense_features as entry
from preprocessing.config import ChunkConfig
from preprocessing.video.chunks import Damage, chunk_path, write_sidecar
from preprocessing.video.probe import probe
from preprocessing.video.transcode import make_chunk
from shards.features import ArraySpec
from shards.features import __main__ as exports
from shards.features.dense import Damaged, read_dense
from shards.sampling import frame_numbers
from tests.eval.small import save_small_checkpoint, small_dataset
from tests.preprocessing.chunking import task
from tests.preprocessing.coded_video import read_number, write_video

FRAMES, SECONDS = 279, 4
OFFSETS = frame_numbers(32, 4, None)
CPU = torch.device("cpu")


class Numbers:
    """An extractor whose features are the numbers that coded frames show."""

    reads = Reads(size=96, frames=4, windows=1, window_seconds=1.0)
    seen: list[int]

    def __init__(self) -> None:
        self.seen = []

    def arrays(self, set_name: str) -> tuple[ArraySpec, ...]:
        return (ArraySpec(name="video", level="frame", dtype="float32", shape=(1,)),)

    def identity(self) -> dict[str, Any]:
        return {}

    def encode_frames(self, frames: Tensor) -> dict[str, Tensor]:
        shown = [[read_number(frame.movedim(0, -1).numpy()) for frame in window] for window in frames]
        self.seen += [number for window in shown for number in window]
        return {"video": torch.tensor(shown, dtype=torch.float32)[..., None]}

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with the chunks of two coded videos, and a checkpoint."""
    folder = tmp_path_factory.mktemp("dense")
    config = ChunkConfig(seconds=SECONDS, short_side=96)
    for uid, count in (("video", FRAMES), ("short", 20)):
        path = write_video(folder / f"{uid}.mp4", [n / 30 for n in range(count)], size=(96, 96))
        source = probe(path)
        for index in range(-(-count // (SECONDS * 30))):
            one = task(source, folder / "work", index, config=config, uid=uid)
            make_chunk(dataclasses.replace(one, toolchain={"chunk.fps": "30"}))
    small_dataset(folder / "shards")
    save_small_checkpoint(folder / "checkpoint", folder / "shards")
    return folder


def whole(made: Path, uid: str = "video") -> Any:
    return entry.whole_video(made / "work", entry.find_videos(made / "work")[uid], fps=30.0)


def test_windows_tile_a_video_and_the_last_is_moved_back() -> None:
    assert window_starts(39, window=32, stride=16).tolist() == [0, 7]
    assert window_starts(64, window=32, stride=16).tolist() == [0, 16, 32]
    assert window_starts(20, window=32, stride=16).tolist() == [0]
    assert window_starts(0, window=32, stride=16).tolist() == []


def test_rows_show_the_frames_of_their_times_over_chunk_borders(made: Path) -> None:
    extractor = Numbers()
    found = dense_features(extractor, whole(made), window=32, stride=16, device=CPU)
    starts = window_starts(FRAMES, window=32, stride=16)
    np.testing.assert_allclose(found.times, np.stack([starts, starts + 32], axis=1) / 30)
    np.testing.assert_allclose(found.rows[:, 0], starts + OFFSETS.mean())
    assert starts[-1] == FRAMES - 32 and not found.masked
    short = dense_features(Numbers(), whole(made, "short"), window=32, stride=16, device=CPU)
    np.testing.assert_allclose(short.rows[:, 0], [frame_numbers(20, 4, None).mean()])
    assert short.times.tolist() == [[0, 20 / 30]]


def test_windows_that_touch_damage_are_masked_and_not_invented(made: Path) -> None:
    video = dataclasses.replace(whole(made), damage=[Damaged(start=2.0, end=2.5, reason="frozen")])
    found = dense_features(Numbers(), video, window=32, stride=16, device=CPU)
    touched = [row for row, (start, end) in enumerate(found.times.tolist()) if start < 2.5 and end > 2.0]
    assert sorted(found.masked) == touched and set(found.masked.values()) == {"frozen"}
    assert not found.rows[touched].any() and np.isfinite(found.rows).all()
    gone = dataclasses.replace(video.parts[1], path=None)
    found = dense_features(
        Numbers(),
        dataclasses.replace(video, parts=[video.parts[0], gone, video.parts[2]]),
        window=32,
        stride=16,
        device=CPU,
    )
    inside = [row for row, (start, end) in enumerate(found.times.tolist()) if start < 8 and end > 4.4]
    assert set(inside) <= found.masked.keys()


def run(made: Path, output: Path, *words: str) -> int:
    settings = [f"work={made / 'work'}", f"checkpoint={made / 'checkpoint'}", f"output={output}"]
    return entry.main([*settings, "sample.frames=2", "extractor.text=false", *words])


@pytest.fixture(scope="module")
def dense(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extracted") / "dense"
    assert run(made, folder) == 0
    return folder


def test_the_command_resumes_and_refuses_other_settings(made: Path, dense: Path) -> None:
    about, videos = read_dense(dense)
    assert [video.video_uid for video in videos] == ["short", "video"] and about["window"] == 32
    assert videos[1].read().rows.shape == (17, 8)
    before = {path: path.stat().st_mtime_ns for path in dense.glob("*.npy")}
    assert run(made, dense) == 0
    assert {path: path.stat().st_mtime_ns for path in dense.glob("*.npy")} == before
    assert run(made, dense, "stride=8") == 2
    assert run(made, dense.parent / "other", "fps=10", "max_failed_fraction=0.5") == 3
    assert run(made, dense.parent / "other", "videos=[nobody]") == 2


def test_a_deleted_chunk_fails_its_video_only(made: Path, tmp_path: Path) -> None:
    path = chunk_path(made / "work", "video", 1, "full")
    hidden = path.rename(tmp_path / "hidden")
    try:
        assert run(made, tmp_path / "dense", "max_failed_fraction=0.5") == 0
    finally:
        hidden.rename(path)
    about, videos = read_dense(tmp_path / "dense")
    assert [video.video_uid for video in videos] == ["short"]
    assert "chunk 1 is deleted" in about["videos"]["video"]["failed"]


def test_damage_of_a_sidecar_is_listed_in_the_manifest(made: Path, tmp_path: Path) -> None:
    chunk = entry.find_videos(made / "work")["video"][0]
    write_sidecar(made / "work", dataclasses.replace(chunk, damage=(Damage(start=1.0, end=1.2, reason="frozen"),)))
    try:
        assert run(made, tmp_path / "dense") == 0
    finally:
        write_sidecar(made / "work", chunk)
    (_, video) = read_dense(tmp_path / "dense")[1]
    assert set(video.masked.values()) == {"frozen"}
    assert exports.main(["npy", str(tmp_path / "dense"), str(tmp_path / "out"), "--nan"]) == 0
    rows = np.load(tmp_path / "out" / "video.npy")
    assert np.isnan(rows[list(video.masked)]).all() and np.isfinite(np.delete(rows, list(video.masked), axis=0)).all()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["items"]["video"]["masked"] == {str(row): "frozen" for row in video.masked}


def read_back(form: str, out: Path, name: str) -> np.ndarray:
    if form == "pt":
        return torch.load(out / f"{name}.pt", weights_only=True).numpy()
    if form == "npy":
        return np.load(out / f"{name}.npy", allow_pickle=False)
    if form == "hdf5":
        with h5py.File(out / "features.hdf5") as file:
            return file[name][:]
    with lmdb.open(str(out), readonly=True) as database, database.begin() as transaction:
        return np.load(io.BytesIO(transaction.get(name.encode())), allow_pickle=False)["features"]


@pytest.mark.parametrize("form", ["pt", "npy", "lmdb", "hdf5"])
def test_each_export_is_read_by_its_library(dense: Path, tmp_path: Path, form: str) -> None:
    (_, video) = read_dense(dense)[1]
    expected = video.read()
    assert exports.main([form, str(dense), str(tmp_path / "videos")]) == 0
    found = read_back(form, tmp_path / "videos", "video")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.rows.astype(np.float32))
    table = tmp_path / "clips.csv"
    table.write_text("clip_uid,video_uid,start,end\nclip-1,video,2.0,5.0\nclip-2,nobody,0,1\n")
    for _ in range(2):
        assert exports.main([form, str(dense), str(tmp_path / "clips"), "--clips", str(table)]) == 0
    middle = expected.times.mean(axis=1)
    inside = (middle >= 2) & (middle < 5)
    np.testing.assert_array_equal(read_back(form, tmp_path / "clips", "clip-1"), found[inside])
    manifest = json.loads((tmp_path / "clips" / "manifest.json").read_text())
    assert manifest["clips_without_video"] == ["clip-2"] and manifest["items"]["clip-1"]["rows"] == inside.sum()


def test_ego4d_s_annotations_are_tables_of_clips(dense: Path, tmp_path: Path) -> None:
    clip = {"clip_uid": "c", "video_start_sec": 1.0, "video_end_sec": 3.0, "annotations": []}
    nlq = {"version": "1", "videos": [{"video_uid": "video", "clips": [clip]}]}
    (tmp_path / "nlq_val.json").write_text(json.dumps(nlq))
    assert exports.main(["npy", str(dense), str(tmp_path / "o"), "--clips", str(tmp_path / "nlq_val.json")]) == 0
    assert len(np.load(tmp_path / "o" / "c.npy")) == 4
    (tmp_path / "bad.csv").write_text("clip_uid,video_uid,start,end\nc,video,5,1\n")
    assert exports.main(["npy", str(dense), str(tmp_path / "p"), "--clips", str(tmp_path / "bad.csv")]) == 2
    assert exports.main(["mat", str(dense), str(tmp_path / "p")]) == 2
