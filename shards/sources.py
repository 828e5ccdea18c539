"""Where shards come from: a folder, read in place; or http(s)://, s3:// and whatever fsspec knows, by the cache."""

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
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_EVICTED_TRIES = 8  # fetches of one shard for one read, before the cache counts as too small


class SourceError(OSError):
    """A file that cannot be fetched; the message names its URL, what happened and how often it was tried."""

    exit_code: ClassVar[int] = 1


class AbsentError(SourceError):
    """A file that the server says is not there."""


class TransientSourceError(SourceError):
    """A fault that may be gone in a moment."""


class Source(Protocol):
    """An opened dataset and the bytes of its shards."""

    dataset: Dataset

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard's tar from `offset` on."""
        ...

    def parquet(self, shard: Shard) -> Path:
        """Return a local path of the shard's table."""
        ...

    def file(self, name: str) -> Path:
        """Return a local path of a file beside the shards: `name` is relative to the dataset's root."""
        ...

    def prefetch(self, shard: Shard) -> None:
        """Fetch a shard's tar into the cache, unless it is local or there is no room."""
        ...


def open_source(root: str | Path, config: SourceConfig) -> Source:
    """Return the dataset at a local path or URL; raise `SourceError` or `ShardError` where there is none."""
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
    """A dataset behind a URL. Manifest and denylist are read anew at each opening, the rest goes by the cache."""

    def __init__(self, url: str, config: SourceConfig) -> None:
        if config.cache is None:
            raise SourceError(f"{url}: source.cache is not set: a folder of this node that fetched shards are kept in")
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
        for _ in range(_EVICTED_TRIES):
            path = self._ensure(shard)
            assert path is not None
            try:
                return read_member(path, offset, size)
            except FileNotFoundError:
                continue  # evicted between finding and opening
        raise SourceError(
            f"{self._url_of(shard.path)}: evicted {_EVICTED_TRIES} times before it could be read: source.cache_gib = "
            f"{self._config.cache_gib} is less than the shards that are read at a time"
        )

    def parquet(self, shard: Shard) -> Path:
        """See `Source.parquet`: tables are small; they lie beside the manifest and are checked each time."""
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
    """Write what lies at `url` to `sink`, whole and checked; try again with growing waits after passing faults.

    A connection that breaks, a time-out, a body that is cut short, wrong bytes and the statuses 408, 425, 429 and
    5xx are passing; anything else is final. Raises `SourceError` naming the URL, the last fault and the attempts.
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
                raise SourceError(f"{url}: {error}; given up after {attempt} attempts") from error
            time.sleep(config.first_wait_seconds * 2 ** (attempt - 1))


def fetch_bytes(url: str, config: SourceConfig, sha256: str | None = None) -> bytes:
    """Return the bytes at `url`, of the given hash where one is known; see `fetch`."""
    sink = _Memory(sha256)
    fetch(url, sink, config)
    return bytes(sink.data)


class _Memory(Sink):
    """A sink in memory, for small files whose size is not known before."""

    def __init__(self, sha256: str | None) -> None:
        self._expected = sha256
        self.data = bytearray()

    def restart(self) -> None:
        self.data.clear()

    def write(self, data: bytes) -> None:
        self.data += data

    def check(self) -> None:
        if self._expected is not None and hashlib.sha256(self.data).hexdigest() != self._expected:
            raise WrongBytesError(f"{len(self.data)} bytes of another hash than the manifest's {self._expected} came")


def _stream(url: str, timeout: float) -> Iterator[bytes]:
    """Yield the bytes at `url`; raise `TransientSourceError`, `AbsentError` or `SourceError`."""
    if url.startswith(("http://", "https://")):
        yield from _stream_http(url, timeout)
    else:
        yield from _stream_fsspec(url)


def _stream_http(url: str, timeout: float) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 (the scheme was looked at)
            expected = response.headers.get("Content-Length")
            came = 0
            while data := response.read(_CHUNK):
                came += len(data)
                yield data
            if expected is not None and came != int(expected):
                raise TransientSourceError(f"cut short: {came} of {expected} bytes came")
    except urllib.error.HTTPError as error:
        if error.code in _PASSING_STATUS:
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
        # Made anew in each process: filesystems with an event loop do not survive a fork.
        filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{url}: {error}") from error
    try:
        with filesystem.open(path, "rb", block_size=16 * _CHUNK, cache_type="readahead") as handle:
            while data := handle.read(_CHUNK):
                yield data
    except FileNotFoundError as error:
        raise AbsentError(f"{url}: there is no such file") from error
    except PermissionError as error:
        raise SourceError(f"{url}: {error or 'not permitted'}") from error
    except Exception as error:  # each filesystem has its own kinds; what is not known to be final may pass
        if type(error).__name__ in ("NoCredentialsError", "ProfileNotFound", "ParamValidationError"):
            raise SourceError(f"{url}: {error}") from error
        raise TransientSourceError(f"{type(error).__name__}: {error}") from error
