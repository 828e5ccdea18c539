"""Sources of shards: a local folder, read in place, or http(s)://, s3:// and other fsspec URLs through the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import urllib.parse
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol

from shards.cache import ShardCache, Sink, WrongBytesError
from shards.config import SourceConfig
from shards.dataset import DENYLIST, MANIFEST, Dataset, Shard, hash_file, open_dataset, read_member
from shards.files import remove_temporaries, replacing, write_bytes
from shards.remote.errors import AbsentError as AbsentError
from shards.remote.errors import ForbiddenError as ForbiddenError
from shards.remote.errors import SourceError as SourceError
from shards.remote.errors import TransientSourceError as TransientSourceError
from shards.remote.fetch import MAX_BYTES, fetch
from shards.remote.fetch import fetch_bytes as fetch_bytes
from shards.remote.private import private_folder, reporting_a_full_disk
from shards.stats import ShardError

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 8  # to read from a shard that is evicted again and again, before the cache counts as too small
_INDEX_SLACK = 1 << 20  # bytes that a shard's parquet may have beyond the bytes of its tar
_RANDOM = secrets.SystemRandom()  # from the kernel, since forked workers would share another generator's numbers


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

    def repair(self, shard: Shard) -> bool:
        """Check the stored copy of a shard whose bytes made no sense; return whether reading again may give others."""
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
    scheme, _, rest = text.partition("://")
    text = f"{scheme.lower()}://{rest}"
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

    def repair(self, shard: Shard) -> bool:
        """See `Source.repair`: there is no other copy than this one."""
        return False

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
        manifests = config.cache / "manifests"
        self._mirror = manifests / hashlib.sha256(url.encode()).hexdigest()[:16]
        for folder in (manifests, self._mirror):
            private_folder(folder)
        remove_temporaries(self._mirror, is_locked=False)
        self._store(self._mirror / MANIFEST, fetch_bytes(f"{url}/{MANIFEST}", config, check=_require_json))
        try:
            self._store(self._mirror / DENYLIST, self._fetch_optional(DENYLIST, _require_list))
        except AbsentError:
            (self._mirror / DENYLIST).unlink(missing_ok=True)
        self.dataset = open_dataset(self._mirror)

    def read(self, shard: Shard, offset: int, size: int) -> bytes:
        """See `Source.read`."""
        if min(offset, size) < 0 or offset + size > shard.bytes:
            raise ShardError(
                f"{self._url_of(shard.path)}: {size} bytes at {offset} lie outside of the {shard.bytes} bytes that the "
                "manifest states: run python -m shards.verify where the dataset was made"
            )
        for _ in range(_MAX_ATTEMPTS):
            self._ensure(shard)
            data = self.cache.read(shard.sha256, offset, size)
            if data is None:
                continue  # evicted between lookup and opening
            is_wrong = len(data) != size
            if (is_wrong or self._is_drawn()) and self.cache.repair(shard.sha256, is_forced=True):
                continue
            return data
        raise SourceError(
            f"{self._url_of(shard.path)}: evicted or damaged {_MAX_ATTEMPTS} times before it could be read: "
            f"data.source.cache_gib = {self._config.cache_gib} is too small for the shards in use at a time, or the "
            f"disk of {self._config.cache} is damaged"
        )

    def repair(self, shard: Shard) -> bool:
        """See `Source.repair`: a copy in the cache that has another hash is removed, so that it is fetched again."""
        return self.cache.repair(shard.sha256)

    def parquet(self, shard: Shard) -> Path:
        """See `Source.parquet`: stored beside the copy of the manifest, and checked at each call.

        An index repeats less than its tar holds, so it is not accepted if it is larger by more than a margin.
        """
        return self._mirrored(shard.parquet, shard.parquet_sha256, limit=shard.bytes + _INDEX_SLACK)

    def file(self, name: str) -> Path:
        """See `Source.file`: checked against the manifest's hash where it lists one, else fetched each time."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ShardError(f"{name!r} is no path below the dataset's root")
        path, sha256 = self.dataset.root / name, self.dataset.files.get(name)
        if sha256 is not None:
            return self._mirrored(path, sha256, limit=MAX_BYTES)
        self._store(path, self._fetch_optional(name))
        return path

    def prefetch(self, shard: Shard) -> None:
        """See `Source.prefetch`."""
        self._ensure(shard, is_prefetch=True)

    def _mirrored(self, path: Path, sha256: str, *, limit: int) -> Path:
        """Return `path`, a file beside the copy of the manifest, fetched unless it already has the hash."""
        if not path.is_file() or hash_file(path) != sha256:
            with (
                reporting_a_full_disk(self.cache.folder, limit),
                replacing(path) as temporary,
                temporary.open("x+b") as handle,
            ):
                fetch(self._url_of(path), Sink(handle, sha256=sha256, limit=limit), self._config)
        return path

    def _store(self, path: Path, data: bytes) -> None:
        with reporting_a_full_disk(self.cache.folder, len(data)):
            write_bytes(path, data)

    def _fetch_optional(self, name: str, check: Callable[[bytes], None] | None = None) -> bytes:
        """Return a file that the dataset may not have; raise `AbsentError` if so.

        A server that does not list what it holds, such as S3 without the permission ListBucket, answers 403 for every
        absent file. Whether it does is found by asking for one that cannot exist.
        """
        url = f"{self._url}/{name}"
        try:
            return fetch_bytes(url, self._config, check=check)
        except ForbiddenError as error:
            try:
                fetch_bytes(f"{self._url}/absent-{secrets.token_hex(8)}", self._config)
            except ForbiddenError:
                logger.warning(
                    "%s: counts as absent: the server refuses it as it refuses files that do not exist. "
                    "If it does exist, permit reading it; permission to list would settle it",
                    url,
                )
                raise AbsentError(f"{url}: refused, as every absent file of this server") from error
            except AbsentError:
                raise ForbiddenError(f"{error}: it exists, since this server says so of absent files: permit") from None
            raise

    def _is_drawn(self) -> bool:
        """Return whether this read checks its shard."""
        return self._config.cache_check_rate > 0 and _RANDOM.random() < self._config.cache_check_rate

    def _url_of(self, path: Path) -> str:
        return f"{self._url}/{path.relative_to(self._mirror).as_posix()}"

    def _ensure(self, shard: Shard, *, is_prefetch: bool = False) -> Path | None:
        def fill(sink: Sink) -> None:
            fetch(self._url_of(shard.path), sink, self._config)

        return self.cache.ensure(shard.sha256, shard.bytes, fill, is_prefetch=is_prefetch)


def _require_json(data: bytes) -> None:
    """Raise `WrongBytesError` for what is no JSON, such as a part of it or a page that a proxy sent instead."""
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WrongBytesError(f"not JSON: {error}") from None


def _require_list(data: bytes) -> None:
    """Raise `WrongBytesError` for what is no list of videos, such as a page that a proxy sent instead."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongBytesError(f"not a denylist: {error}") from None
    if "\0" in text or text.lstrip()[:1] in ("<", "{"):
        raise WrongBytesError(f"not a denylist: it begins with {text.lstrip()[:20]!r}")
