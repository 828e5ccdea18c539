"""Object stores: sizes and times are limited as over HTTP, whichever filesystem of fsspec reads them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.config import SourceConfig
from shards.remote.errors import AbsentError, ForbiddenError, SourceError
from shards.remote.fetch import fetch_bytes
from shards.sources import RemoteSource
from tests.shards.coded import coded_dataset
from tests.shards.servers import FaultyServer, faulty_server

fsspec = pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem  # noqa: E402 (skipped without it)

DATA = bytes(range(256)) * 10_000
QUICK = SourceConfig(attempts=2, first_wait_seconds=0.0, timeout_seconds=0.3, min_kib_per_second=100_000.0)


class OddFile(MemoryFile):
    """A file of a store that pauses before each piece."""

    pause = 0.0

    def read(self, size: int = -1) -> bytes:
        time.sleep(self.pause)
        return bytes(super().read(size))


class OddFileSystem(MemoryFileSystem):
    protocol = "odd"
    store: dict[str, MemoryFile] = {}  # noqa: RUF012 (as its base class has it)

    def _open(self, path: str, mode: str = "rb", **options: object) -> MemoryFile:
        if "private" in path:
            raise PermissionError("not yours")
        if "absent" in path:
            raise FileNotFoundError(path)
        return OddFile(self, path, DATA)


@pytest.fixture(autouse=True)
def odd_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    monkeypatch.setattr(OddFile, "pause", 0.0)


def test_a_file_is_read_whole_within_its_limit() -> None:
    assert fetch_bytes("odd://x/file", QUICK, limit=len(DATA)) == DATA
    with pytest.raises(SourceError, match=r"odd://x/file: .*more than the (accepted )?100"):
        fetch_bytes("odd://x/file", QUICK, limit=100)


def test_final_errors_are_not_repeated() -> None:
    for name, kind in (("absent", AbsentError), ("private", ForbiddenError)):
        with pytest.raises(kind, match=f"odd://x/{name}: "):
            fetch_bytes(f"odd://x/{name}", QUICK)
    with pytest.raises(SourceError, match=r"nosuch://x: "):
        fetch_bytes("nosuch://x", QUICK)


@pytest.mark.parametrize(
    ("pause", "message"), [(2.0, r"no byte for \d\.\d s \(timeout"), (0.4, r"too slow: [12]\d{6} bytes in 1\.\d s")]
)
def test_a_slow_store_is_given_up(monkeypatch: pytest.MonkeyPatch, pause: float, message: str) -> None:
    monkeypatch.setattr(OddFile, "pause", pause)
    began = time.monotonic()
    with pytest.raises(SourceError, match=f"odd://x/file: {message}.*gave up after 2 attempts"):
        fetch_bytes("odd://x/file", dataclasses.replace(QUICK, timeout_seconds=1.0))
    assert time.monotonic() - began < 4


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A server that answers the requests for objects of the bucket `bucket`."""
    pytest.importorskip("s3fs")
    coded_dataset(tmp_path / "bucket", (2,))
    values = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with faulty_server(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def test_a_bucket_that_is_not_listed_has_no_denylist(
    s3: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s3.absent_status = 403
    config = SourceConfig(cache=tmp_path / "cache", attempts=2, first_wait_seconds=0.0, timeout_seconds=20.0)
    source = RemoteSource("s3://bucket", config)
    assert "s3://bucket/denylist.txt: counts as absent" in caplog.text
    assert source.dataset.denylist == frozenset()
    with pytest.raises(ForbiddenError, match=r"s3://bucket/clips/train/00009.tar: Forbidden"):
        fetch_bytes("s3://bucket/clips/train/00009.tar", config)


@pytest.mark.parametrize("fault", ["drip", "length immense", "length long", "chunk cut"])
def test_a_store_that_misbehaves_is_given_up_in_time(s3: FaultyServer, fault: str) -> None:
    config = SourceConfig(attempts=2, first_wait_seconds=0.0, timeout_seconds=1.0, min_kib_per_second=1000.0)
    s3.faults["/bucket/dataset.json"].extend([fault] * 50)
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"s3://bucket/dataset.json: .*gave up after 2 attempts"):
        fetch_bytes("s3://bucket/dataset.json", config)
    assert time.monotonic() - began < 15
