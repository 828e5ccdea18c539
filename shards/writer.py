"""Writes one shard: streams the tar, then writes its parquet and the stats file that marks it complete."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from shards import files, schema, tar
from shards.dataset import row_schema
from shards.keys import is_key
from shards.stats import FailedItem, ShardError, ShardStats, check_failed, is_done, shard_paths

__all__ = ["FailedItem", "ShardStats", "ShardWriter"]


class ShardWriter:
    """Context manager that writes one shard; samples are stored in the order of `add`.

        with ShardWriter(root, "clips", "train", 0, toolchain=toolchain) as writer:
            for sample in samples:
                writer.add(sample)
            stats = writer.finish(failed)

    Leaving the context without `finish` leaves no files. A killed process leaves at most `.tmp-*` files, or a tar and
    parquet without a stats file, which no reader uses.

    The first sample of a tar must have no empty list, because some readers infer types from it. Samples with empty
    lists are spooled to disk until such a sample has been added, and then follow it in their order.
    """

    def __init__(self, root: Path, set_name: str, split: str, number: int, *, toolchain: Mapping[str, str]) -> None:
        """Open shard `number` of a split below `root`; raise `ShardError` if it is already published."""
        self._tar_path, self._parquet_path, self._stats_path = shard_paths(root, set_name, split, number)
        self._shard = f"{set_name}/{split}/{self._tar_path.name}"
        if is_done(root, set_name, split, number):
            raise ShardError(f"{self._stats_path}: the shard is published and never rewritten; append a new number")
        self._root, self._number = root, number
        self._set, self._split = set_name, split
        self._toolchain = dict(sorted(toolchain.items()))
        self._rows: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._withheld: list[tuple[str, schema.MediaRecord, tuple[int, ...]]] = []
        self._member_bytes = dict.fromkeys(schema.MEMBERS, 0)
        self._position = 0  # bytes of the tar so far
        self._digest = hashlib.sha256()
        self._finished = False
        self._temporary = files.temporary_name(self._tar_path)
        self._stack = ExitStack()
        self._tar_path.parent.mkdir(parents=True, exist_ok=True)
        self._tar: IO[bytes] = self._stack.enter_context(self._temporary.open("wb"))
        self._stack.callback(self._temporary.unlink, missing_ok=True)
        self._spool: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, sample: schema.Sample) -> None:
        """Append a sample.

        Raises `schema.SchemaError` for a record that violates the contract, and `ShardError` for an invalid or
        repeated key or for media of the wrong format or size; both name the shard and the key.
        """
        where = f"{self._shard}: {sample.key!r}"
        if self._finished:
            raise ShardError(f"{where}: the shard is finished")
        if not is_key(sample.key):
            raise ShardError(f"{where}: a key has 1 to 90 characters of [A-Za-z0-9_-]; create it with keys.make_key")
        if sample.key in self._keys:
            raise ShardError(f"{where}: the shard already has a sample with this key")
        try:
            schema.check(self._set, sample.record)
        except schema.SchemaError as error:
            raise schema.SchemaError(f"{where}: {error}") from None
        if not sample.jpg.startswith(b"\xff\xd8") or sample.mp4[4:8] != b"ftyp":
            sizes = f"{len(sample.jpg)} and {len(sample.mp4)} bytes"
            raise ShardError(f"{where}: jpg is not a JPEG, or mp4 is not an MP4 file ({sizes})")
        members = (sample.jpg, schema.to_bytes(sample.record), sample.mp4, sample.record.text.encode())
        for ext, data in zip(schema.MEMBERS, members, strict=True):
            if len(data) > tar.MAX_MEMBER[ext]:
                raise ShardError(f"{where}: {ext} has {len(data)} bytes; the limit is {tar.MAX_MEMBER[ext]}")
        self._keys.add(sample.key)
        if not self._rows and not schema.list_depths_filled(schema.to_json(sample.record)):
            self._withhold(sample, members)
            return
        self._write_sample(sample.key, sample.record, members)
        self._release_withheld()

    def finish(self, failed: Sequence[FailedItem] = ()) -> ShardStats:
        """Publish tar, parquet and stats file in this order, each atomically; return the stats.

        `failed` lists the samples that were planned for this shard but could not be produced. A shard without samples
        publishes only its stats file.
        """
        failed_by_key = check_failed(failed, self._keys)
        self._release_withheld()
        self._write(tar.end(self._position))
        self._tar.flush()
        self._finished = True
        if is_done(self._root, self._set, self._split, self._number):
            return self._published_meanwhile()
        # The stats file of an incomplete shard with this number must not mark the new one as complete.
        self._stats_path.unlink(missing_ok=True)
        parquet_sha256 = ""
        if self._rows:
            files.publish(self._temporary, self._tar_path)
            parquet = self._parquet_bytes()
            parquet_sha256 = hashlib.sha256(parquet).hexdigest()
            files.write_bytes(self._parquet_path, parquet)
        else:
            self._tar_path.unlink(missing_ok=True)
            self._parquet_path.unlink(missing_ok=True)
        stats = ShardStats(
            schema_version=schema.SCHEMA_VERSION,
            shard=self._shard,
            samples=len(self._rows),
            bytes=self._position if self._rows else 0,
            sha256=self._digest.hexdigest() if self._rows else "",
            parquet_sha256=parquet_sha256,
            parquet_writer=f"pyarrow {pa.__version__}",
            member_bytes=self._member_bytes,
            failed=failed_by_key,
            toolchain=self._toolchain,
        )
        stats.write(self._stats_path)
        return stats

    def _published_meanwhile(self) -> ShardStats:
        """Return the stats that another process published for this shard; raise `ShardError` if the tars differ."""
        stats = ShardStats.read(self._stats_path)
        if stats.sha256 != (self._digest.hexdigest() if self._rows else ""):
            raise ShardError(
                f"{self._tar_path}: another process published {stats.samples} samples (sha256 {stats.sha256}); "
                f"this one wrote {len(self._rows)} (sha256 {self._digest.hexdigest()}): inputs or toolchains differ"
            )
        return stats

    def _withhold(self, sample: schema.Sample, members: Sequence[bytes]) -> None:
        if self._spool is None:
            # An unnamed file disappears with the process, however that ends.
            spool = tempfile.TemporaryFile(dir=self._tar_path.parent, prefix=files.TEMPORARY)  # noqa: SIM115
            self._spool = self._stack.enter_context(spool)
        self._withheld.append((sample.key, sample.record, tuple(map(len, members))))
        for member in members:
            self._spool.write(member)

    def _release_withheld(self) -> None:
        """Append the spooled samples, one in memory at a time."""
        if self._spool is None:
            return
        self._spool.seek(0)
        for key, record, sizes in self._withheld:
            self._write_sample(key, record, tuple(self._spool.read(size) for size in sizes))
        self._withheld.clear()
        self._spool.close()
        self._spool = None

    def _write_sample(self, key: str, record: schema.MediaRecord, members: Sequence[bytes]) -> None:
        row: dict[str, Any] = {"key": key}
        for ext, data in zip(schema.MEMBERS, members, strict=True):
            self._write(tar.header(f"{key}.{ext}", len(data)))
            row[f"{ext}_offset"], row[f"{ext}_size"] = self._position, len(data)
            self._write(data)
            self._write(bytes(-len(data) % tar.BLOCK))
            self._member_bytes[ext] += len(data)
        for name in schema.scalar_fields(self._set):
            row[name] = getattr(record, name)
        self._rows.append(row)

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._digest.update(data)
        self._position += len(data)

    def _parquet_bytes(self) -> bytes:
        table = pa.Table.from_pylist(self._rows, schema=row_schema(self._set))
        sink = pa.BufferOutputStream()
        pq.write_table(
            table, sink, compression="zstd", compression_level=3, row_group_size=len(self._rows), store_schema=False
        )
        data: bytes = sink.getvalue().to_pybytes()
        return data
