"""The memory of workers stays constant over a million small samples; takes minutes."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from shards.config import LoaderConfig
from shards.loader import Loader
from shards.schema import Sample
from shards.writer import ShardWriter
from tests.media import coded_mp4
from tests.shards.coded import coded_clip, coded_dataset

SAMPLES = int(os.environ.get("SOAK_SAMPLES", "1000000"))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_memory_of_workers_grows_by_less_than_5_percent(tmp_path: Path, decoder: str) -> None:
    small_dataset(tmp_path, 1000)
    config = LoaderConfig(global_batch=100, frames=1, size=16, workers=2, decoder=decoder, block_mib=1)  # type: ignore[arg-type]
    with Loader(tmp_path, "clips", "train", config) as loader:
        seen, settled = 0, 0
        while seen < SAMPLES:
            for batch in loader:
                seen += len(batch.keys)
                if not settled and seen >= SAMPLES // 20:
                    settled = private_bytes()
        assert private_bytes() < 1.05 * settled, (settled, private_bytes())


def private_bytes() -> int:
    """Return the bytes of memory that the workers do not share."""
    return sum(child.memory_full_info().uss for child in psutil.Process().children())


def small_dataset(root: Path, count: int) -> None:
    """Write clips of two frames, in GOPs like those of the build."""
    coded_dataset(root, (1,))
    for number in range(1, 5):
        with ShardWriter(root, "clips", "train", number, toolchain=toolchain(root)) as writer:
            for index in range(count // 4 * (number - 1), count // 4 * number):
                clip = coded_clip(index + 1, first_frame=0, clip_frames=1)
                fields = {**clip.record.__dict__, "num_frames": 2}
                record = type(clip.record)(**fields)
                writer.add(Sample(key=clip.key, record=record, jpg=clip.jpg, mp4=coded_mp4(64 * (index % 900), 2)))
            writer.finish(())
    finish(root)


def toolchain(root: Path) -> dict[str, str]:
    from shards.dataset import open_dataset

    return open_dataset(root).toolchain


def finish(root: Path) -> None:
    from shards.dataset import open_dataset
    from shards.index import finish_split, write_dataset

    dataset = open_dataset(root)
    finish_split(root, "clips", "train")
    write_dataset(root, config=dataset.config, toolchain=dataset.toolchain, provenance=dataset.provenance)
