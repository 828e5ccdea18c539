"""Sources of shards: a local folder, read in place, or http(s)://, s3:// and other fsspec URLs through the cache."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Protocol

from shards.cache import ShardCache, Sink, WrongBytesError
from shards.config import SourceConfig
from shards.dataset import DENYLIST, MANIFEST, Dataset, Shard, hash_file, open_dataset, read_member
from shards.files import write_bytes

_CHUNK = 1 << 20  # bytes read at a time
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_EVICTIONS = 8  # of one shard during one read before the cache counts as too small


class SourceError(OSError):
    """A file that cannot be fetched; the message has its URL, the cause and the number of attempts."""

    exit_code: ClassVar[int] = 1


class AbsentError(SourceError):
    """A file that does not exist at its URL."""


class TransientSourceError(SourceError):
    """A fault that may not recur at the next attempt."""


class Source(Protocol):
    """An opened dataset, and access to the bytes of its files."""

    dataset: Dataset

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard's tar, starting at byte `offset`."""
        ...

    def parquet(self, shard: Shard) -> Path:
        """Return a local path of the shard's parquet."""
        ...

    def file(self, name: str) -> Path:
        """Return a local path of a file beside the shards: `name` is relative to the dataset's root."""
        ...

    def prefetch(self, shard: Shard) -> None:
        """Fetch a shard's tar into the cache, unless it is local or there is no room."""
        ...


def open_source(root: str | Path, config: SourceConfig) -> Source:
    """Return the dataset at a local path or URL.

    Raises `ShardError` for a missing or malformed dataset and `SourceError` if a URL cannot be read or no cache is
    configured for it.

        source = open_source("s3://bucket/dataset", SourceConfig(cache=Path("/scratch/cache")))
        shard = source.dataset.split("clips", "train").shards[0]
        header = source.read(shard, offset=0, size=512)
    """
    text = str(root)
    if "://" not in text:
        return LocalSource(Path(text))
    if text.startswith("file://"):
        return LocalSource(Path(urllib.parse.unquote(text.removeprefix("file://"))))
    return RemoteSource(text.rstrip("/"), config)


class LocalSource:
    """A dataset in a folder, read in place."""

    def __init__(self, root: Path) -> None:
        self.dataset = open_dataset(root)

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """See `Source.read`."""
        return read_member(shard.path, offset, size)

    def parquet(self, shard: Shard) -> Path:
        """See `Source.parquet`."""
        return shard.parquet

    def file(self, name: str) -> Path:
        """See `Source.file`."""
        return self.dataset.root / name

    def prefetch(self, shard: Shard) -> None:
        """See `Source.prefetch`: local shards need no fetching."""


class RemoteSource:
    """A dataset behind a URL; manifest and denylist are fetched at each opening, tars are cached."""

    def __init__(self, url: str, config: SourceConfig) -> None:
        if config.cache is None:
            raise SourceError(f"{url}: set data.source.cache to a folder on this node for fetched shards")
        self._url, self._config = url, config
        self.cache = ShardCache(config.cache, budget=config.cache_bytes)
        mirror = config.cache / "manifests" / hashlib.sha256(url.encode()).hexdigest()[:16]
        write_bytes(mirror / MANIFEST, fetch_bytes(f"{url}/{MANIFEST}", config))
        try:
            write_bytes(mirror / DENYLIST, fetch_bytes(f"{url}/{DENYLIST}", config))
        except AbsentError:
            (mirror / DENYLIST).unlink(missing_ok=True)
        self.dataset = open_dataset(mirror)

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """See `Source.read`."""
        for _ in range(_MAX_EVICTIONS):
            path = self._ensure(shard)
            assert path is not None
            try:
                return read_member(path, offset, size)
            except FileNotFoundError:
                continue  # evicted between lookup and opening
        raise SourceError(
            f"{self._url_of(shard.path)}: evicted {_MAX_EVICTIONS} times before it could be read: "
            f"data.source.cache_gib = {self._config.cache_gib} is too small for the shards in use at a time"
        )

    def parquet(self, shard: Shard) -> Path:
        """See `Source.parquet`: stored beside the copy of the manifest, and checked at each call."""
        return self._mirrored(shard.parquet, shard.parquet_sha256)

    def file(self, name: str) -> Path:
        """See `Source.file`: checked against the manifest's hash where it lists one, else fetched each time."""
        return self._mirrored(self.dataset.root / name, self.dataset.files.get(name))

    def prefetch(self, shard: Shard) -> None:
        """See `Source.prefetch`."""
        self._ensure(shard, is_prefetch=True)

    def _mirrored(self, path: Path, sha256: str | None) -> Path:
        """Return `path`, a file beside the copy of the manifest, fetched unless it already has the hash."""
        if sha256 is None or not path.exists() or hash_file(path) != sha256:
            write_bytes(path, fetch_bytes(self._url_of(path), self._config, sha256))
        return path

    def _url_of(self, path: Path) -> str:
        return f"{self._url}/{path.relative_to(self.dataset.root).as_posix()}"

    def _ensure(self, shard: Shard, *, is_prefetch: bool = False) -> Path | None:
        def fill(sink: Sink) -> None:
            fetch(self._url_of(shard.path), sink, self._config)

        return self.cache.ensure(shard.sha256, shard.bytes, fill, is_prefetch=is_prefetch)


def fetch(url: str, sink: Sink, config: SourceConfig) -> None:
    """Write the complete, checked file at `url` to `sink`; retry transient faults with exponential backoff.

    Broken connections, time-outs, truncated bodies, wrong bytes and HTTP 408, 425, 429, 500, 502, 503 and 504 are
    transient; everything else is final. Raises `SourceError` with the URL, the last fault and the number of attempts.
    """
    for attempt in range(1, config.attempts + 1):
        try:
            sink.restart()
            for data in _stream(url, config.timeout_seconds):
                sink.write(data)
            sink.check()
            return
        except (TransientSourceError, WrongBytesError) as error:
            if attempt == config.attempts:
                raise SourceError(f"{url}: {error}; gave up after {attempt} attempts") from error
            time.sleep(config.first_wait_seconds * 2 ** (attempt - 1))


def fetch_bytes(url: str, config: SourceConfig, sha256: str | None = None) -> bytes:
    """Return the file at `url`, checked against its hash if one is given; see `fetch` for retries and errors."""
    sink = _Memory(sha256)
    fetch(url, sink, config)
    return bytes(sink.data)


class _Memory(Sink):
    """A sink in memory, for small files of unknown size."""

    def __init__(self, sha256: str | None) -> None:
        self._expected = sha256
        self.data = bytearray()

    def restart(self) -> None:
        self.data.clear()

    def write(self, data: bytes) -> None:
        self.data += data

    def check(self) -> None:
        if self._expected is not None and hashlib.sha256(self.data).hexdigest() != self._expected:
            raise WrongBytesError(f"received {len(self.data)} bytes whose sha256 is not {self._expected}")


def _stream(url: str, timeout: float) -> Iterator[bytes]:
    """Yield the bytes at `url`; raise `TransientSourceError`, `AbsentError` or `SourceError`."""
    if url.startswith(("http://", "https://")):
        yield from _stream_http(url, timeout)
    else:
        yield from _stream_fsspec(url)


def _stream_http(url: str, timeout: float) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 (the scheme was checked)
            expected = response.headers.get("Content-Length")
            received = 0
            while data := response.read(_CHUNK):
                received += len(data)
                yield data
            if expected is not None and received != int(expected):
                raise TransientSourceError(f"truncated: received {received} of {expected} bytes")
    except urllib.error.HTTPError as error:
        if error.code in _TRANSIENT_STATUS:
            raise TransientSourceError(f"HTTP {error.code} {error.reason}") from error
        kind = AbsentError if error.code in (404, 410) else SourceError
        raise kind(f"{url}: HTTP {error.code} {error.reason}") from error
    except SourceError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise TransientSourceError(str(error) or type(error).__name__) from error


def _stream_fsspec(url: str) -> Iterator[bytes]:
    import fsspec

    try:
        # Not a cached instance: filesystems with an event loop do not survive a fork.
        filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{url}: {error}") from error
    try:
        with filesystem.open(path, "rb", block_size=16 * _CHUNK, cache_type="readahead") as handle:
            while data := handle.read(_CHUNK):
                yield data
    except FileNotFoundError as error:
        raise AbsentError(f"{url}: no such file") from error
    except PermissionError as error:
        raise SourceError(f"{url}: {error or 'not permitted'}") from error
    except Exception as error:  # each filesystem has its own; those not known to be final count as transient
        if type(error).__name__ in ("NoCredentialsError", "ProfileNotFound", "ParamValidationError"):
            raise SourceError(f"{url}: {error}") from error
        raise TransientSourceError(f"{type(error).__name__}: {error}") from error
