"""One, two and three ranks, real processes over gloo: the same numbers, and nothing dropped."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from eval.all import main
from eval.embed import embed_split
from eval.in_training import PeriodicMcq
from eval.results import Result
from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.distributed import distributed_context
from hiervl_train.evaluation import EvaluationConfig
from tests.eval.small import SETTINGS, save_small_checkpoint, small_dataset, small_model
from tests.hiervl_train.runs import free_port

BENCHMARKS = ("egomcq", "summarymcq", "shufflemcq", "epic_mir", "charades_ego", "howto100m")
WORLDS = (1, 2, 3)
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["eval.all", "eval.in_training", "tests.eval.small"])


def run_ranks(target: Callable[[list[str]], int], argv: Sequence[str], folder: Path, world: int) -> list[int | None]:
    """Run a function on so many ranks, each a process; return their exit codes."""
    port, processes = free_port(), []
    folder.mkdir()
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        said = folder / f"rank{rank}.txt"
        processes.append(_forks.Process(target=_be_rank, args=(target, list(argv), place, said)))
        processes[-1].start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
    return codes


def _be_rank(target: Callable[[list[str]], int], argv: list[str], place: dict[str, object], said: Path) -> None:
    os.environ.update({name: str(value) for name, value in place.items()}, OMP_NUM_THREADS="1")
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    raise SystemExit(target(argv))


def _embed_clips(argv: list[str]) -> int:
    root, cache = argv
    with distributed_context() as here:
        embed_split(small_model(), root, "clips", "train", SETTINGS, ranks=here, cache=Path(cache), digest="a")
    return 0


def _ask(argv: list[str]) -> int:
    root, checkpoint, answers = argv
    with distributed_context() as here:
        opened = open_checkpoint(checkpoint)
        config = EvaluationConfig(every_steps=1, questions=20)
        scores = PeriodicMcq(root, config, SETTINGS)(opened.model, opened.tokenizer, here)
        Path(f"{answers}-{here.world}-{here.rank}.json").write_text(json.dumps(scores))
    return 0


@pytest.fixture(scope="module")
def folders(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The results and caches of each world."""
    base = tmp_path_factory.mktemp("ranks")
    checkpoint = save_small_checkpoint(base / "checkpoint", embedded)
    found = {}
    for world in WORLDS:
        folder = found[world] = base / f"world-{world}"
        argv = [f"--checkpoint={checkpoint}", f"--shards={embedded}", f"out={folder}/out", f"cache={folder}/cache"]
        argv += ["frames=2", "windows=3", "batch=4", "workers=0", "resamples=50", "report=false"]
        codes = run_ranks(main, [*argv, "max_missing_fraction=1"], folder, world)
        assert codes == [0] * world, "".join(path.read_text() for path in folder.glob("rank*.txt"))
    return found


@pytest.mark.parametrize("name", BENCHMARKS)
def test_scores_and_every_item_are_the_same_on_any_number_of_ranks(folders: dict[int, Path], name: str) -> None:
    alone, *others = (Result.load(folders[world] / "out" / name) for world in WORLDS)
    assert alone.scores and alone.items
    for result in others:
        for field in ("scores", "items", "missing", "curves", "confusion"):
            assert getattr(result, field) == getattr(alone, field), field


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_item_is_scored_or_named_as_missing(folders: dict[int, Path], name: str) -> None:
    result = Result.load(folders[3] / "out" / name)
    groups = {item.group for item in result.items}
    identities = [(item.group, item.id) for item in result.items]
    assert len(set(identities)) == len(identities), "no item is there twice"
    if name != "charades_ego":  # whose items are classes
        missing = len({missing.item for missing in result.missing})
        of = {score.of for score in result.scores if score.name.split()[0] in groups or len(groups) == 1}
        assert of
        for group in groups:
            (own,) = {s.of for s in result.scores if s.name.startswith(group)} or of
            count = sum(item.group == group for item in result.items)
            assert count <= own <= count + missing


def test_embeddings_are_bit_identical_on_any_number_of_ranks(folders: dict[int, Path]) -> None:
    kept = {
        world: {path.relative_to(folder / "cache"): path.read_bytes() for path in folder.rglob("whole.safetensors")}
        for world, folder in folders.items()
    }
    assert len(kept[1]) >= len(BENCHMARKS)
    assert kept[1] == kept[2] == kept[3]
    assert not [path for folder in folders.values() for path in folder.rglob("part-*")]


def test_a_run_that_evaluates_itself_gets_the_same_scores_on_every_rank(embedded: Path, tmp_path: Path) -> None:
    checkpoint = save_small_checkpoint(tmp_path / "checkpoint", embedded)
    for world in (1, 2):
        argv = [str(embedded), str(checkpoint), str(tmp_path / "answers")]
        assert run_ranks(_ask, argv, tmp_path / f"said-{world}", world) == [0] * world
    alone, *both = (json.loads((tmp_path / f"answers-{place}.json").read_bytes()) for place in ("1-0", "2-0", "2-1"))
    assert set(alone) == {"mcq/inter", "mcq/intra", "summary_mcq", "shuffle_mcq"}
    assert both == [alone, alone]


def test_a_rank_that_fails_ends_all_and_what_the_others_embedded_is_kept(tmp_path: Path) -> None:
    root, cache = tmp_path / "shards", tmp_path / "cache"
    tar = small_dataset(root).split("clips", "train").shards[2].path  # the second rank's stretch reaches into it
    hidden = tar.rename(tmp_path / "hidden.tar")
    codes = run_ranks(_embed_clips, [str(root), str(cache)], tmp_path / "said", 2)
    assert codes == [1, 1]
    said = [(tmp_path / "said" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "EmbedError: another rank failed" in said[0] and f"{tar}" in said[1].replace("\n", "")
    hidden.rename(tar)
    found = embed_split(small_model(), root, "clips", "train", SETTINGS, cache=cache, digest="a")
    assert found is not None and len(found.keys) == 18
    assert found.encoded == 18 - 2 * SETTINGS.batch, "of five batches the first rank's two were kept"
