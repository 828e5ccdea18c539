"""Checkpoints and evaluation results that many tests share: made once per test process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from eval import all as every_benchmark
from eval.benchmark import Benchmark
from eval.command import main
from eval.results import Result
from tests.eval.checkpoints import READING, tiny_checkpoint
from tests.eval.ranks import WORLDS, run_ranks
from tests.eval.small import save_small_checkpoint


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run of an entry."""

    code: int
    out: Path  # the folder of its results

    def result(self, name: str = "") -> Result:
        """Return the result of a benchmark, or of the only one."""
        return Result.load(self.out / name)

    def values(self, name: str = "") -> dict[str, float]:
        """Return score name → value (percent) of a benchmark."""
        return {score.name: score.value for score in self.result(name).scores}


class Run(Protocol):
    """Runs a benchmark, or with None all of them, by default with the tiny checkpoint on the embedded dataset."""

    def __call__(
        self, benchmark: Benchmark[Any] | None, *words: str, shards: Path | None = None, check: Path | None = None
    ) -> Evaluation: ...


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: the same sums whatever ran before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that knows the words of the embedded dataset."""
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), embedded)


@pytest.fixture(scope="session")
def small_checkpoint(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with six position slots for windows."""
    return save_small_checkpoint(tmp_path_factory.mktemp("small"), embedded)


@pytest.fixture
def own_shards(embedded: Path, tmp_path: Path) -> Path:
    """A copy of the embedded dataset that a test may damage."""
    return Path(shutil.copytree(embedded, tmp_path / "shards"))


@pytest.fixture(scope="session")
def embedding_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all evaluations of the tiny checkpoint on the embedded dataset."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="session")
def evaluated(
    embedded: Path, checkpoint: Path, embedding_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluation:
    """Every benchmark of the embedded dataset, with reports."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("evaluated") / "out"
    words = [f"--checkpoint={checkpoint}", f"--shards={embedded}", *READING]
    words += [f"output={out}", f"cache={embedding_cache}"]
    code = every_benchmark.main([*words, "max_missing_fraction=0.5"])
    torch.set_num_threads(threads)
    return Evaluation(code=code, out=out)


@pytest.fixture
def run(embedded: Path, checkpoint: Path, embedding_cache: Path, tmp_path: Path) -> Run:
    """Run an entry as its command line would; only unmodified data and weights share the cache of embeddings."""

    def entry(
        benchmark: Benchmark[Any] | None, *words: str, shards: Path | None = None, check: Path | None = None
    ) -> Evaluation:
        out = tmp_path / "out"
        cache = embedding_cache if shards is None and check is None else "null"
        arguments = [f"--checkpoint={check or checkpoint}", f"--shards={shards or embedded}", *READING]
        arguments += [f"output={out}", f"cache={cache}", "report=false", *words]
        code = every_benchmark.main(arguments) if benchmark is None else main(benchmark, arguments)
        return Evaluation(code=code, out=out)

    return entry


@pytest.fixture(scope="session")
def by_world(embedded: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of ranks → a folder with the results (`out`) and the embeddings (`cache`) of every benchmark."""
    base = tmp_path_factory.mktemp("ranks")
    found = {}
    for world in WORLDS:
        folder = found[world] = base / f"world-{world}"
        words = [f"--checkpoint={small_checkpoint}", f"--shards={embedded}", f"output={folder}/out"]
        words += [f"cache={folder}/cache", "sample.frames=2", "sample.windows=3", "micro_batch=4", "data.workers=0"]
        words += ["resamples=50", "report=false", "max_missing_fraction=1"]
        codes = run_ranks(every_benchmark.main, words, folder, world)
        assert codes == [0] * world, "".join(path.read_text() for path in folder.glob("rank*.txt"))
    return found
