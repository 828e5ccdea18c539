"""Embeddings do not depend on the number of ranks, and an interrupted evaluation keeps its finished parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from eval.config import BENCHMARKS
from eval.embed import embed_split
from hiervl_train.distributed import distributed_context
from hiervl_train.models import HierVL
from tests.eval.embed.clips import embedded
from tests.eval.ranks import run_ranks
from tests.eval.small import SETTINGS, small_dataset, small_model


def _embed_clips(argv: list[str]) -> int:
    root, cache = argv
    with distributed_context() as ranks:
        embed_split(small_model(), root, "clips", "train", SETTINGS, ranks=ranks, cache=Path(cache), digest="a")
    return 0


@pytest.mark.medium
def test_embeddings_are_bit_identical_on_any_number_of_ranks(by_world: dict[int, Path]) -> None:
    cached = {
        world: {path.relative_to(folder / "cache"): path.read_bytes() for path in folder.rglob("*.npy")}
        for world, folder in by_world.items()
    }
    assert len(cached[1]) >= len(BENCHMARKS)
    assert cached[1] == cached[2] == cached[3]
    assert not [path for folder in by_world.values() for path in folder.rglob("part-*")]


@pytest.mark.medium
def test_if_one_rank_fails_all_stop_and_the_others_parts_are_cached(tmp_path: Path) -> None:
    root, cache = tmp_path / "shards", tmp_path / "cache"
    tar = small_dataset(root).split("clips", "train").shards[2].path  # in the second rank's range of batches
    hidden = tar.rename(tmp_path / "hidden.tar")
    codes = run_ranks(_embed_clips, [str(root), str(cache)], tmp_path / "output", 2)
    assert codes == [1, 1]
    output = [(tmp_path / "output" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "another rank failed" in output[0] and f"{tar}" in output[1].replace("\n", "")
    hidden.rename(tar)
    found = embed_split(small_model(), root, "clips", "train", SETTINGS, cache=cache, digest="a")
    assert found is not None and len(found.keys) == 18
    assert found.encoded == 18 - 2 * SETTINGS.micro_batch, "the first rank's two of five batches were cached"


class Killed(HierVL):
    """A model that is interrupted at its fourth batch."""

    batches = 0

    def encode_video(self, video_BTCHW: Tensor) -> Tensor:
        self.batches += 1
        if self.batches > 3:
            raise KeyboardInterrupt
        return super().encode_video(video_BTCHW)


def test_an_interrupted_evaluation_keeps_its_finished_parts(root: Path, model: HierVL, tmp_path: Path) -> None:
    undisturbed = embedded(model, root)
    interrupted = Killed(model.config).eval()
    interrupted.load_state_dict(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        embedded(interrupted, root, cache=tmp_path, digest="a")
    rest = embedded(model, root, cache=tmp_path, digest="a")
    assert rest.encoded == 6, "three batches of four were cached as parts before"
    assert rest.keys == undisturbed.keys
    np.testing.assert_array_equal(rest.vectors, undisturbed.vectors)
