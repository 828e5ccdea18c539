"""The exact search finds what a plain sort finds, with NumPy and with torch, over any number of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.search import vectors
from shards.search.vectors import (
    VectorError,
    VectorSet,
    finish_vectors,
    nearest,
    open_vectors,
    read_facts,
    unit,
    write_vectors,
)

WIDTH = 8


def write_parts(folder: Path, parts: list[np.ndarray], *, set_name: str = "clips", split: str = "train") -> VectorSet:
    """Write each array as a shard with keys `<split>-<shard>-<row>`."""
    for number, part in enumerate(parts):
        keys = [f"{split}-{number}-{row:04d}" for row in range(len(part))]
        write_vectors(folder / set_name / split, f"{number:05d}.tar", keys, part)
    (folder / set_name / split).mkdir(parents=True, exist_ok=True)
    return VectorSet(folder / set_name / split, set_name, split)


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_the_nearest_are_those_of_a_plain_sort(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], count: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    parts = [random.integers(-2, 3, (n, WIDTH)).astype(np.float32) for n in sizes]  # few values: ties, and length 0
    found = write_parts(tmp_path_factory.mktemp("vectors"), parts)
    query = random.normal(size=WIDTH).astype(np.float32)
    stored = [unit(part).astype(np.float16).astype(np.float64) for part in parts]
    scored = sorted(
        (-float(row @ unit(query[None])[0]), f"train-{number}-{place:04d}")
        for number, part in enumerate(stored)
        for place, row in enumerate(part)
    )[:count]
    near = nearest(query, [found], count)["clips"]
    assert [-each.score for each in near] == pytest.approx([score for score, _ in scored], abs=1e-5)
    assert len({each.key for each in near}) == len(near) == min(count, sum(sizes))


def test_torch_and_numpy_agree_and_the_number_of_threads_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    random = np.random.default_rng(0)
    own = write_parts(tmp_path, [random.normal(size=(n, WIDTH)).astype(np.float32) for n in (5, 3000, 1, 0, 1200)])
    query = unit(random.normal(size=(1, WIDTH)).astype(np.float32))[0]
    by_numpy = own.scores(query)
    threads = torch.get_num_threads()
    monkeypatch.setattr(vectors, "_MANY", 0)
    np.testing.assert_allclose(own.scores(query), by_numpy, atol=2e-6)
    assert torch.get_num_threads() == threads


def test_ties_are_in_the_order_of_keys(tmp_path: Path) -> None:
    own = write_parts(tmp_path, [np.ones((3, WIDTH), np.float32), np.ones((4, WIDTH), np.float32)])
    near = own.nearest(unit(np.ones((1, WIDTH), np.float32))[0], 5)
    assert [each.key for each in near] == sorted(each.key for each in near)[:5]
    assert near[0].key == "train-0-0000"


def test_sets_are_ranked_separately_and_the_splits_of_a_set_together(tmp_path: Path) -> None:
    eye = np.eye(WIDTH, dtype=np.float32)
    write_parts(tmp_path, [eye[:1]])
    write_parts(tmp_path, [eye[:1] + eye[1:2]], split="val")
    write_parts(tmp_path, [eye[1:2]], set_name="summaries")
    for place in (("clips", "train"), ("clips", "val"), ("summaries", "train")):
        finish_vectors(tmp_path, *place, "ab")
    found = nearest(eye[0] + 0.2 * eye[1], open_vectors(tmp_path), 5)
    assert [(near.key, near.split) for near in found["clips"]] == [("train-0-0000", "train"), ("val-0-0000", "val")]
    assert [near.key for near in found["summaries"]] == ["train-0-0000"]


def test_vectors_are_stored_as_half_floats_of_length_1_and_mapped(tmp_path: Path) -> None:
    rows = 1e-20 + np.arange(1, 5 * WIDTH + 1, dtype=np.float32).reshape(5, WIDTH)
    own = write_parts(tmp_path, [1e6 * rows])
    stored = np.load(own.folder / "00000.npy", mmap_mode="r")
    assert stored.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(stored.astype(np.float64), axis=1), 1, atol=1e-3)
    vector = own.vector_of("train-0-0003", "00000.tar")
    assert vector is not None
    np.testing.assert_allclose(vector, rows[3] / np.linalg.norm(rows[3]), atol=1e-3)
    assert own.vector_of("train-0-0009", "00000.tar") is None
    assert own.vector_of("train-0-0003", "00001.tar") is None


def test_a_folder_is_complete_once_it_says_so(tmp_path: Path) -> None:
    write_parts(tmp_path, [np.ones((1, WIDTH), np.float32)])
    write_parts(tmp_path, [np.ones((1, WIDTH), np.float32)], split="val")
    assert read_facts(tmp_path) is None and list(open_vectors(tmp_path)) == []
    finish_vectors(tmp_path, "clips", "val", "ab", checkpoint="cd")
    assert [(one.set_name, one.split) for one in open_vectors(tmp_path)] == [("clips", "val")]
    finish_vectors(tmp_path, "clips", "train", "ef")
    assert read_facts(tmp_path) == {"checkpoint": "cd", "splits": {"clips/val": "ab", "clips/train": "ef"}}


def test_what_does_not_fit_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    own = write_parts(tmp_path, [np.ones((2, WIDTH), np.float32)])
    with pytest.raises(VectorError, match="vectors of 8 numbers"):
        own.scores(np.ones(3, np.float32))
    (own.folder / "00000.parquet").unlink()
    with pytest.raises(VectorError, match=r"00000\.parquet"):
        own.nearest(np.ones(WIDTH, np.float32), 1)
    np.save(own.folder / "00001.npy", np.ones((2, WIDTH + 1), np.float16))
    with pytest.raises(VectorError, match="different widths"):
        VectorSet(own.folder, "clips", "train")
    np.save(own.folder / "00001.npy", np.array([{}], object))
    with pytest.raises(VectorError, match=r"00001\.npy"):
        VectorSet(own.folder, "clips", "train")
