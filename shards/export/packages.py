"""Exports by other projects' own writers: `mds` (MosaicML streaming), `litdata` (LitData), `lance` (Lance).

Each sample has key, jpg, json, mp4 and txt, as in the tars. The packages are not dependencies of this project.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards import files, schema
from shards.dataset import Dataset, Shard, Split, row_schema
from shards.export.job import ExportError, Format, Options, Sample, ShardExport

_Results = Sequence[tuple[Split, Shard, Mapping[str, Any]]]
_MDS_COLUMNS = {"key": "str", "jpg": "bytes", "json": "bytes", "mp4": "bytes", "txt": "str"}


def _package(name: str, form: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{form}: {error}; run `pip install {install}`") from None


def _whole(sample: Sample) -> dict[str, Any]:
    return {"key": sample.key, **sample.members, "txt": sample.members["txt"].decode()}


def _fresh(folder: Path) -> Path:
    """Return an empty folder: what is there was not finished."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _mds_shard(work: ShardExport) -> dict[str, Any]:
    """Write OUT/<set>/<split>/<number>/ with the MDS files of one shard."""
    writer = _package("streaming", "mds", "mosaicml-streaming").MDSWriter
    count = 0
    with writer(out=str(_fresh(work.out / work.place)), columns=_MDS_COLUMNS, hashes=["sha1"]) as out:
        for sample in work.samples(schema.MEMBERS):
            out.write(_whole(sample))
            count += 1
    return {"samples": count}


def _mds_finish(dataset: Dataset, out: Path, options: Options, results: _Results) -> None:
    """Write OUT/<set>/<split>/index.json over the MDS files of all shards."""
    for set_name, split in dict.fromkeys((split.set_name, split.split) for split, _, _ in results):
        merged: dict[str, Any] = {"version": 2, "shards": []}
        for one, shard, result in results:
            if (one.set_name, one.split) != (set_name, split) or not result["samples"]:
                continue
            stem = shard.path.stem
            for entry in json.loads((out / set_name / split / stem / "index.json").read_bytes())["shards"]:
                for kind in ("raw_data", "zip_data"):
                    if entry.get(kind) is not None:
                        entry[kind]["basename"] = f"{stem}/{entry[kind]['basename']}"
                merged["shards"].append(entry)
        files.write_json(out / set_name / split / "index.json", merged)


def _litdata_finish(dataset: Dataset, out: Path, options: Options, results: _Results) -> None:
    """Write OUT/<set>/<split>/ with LitData's chunks, in one process, by its own writer."""
    writer_module = _package("litdata.streaming.writer", "litdata", "litdata")
    for set_name, split in dict.fromkeys((split.set_name, split.split) for split, _, _ in results):
        mark = out / ".export" / set_name / f"{split}.json"
        shards = [(one, shard) for one, shard, _ in results if (one.set_name, one.split) == (set_name, split)]
        made_of = {"shards": [shard.sha256 for _, shard in shards], "denylist": sorted(dataset.denylist)}
        if mark.is_file() and json.loads(mark.read_bytes()) == made_of:
            continue
        folder = _fresh(out / set_name / split)
        writer = writer_module.BinaryWriter(str(folder), chunk_bytes="64MB")
        index = 0
        for one, shard in shards:
            work = ShardExport(dataset=dataset, split=one, shard=shard, out=out, options=options)
            for sample in work.samples(schema.MEMBERS):
                writer.add_item(index, _whole(sample))
                index += 1
        writer.done()
        writer.merge()
        files.write_json(mark, made_of)


def _lance_finish(dataset: Dataset, out: Path, options: Options, results: _Results) -> None:
    """Write OUT/<set>_<split>.lance: a row a sample with its members and all scalar fields, a fragment a shard."""
    lance = _package("lance", "lance", "pylance")
    for set_name, split in dict.fromkeys((split.set_name, split.split) for split, _, _ in results):
        shards = [(one, shard) for one, shard, _ in results if (one.set_name, one.split) == (set_name, split)]
        path = out / f"{set_name}_{split}.lance"
        mark = out / ".export" / f"{set_name}_{split}.json"
        made_of = {"shards": [shard.sha256 for _, shard in shards], "denylist": sorted(dataset.denylist)}
        if mark.is_file() and json.loads(mark.read_bytes()) == made_of:
            continue
        shutil.rmtree(path, ignore_errors=True)
        columns = _lance_schema(set_name)
        mode = "create"
        for one, shard in shards:
            work = ShardExport(dataset=dataset, split=one, shard=shard, out=out, options=options)
            reader = pa.RecordBatchReader.from_batches(columns, _lance_batches(work, columns))
            lance.write_dataset(reader, str(path), mode=mode)
            mode = "append"
        files.write_json(mark, made_of)


def _lance_schema(set_name: str) -> pa.Schema:
    members = [(ext, pa.string() if ext == "txt" else pa.large_binary()) for ext in schema.MEMBERS]
    scalars = [(f.name, f.type) for f in row_schema(set_name) if f.name in schema.scalar_fields(set_name)]
    return pa.schema([("key", pa.string()), *members, *scalars])


def _lance_batches(work: ShardExport, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    for sample in work.samples(schema.MEMBERS):
        row = _whole(sample) | {name: sample.record[name] for name in schema.scalar_fields(work.split.set_name)}
        yield pa.RecordBatch.from_pylist([row], schema=columns)


MDS = Format(name="mds", title="MosaicML streaming", shard=_mds_shard, finish=_mds_finish)
LITDATA = Format(name="litdata", title="LitData", finish=_litdata_finish)
LANCE = Format(name="lance", title="Lance, a row per sample", finish=_lance_finish)
