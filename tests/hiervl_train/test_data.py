"""Batches are copied to the device one step ahead, in order; the cursor counts those that the caller was given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiervl_train.data import DeviceLoader
from hiervl_train.models.pixels import normalise
from shards.config import LoaderConfig
from shards.loader import Batch, Loader
from shards.reading import SampleFailedError
from tests.shards.coded import coded_dataset, overwrite_member

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded")
    coded_dataset(folder, (9, 8))
    return folder


def loader(root: Path, **changes: object) -> Loader:
    return Loader(root, "clips", "train", LoaderConfig(**{"global_batch": 4, "size": 32, "workers": 2, **changes}))


def assert_equal(a: Batch, b: Batch) -> None:
    assert (a.epoch, a.number, a.keys) == (b.epoch, b.number, b.keys)
    for name, tensor in a.tensors().items():
        assert torch.equal(tensor.cpu(), b.tensors()[name].cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_batches_equal_those_of_the_loader(root: Path, device: str) -> None:
    with loader(root) as plain:
        expected = [*plain, *plain]
    ours = DeviceLoader(loader(root), device)
    found = [*ours, *ours]
    assert len(found) == len(expected) == 2 * len(ours)
    for a, b in zip(found, expected, strict=True):
        assert a.frames.device.type == device
        assert_equal(a, b)
    assert normalise(found[0].video).shape == (4, 4, 3, 32, 32)
    ours.close()


@pytest.mark.parametrize("device", DEVICES)
def test_the_cursor_does_not_count_the_batch_being_copied(root: Path, device: str) -> None:
    with loader(root) as plain:
        expected = [*plain, *plain]
    for taken in range(1, len(expected) // 2 + 1):
        ours = DeviceLoader(loader(root, workers=0), device)
        for number, _ in enumerate(ours, start=1):
            if number == taken:
                break
        state = ours.state_dict()
        assert state["batch"] == taken
        resumed = DeviceLoader(loader(root, workers=0), device)
        resumed.load_state_dict(state)
        following = next(iter(resumed))
        assert_equal(following, expected[taken])
        assert_equal(next(iter(ours)), expected[taken])  # the loop that was left goes on where its caller stood


def test_time_spent_waiting_is_a_metric(root: Path) -> None:
    ours = DeviceLoader(loader(root, workers=0), "cpu")
    list(ours)
    metrics = ours.metrics()
    assert metrics["samples"] == 16 and 0 < metrics["wait_seconds"] < 10
    assert ours.metrics()["wait_seconds"] == 0


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    dataset = coded_dataset(tmp_path, (5,))
    for row in range(5):
        overwrite_member(dataset, 0, row, bytes(2000))
    ours = DeviceLoader(loader(tmp_path, workers=1), "cpu")
    with pytest.raises(SampleFailedError, match="5 consecutive samples cannot be decoded"):
        list(ours)
    ours.close()
