"""Under a server that misbehaves at random, a loader yields the right batches or the documented error, in time."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.config import LoaderConfig, SourceConfig
from shards.loader import Loader
from shards.sources import SourceError, open_source
from shards.stats import ShardError
from tests.shards.coded import coded_dataset
from tests.shards.servers import HOSTILE, FaultyServer, Pieces, faulty_server, head

QUICK: dict[str, Any] = {
    "attempts": 4,
    "first_wait_seconds": 0.001,
    "timeout_seconds": 0.25,
    "min_kib_per_second": 400.0,
    "prefetch_batches": 4,
}
RUN_SECONDS = 30.0  # after which a run counts as hanging; the slowest takes a tenth of this on an idle machine
STATUSES = ("301", "400", "401", "403", "404", "408", "410", "418", "425", "429", "500", "502", "503", "504", "599")
FAULTS = (*HOSTILE, *STATUSES, "cut", "wrong", "drop", "reset", "slow", "hang")
# For files without a hash. A server that says in a well-formed answer that there is no list, or sends another list, is
# believed; so is one that announces less than it sends to S3 clients.
_BELIEVED = ("404", "410", "wrong")


class Hang(BaseException):
    """Not an `Exception`, so that nothing mistakes it for a fault of the server."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed") / "bucket"
    coded_dataset(folder, (4, 3, 5), per_video=3)
    (folder / "denylist.txt").write_text("video-001\n", encoding="utf-8")
    return folder


def mutated(rng: random.Random, *, has_hash: bool) -> Callable[[bytes], Pieces]:
    """Return an answer of which single bytes are changed, left out or repeated, sent in pieces with pauses."""

    def answer(data: bytes) -> Pieces:
        top = bytearray(head(Content_Length=len(data), Content_Type="application/octet-stream"))
        body = bytearray(data)
        is_whole = rng.random() < 0.7
        # Not both without a hash: a body cut where a changed Content-Length says is a well-formed answer.
        for _ in range(rng.randint(1, 4) if has_hash or is_whole else 0):
            part = body if has_hash and body and rng.random() < 0.4 else top
            at = rng.randrange(len(part))
            part[at : at + 1] = rng.choice((b"", bytes(part[at : at + 1]) * 2, rng.randbytes(1)))
        whole = bytes(top + body)[: None if is_whole else rng.randrange(len(top) + len(body))]
        cuts = sorted(rng.sample(range(len(whole) + 1), k=min(3, len(whole) + 1)))
        for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            yield whole[begin:end]
            yield rng.choice((0.0, 0.0, 0.01, 0.1))

    return answer


def script(seed: int, *, is_s3: bool = False) -> Callable[[str], str | Callable[[bytes], Pieces]]:
    """Return a function that chooses the answer to each request."""
    rng = random.Random(seed)
    share = rng.choice((0.1, 0.3, 0.6, 0.9))

    def choose(path: str) -> str | Callable[[bytes], Pieces]:
        if rng.random() > share or "absent-" in path:
            return ""
        has_hash = not path.endswith("denylist.txt")
        if rng.random() < 0.3 and not (is_s3 and not has_hash):
            return mutated(rng, has_hash=has_hash)
        believed = () if has_hash else (*_BELIEVED, *(("length short", "surplus") if is_s3 else ()))
        return rng.choice([fault for fault in FAULTS if fault not in believed])

    return choose


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the main thread after `seconds`."""

    def raise_hang(*_: object) -> None:
        raise Hang(f"nothing came of it in {seconds} s")

    before = signal.signal(signal.SIGALRM, raise_hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def epoch(url: str | Path, source: SourceConfig, *, workers: int = 0) -> dict[str, torch.Tensor]:
    small = LoaderConfig(global_batch=3, size=32, frames=2, workers=workers, prefetch=1, source=source)
    with Loader(url, "clips", "train", small) as loader:
        batches = list(loader)
    assert not any(failure for batch in batches for failure in batch.failures)
    return {key: frames for batch in batches for key, frames in zip(batch.keys, batch.frames, strict=True)}


def outcome(server: FaultyServer, url: str, cache: Path, expected: dict[str, torch.Tensor], workers: int) -> str:
    """Return "right" or the kind of the error; raise for wrong bytes, hangs and undocumented errors."""
    try:
        with alarm(RUN_SECONDS):
            got = epoch(url, SourceConfig(cache=cache, **QUICK), workers=workers)
    except SourceError as error:
        assert server.url in str(error) or url in str(error), error
        return "SourceError"
    except ShardError as error:  # of a dataset.json that is JSON, but not as it was written
        assert "altered" in str(error) or "dataset.json" in str(error), error
        return "ShardError"
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    return "right"


def fuzz(root: Path, folder: Path, seeds: range, *, is_s3: bool = False, workers: int = 0) -> Counter[str]:
    expected = epoch(root, SourceConfig())
    assert len(expected) == 9  # without the withdrawn video
    counts: Counter[str] = Counter()
    slowest = 0.0
    for seed in seeds:
        with faulty_server(root.parent if is_s3 else root) as server:
            server.choose = script(seed, is_s3=is_s3)
            if is_s3:
                os.environ["AWS_ENDPOINT_URL"] = server.url
            cache, began = folder / f"{seed // 3}", time.monotonic()  # every three runs share a cache
            counts[outcome(server, "s3://bucket" if is_s3 else server.url, cache, expected, workers)] += 1
            slowest = max(slowest, time.monotonic() - began)
            counts["requests"] += sum(server.requests.values())
        if seed % 3 == 2:
            shutil.rmtree(cache, ignore_errors=True)
    print(f"\n{len(seeds)} runs{' over S3' * is_s3}, the slowest {slowest:.1f} s: {dict(counts)}")
    return counts


def test_a_loader_yields_the_right_batches_or_an_error(root: Path, tmp_path: Path) -> None:
    counts = fuzz(root, tmp_path, range(24))
    assert counts["right"] >= 5 and counts["SourceError"] >= 3  # both kinds of outcome are tried


def test_an_opened_source_reads_the_right_bytes_or_an_error(root: Path, tmp_path: Path) -> None:
    tars = {path.name: path.read_bytes() for path in (root / "clips/train").glob("*.tar")}
    rng = random.Random(0)
    with faulty_server(root) as server:
        source = open_source(server.url, SourceConfig(cache=tmp_path, **QUICK))
        server.choose = script(7)
        right = 0
        for _ in range(40):
            shard = rng.choice(source.dataset.split("clips", "train").shards)
            at = rng.randrange(shard.bytes)
            size = rng.randrange(shard.bytes - at)
            try:
                with alarm(RUN_SECONDS):
                    assert source.read(shard, at, size) == tars[shard.name][at : at + size]
            except SourceError as error:
                assert f"{server.url}/clips/train/{shard.name}" in str(error)
            else:
                right += 1
            if rng.random() < 0.3:
                shutil.rmtree(tmp_path / "objects")
                (tmp_path / "objects").mkdir()
        assert right > 10


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_many_scripts_of_faults(root: Path, tmp_path: Path, workers: int) -> None:
    runs = int(os.environ.get("FUZZ_RUNS", "400")) // (4 if workers else 1)
    counts = fuzz(root, tmp_path, range(1000, 1000 + runs), workers=workers)
    assert counts["right"] > runs / 10


@pytest.mark.slow
def test_many_scripts_of_faults_over_s3(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("s3fs") is None:
        pytest.skip("s3fs is not installed")
    values = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "ENDPOINT_URL": "", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**values, "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setitem(QUICK, "timeout_seconds", 5.0)
    runs = int(os.environ.get("FUZZ_RUNS", "400")) // 20
    counts = fuzz(root, tmp_path, range(2000, 2000 + runs), is_s3=True)
    assert counts["right"] >= runs / 10
