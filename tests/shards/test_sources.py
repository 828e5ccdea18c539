"""Remote shards equal local ones, over HTTP with injected faults and over S3; errors name the URL."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.config import LoaderConfig, SourceConfig
from shards.loader import Loader
from shards.sources import LocalSource, RemoteSource, SourceError, fetch_bytes, open_source
from shards.stats import ShardError
from tests.shards.coded import coded_dataset
from tests.shards.servers import FaultyServer, faulty_server

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
