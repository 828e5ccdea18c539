"""Remote shards equal local ones, over HTTP with injected faults and over S3; errors name the URL."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shards.config import LoaderConfig, SourceConfig
from shards.dataset import hash_file, open_dataset
from shards.index import finish_split, write_dataset
from shards.loader import Loader
from shards.sources import AbsentError, ForbiddenError, LocalSource, RemoteSource, SourceError, fetch_bytes, open_source
from shards.stats import ShardError, ShardStats
from tests.shards.coded import coded_dataset, overwrite_member
from tests.shards.servers import FaultyServer, faulty_server, framed

TAR = "/clips/train/00001.tar"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    coded_dataset(folder, (5, 4, 6))
    return folder


@pytest.fixture
def server(root: Path) -> Iterator[FaultyServer]:
    with faulty_server(root) as running:
        yield running


def config(cache: Path, **changes: object) -> SourceConfig:
    return SourceConfig(
        **{"cache": cache, "first_wait_seconds": 0.01, "attempts": 4, "timeout_seconds": 1.0, **changes}
    )


def loader_keys(url: str | Path, source: SourceConfig, *, workers: int = 0) -> list[list[str]]:
    small = LoaderConfig(global_batch=3, size=32, workers=workers, source=source)
    with Loader(url, "clips", "train", small) as loader:
        return [batch.keys for batch in loader]


def test_a_local_folder_is_read_in_place(root: Path, tmp_path: Path) -> None:
    for name in (root, str(root), f"file://{root}"):
        assert isinstance(open_source(name, SourceConfig(cache=tmp_path / "cache")), LocalSource)
    assert not (tmp_path / "cache").exists()


def test_batches_over_http_equal_those_of_the_local_folder(root: Path, server: FaultyServer, tmp_path: Path) -> None:
    expected = loader_keys(root, SourceConfig())
    assert loader_keys(server.url + "/", config(tmp_path)) == expected
    assert server.requests[TAR] == 1
    assert loader_keys(server.url, config(tmp_path), workers=2) == expected
    assert server.requests[TAR] == 1  # the second loader reads from the cache


def test_workers_and_prefetch_fetch_each_shard_once(server: FaultyServer, tmp_path: Path) -> None:
    for name in ("00000", "00001", "00002"):
        server.faults[f"/clips/train/{name}.tar"].append("slow")
    loader_keys(server.url, config(tmp_path), workers=3)
    assert {path: n for path, n in server.requests.items() if path.endswith(".tar")} == {
        f"/clips/train/0000{i}.tar": 1 for i in range(3)
    }


@pytest.mark.parametrize("faults", [["503"], ["cut"], ["wrong"], ["drop"], ["slow"], ["503", "cut", "wrong"], ["429"]])
def test_transient_faults_are_retried(root: Path, server: FaultyServer, tmp_path: Path, faults: list[str]) -> None:
    server.faults[TAR].extend(faults)
    server.faults["/clips/train/00000.parquet"].extend(faults)
    server.faults["/dataset.json"].extend(fault for fault in faults if fault != "wrong")
    assert loader_keys(server.url, config(tmp_path)) == loader_keys(root, SourceConfig())
    assert server.requests[TAR] == len(faults) + (faults != ["slow"])


def test_a_server_that_hangs_is_retried_after_a_timeout(server: FaultyServer, tmp_path: Path) -> None:
    server.faults[TAR].append("hang")
    began = time.monotonic()
    loader_keys(server.url, config(tmp_path, timeout_seconds=0.3))
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["503"] * 9, "HTTP 503 Service Unavailable; gave up after 4 attempts"),
        (["cut"] * 9, "truncated: received .* bytes; gave up after 4 attempts"),
        (["wrong"] * 9, "the sha256 is .* gave up after 4 attempts"),
        (["404"], "HTTP 404 Not Found"),
        (["403"], "HTTP 403 Forbidden"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_final_faults_name_the_url(
    server: FaultyServer, tmp_path: Path, faults: list[str], message: str, workers: int
) -> None:
    server.faults[TAR].extend(faults)
    with pytest.raises(SourceError, match=rf"(?s){server.url}{TAR}.*{message}"):
        loader_keys(server.url, config(tmp_path, prefetch_batches=0), workers=workers)
    if len(faults) == 1 and not workers:
        assert server.requests[TAR] == 1  # final faults are not retried


def test_an_unreachable_server_and_an_absent_dataset_are_named(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"127.0.0.1:9/nowhere/dataset.json.*gave up after 4"):
        open_source("http://127.0.0.1:9/nowhere", config(tmp_path))
    with pytest.raises(SourceError, match=r"nowhere/dataset.json: HTTP 404"):
        open_source(f"{server.url}/nowhere", config(tmp_path))
    with pytest.raises(SourceError, match=r"set data.source.cache"):
        open_source(server.url, SourceConfig())
    with pytest.raises(SourceError, match=r"nosuch://x/dataset.json"):
        open_source("nosuch://x", config(tmp_path))


def test_a_manifest_altered_in_transit_is_refused(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["/dataset.json"].append("wrong")
    with pytest.raises(ShardError, match=r"altered|not JSON|schema version|malformed"):
        open_source(server.url, config(tmp_path))


def test_a_cache_smaller_than_the_dataset_still_gives_every_batch(
    root: Path, server: FaultyServer, tmp_path: Path
) -> None:
    source = LocalSource(root)
    largest = max(shard.bytes for shard in source.dataset.split("clips", "train").shards)
    small = config(tmp_path, cache_gib=1.05 * largest / 2**30)
    assert loader_keys(server.url, small) == loader_keys(root, SourceConfig())
    assert sum(path.stat().st_size for path in (tmp_path / "objects").iterdir()) <= 1.05 * largest
    tiny = config(tmp_path / "tiny", cache_gib=0.5 * largest / 2**30)
    with pytest.raises(OSError, match="exceeds the cache's budget"):
        loader_keys(server.url, tiny)


def test_the_servers_denylist_is_read_at_each_opening(root: Path, tmp_path: Path) -> None:
    with faulty_server(root) as server:
        assert RemoteSource(server.url, config(tmp_path)).dataset.denylist == frozenset()
        (root / "denylist.txt").write_text("video-001\n", encoding="utf-8")
        try:
            assert RemoteSource(server.url, config(tmp_path)).dataset.denylist == {"video-001"}
        finally:
            (root / "denylist.txt").unlink()
        assert RemoteSource(server.url, config(tmp_path)).dataset.denylist == frozenset()


def test_a_refused_denylist_counts_as_absent_where_absent_files_are_refused(
    root: Path, server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.absent_status = 403  # as S3 answers without the permission to list
    assert RemoteSource(server.url, config(tmp_path)).dataset.denylist == frozenset()
    assert f"{server.url}/denylist.txt: counts as absent" in caplog.text
    with pytest.raises(AbsentError, match=r"questions.json: refused, as every absent file of this server"):
        RemoteSource(server.url, config(tmp_path)).file("egomcq/test/questions.json")
    caplog.clear()
    server.absent_status = 404  # now a refusal says that there is a list
    server.faults["/denylist.txt"].append("403")
    with pytest.raises(ForbiddenError, match=r"denylist.txt: HTTP 403 Forbidden: it exists"):
        RemoteSource(server.url, config(tmp_path))
    assert not caplog.records
    assert RemoteSource(server.url, config(tmp_path)).dataset.denylist == frozenset()


@pytest.mark.parametrize(
    "answer",
    [
        *("no length", "length short", "surplus", "chunk cut", "cut"),
        *("header without end", "header broken off", "header broken by returns", "page", "bytes"),
    ],
)
def test_no_part_of_a_denylist_passes_for_the_whole(root: Path, tmp_path: Path, answer: str) -> None:
    copy = shutil.copytree(root, tmp_path / "set")
    (copy / "denylist.txt").write_text("video-000\nvideo-001\n", encoding="utf-8")
    other = {"page": b"<html>please log in</html>", "bytes": bytes(range(128, 256))}.get(answer)
    with faulty_server(copy) as server:
        for attempts, planned in ((4, 1), (4, 9)):
            server.faults["/denylist.txt"].extend([] if other else [answer] * planned)
            left = [planned if other else 0]

            def choose(path: str, left: list[int] = left) -> object:
                if path != "/denylist.txt" or not left[0]:
                    return ""
                left[0] -= 1
                return lambda _: framed(other)  # type: ignore[arg-type]

            server.choose = choose  # type: ignore[assignment]
            if planned < attempts:
                source = RemoteSource(server.url, config(tmp_path / "cache"))
                assert source.dataset.denylist == {"video-000", "video-001"}
                continue
            with pytest.raises(SourceError, match=r"denylist.txt: .*gave up after 4 attempts"):
                RemoteSource(server.url, config(tmp_path / "cache"))


def test_what_the_manifest_does_not_allow_is_not_read(root: Path, server: FaultyServer, tmp_path: Path) -> None:
    server.choose = lambda path: "endless" if path.endswith((".tar", ".parquet")) else ""
    source = RemoteSource(server.url, config(tmp_path, attempts=2))
    shard = source.dataset.split("clips", "train").shards[0]
    with pytest.raises(SourceError, match=f"received more than the expected {shard.bytes} bytes"):
        source.read(shard, 0, 512)
    with pytest.raises(SourceError, match=f"received more than the accepted {shard.bytes + 2**20} bytes"):
        source.parquet(shard)
    with pytest.raises(ShardError, match="lie outside of the"):
        source.read(shard, shard.bytes - 1, 2)
    server.choose = lambda path: lambda data: framed(data, Content_Length=10**12)
    with pytest.raises(SourceError, match=r"dataset.json: Content-Length is 1000000000000, more than"):
        RemoteSource(server.url, config(tmp_path, attempts=2))
    with pytest.raises(ShardError, match="no path below"):
        source.file("../elsewhere")


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ 4]))


def frames_of(url: str | Path, source: SourceConfig, *, workers: int = 0) -> dict[str, torch.Tensor]:
    small = LoaderConfig(global_batch=3, size=32, workers=workers, source=source)
    with Loader(url, "clips", "train", small) as loader:
        batches = list(loader)
        assert not any(failure for batch in batches for failure in batch.failures)
        return {key: frames for batch in batches for key, frames in zip(batch.keys, batch.frames, strict=True)}


@pytest.mark.parametrize("workers", [0, 2])
def test_bits_that_flip_in_the_cache_during_a_run_change_no_batch(
    root: Path, server: FaultyServer, tmp_path: Path, workers: int
) -> None:
    expected, rng = frames_of(root, SourceConfig()), random.Random(workers)
    source = config(tmp_path, cache_check_rate=0.0)
    small = LoaderConfig(global_batch=3, size=32, workers=workers, prefetch=1, source=source)
    flipped = 0
    with Loader(server.url, "clips", "train", small) as loader:
        for _ in range(4):
            got = {}
            for batch in loader:
                got |= dict(zip(batch.keys, batch.frames, strict=True))
                assert not any(batch.failures)
                for path in (tmp_path / "objects").iterdir():
                    with contextlib.suppress(FileNotFoundError):  # a worker found it damaged and fetches it anew
                        size = path.stat().st_size
                        for _ in range(20):
                            flip(path, rng.randrange(size))
                            flipped += 1
            if not workers:  # epochs differ in their random frames
                assert set(got) == set(expected)
    assert flipped > 100 and server.requests[TAR] > 1
    damaged = frames_of(server.url, source, workers=workers)
    assert damaged.keys() == expected.keys()
    assert all(torch.equal(damaged[key], expected[key]) for key in expected)


def test_a_cache_without_checksums_is_hashed_before_it_is_read(
    root: Path, server: FaultyServer, tmp_path: Path
) -> None:
    expected = frames_of(server.url, config(tmp_path))
    shutil.rmtree(tmp_path / "sums")
    for path in (tmp_path / "objects").iterdir():
        flip(path, path.stat().st_size // 2)
    found = frames_of(server.url, config(tmp_path))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert server.requests[TAR] == 2


def test_reads_check_the_whole_shard_at_the_given_rate(root: Path, server: FaultyServer, tmp_path: Path) -> None:
    source = RemoteSource(server.url, config(tmp_path, cache_check_rate=1.0))
    shard = max(source.dataset.split("clips", "train").shards, key=lambda shard: shard.bytes)
    right = source.read(shard, 0, 512)
    path = tmp_path / "objects" / shard.sha256
    flip(path, shard.bytes - 700)  # in another block than is read
    assert RemoteSource(server.url, config(tmp_path, cache_check_rate=0.0)).read(shard, 0, 512) == right
    assert source.cache.counts.repairs == 0
    assert source.read(shard, 0, 512) == right
    assert (source.cache.counts.repairs, source.cache.counts.fills) == (1, 2)


def test_a_sample_that_is_bad_at_its_source_is_fetched_once(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "set")
    overwrite_member(open_dataset(copy), 1, 0, b"\0" * 1500)
    tar = copy / "clips/train/00001.tar"
    stats = ShardStats.read(copy / "clips/train/00001_stats.json")
    dataclasses.replace(stats, sha256=hash_file(tar)).write(copy / "clips/train/00001_stats.json")
    finish_split(copy, "clips", "train")
    rewrite_manifest(copy)
    with faulty_server(copy) as server:
        small = LoaderConfig(global_batch=5, size=32, workers=0, source=config(tmp_path / "cache"))
        with Loader(server.url, "clips", "train", small) as loader:
            failures = [failure for batch in loader for tried in batch.failures for failure in tried]
        assert [failure.reason for failure in failures] == ["not an mp4"]
        assert server.requests[TAR] == 1


def rewrite_manifest(folder: Path) -> None:
    """Write `dataset.json` anew for the shards that are in the folder."""
    old = open_dataset(folder)
    provenance = {name: old.provenance[name] for name in ("code_revision", "annotations", "licence_notice", "counts")}
    write_dataset(folder, config=old.config, toolchain=old.toolchain, provenance=provenance)


@pytest.fixture
def s3_url(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The dataset in a bucket of an S3-compatible server."""
    for name in ("moto", "s3fs", "boto3", "flask"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for key, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for path in root.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "bucket", f"set/{path.relative_to(root)}")
        yield "s3://bucket/set"
    finally:
        server.stop()


def test_batches_from_s3_equal_those_of_the_local_folder(root: Path, s3_url: str, tmp_path: Path) -> None:
    expected = loader_keys(root, SourceConfig())
    source = config(tmp_path, timeout_seconds=10.0)
    assert loader_keys(s3_url, source, workers=2) == expected
    with pytest.raises(SourceError, match=r"s3://bucket/set/nothing: no such file"):
        fetch_bytes(f"{s3_url}/nothing", source)
    with pytest.raises(SourceError, match=r"s3://absent/dataset.json"):
        open_source("s3://absent", source)
