"""Streams a file from s3:// and the other filesystems of fsspec, within a pace and a limit of bytes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from shards.remote.errors import AbsentError, ForbiddenError, SourceError, TransientSourceError
from shards.remote.pace import Pace

_CHUNK = 1 << 20  # bytes read at a time
_BLOCK = 1 << 22  # bytes of a request, where a filesystem does not stream
_FINAL = ("NoCredentialsError", "ProfileNotFound", "ParamValidationError")  # of botocore, which may not be installed


def stream(url: str, *, size: int | None, limit: int, pace: Pace) -> Iterator[bytes]:
    """Yield the bytes of the file at an fsspec URL.

    `size` is the file's size in bytes if it is known, and `limit` the greatest that is accepted. Raises `AbsentError`,
    `ForbiddenError`, `SourceError` for URLs that fsspec cannot open and missing credentials, else
    `TransientSourceError`.
    """
    import fsspec

    try:
        # Not a cached instance: filesystems with an event loop do not survive a fork.
        filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{url}: {error}") from error
    try:
        read = _streamed if _can_stream(filesystem) else _pumped
        yield from read(filesystem, path, size, limit, pace)
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise AbsentError(f"{url}: no such file") from error
    except PermissionError as error:
        raise ForbiddenError(f"{url}: {error or 'not permitted'}") from error
    except fsspec.asyn.FSTimeoutError:
        raise pace.fault() from None
    except Exception as error:  # each filesystem has its own; those not known to be final count as transient
        if type(error).__name__ in _FINAL:
            raise SourceError(f"{url}: {error}") from error
        raise TransientSourceError(f"{type(error).__name__}: {error}") from error


def _can_stream(filesystem: Any) -> bool:
    from fsspec.asyn import AsyncFileSystem

    own = getattr(type(filesystem), "open_async", None)
    return isinstance(filesystem, AsyncFileSystem) and own is not AsyncFileSystem.open_async


def _streamed(filesystem: Any, path: str, size: int | None, limit: int, pace: Pace) -> Iterator[bytes]:
    """Yield the body of a single request as it arrives."""
    from fsspec.asyn import sync

    handle = sync(filesystem.loop, filesystem.open_async, path, "rb", timeout=pace.remaining())
    received = 0
    while data := sync(filesystem.loop, handle.read, _CHUNK, timeout=pace.remaining()):
        if not received:
            _require_size(handle.size, size, limit)
        received += len(data)
        pace.count(len(data))
        yield data
    if handle.size is not None and received != handle.size:
        raise TransientSourceError(f"truncated: received {received} of {handle.size} bytes")


def _pumped(filesystem: Any, path: str, size: int | None, limit: int, pace: Pace) -> Iterator[bytes]:
    """Yield what a thread reads by blocking calls, so that they, too, can be given up after a time."""
    pieces: queue.Queue[bytes | Exception] = queue.Queue(maxsize=4)
    is_over = threading.Event()

    def put(piece: bytes | Exception) -> None:
        while not is_over.is_set():
            try:
                pieces.put(piece, timeout=1.0)
            except queue.Full:
                continue
            return

    def pump() -> None:
        try:
            with filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead") as handle:
                _require_size(getattr(handle, "size", None), size, limit)
                while not is_over.is_set() and (data := handle.read(_CHUNK)):
                    put(data)
        except Exception as error:  # noqa: BLE001 (raised again by the thread that waits)
            put(error)
        put(b"")

    threading.Thread(target=pump, name="shard-fetch", daemon=True).start()
    try:
        while True:
            try:
                piece = pieces.get(timeout=pace.remaining())
            except queue.Empty:
                raise pace.fault() from None
            if isinstance(piece, Exception):
                raise piece
            if not piece:
                return
            pace.count(len(piece))
            yield piece
    finally:
        is_over.set()


def _require_size(announced: int | None, size: int | None, limit: int) -> None:
    if announced is None:
        return
    if size is not None and announced != size:
        raise TransientSourceError(f"the store says {announced} bytes, the manifest {size}")
    if announced > limit:
        raise TransientSourceError(f"the store says {announced} bytes, more than the {limit} that are accepted")
