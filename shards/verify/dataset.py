"""Checks everything above single shards: the set of files, index files, dataset.json, companions, ledger and spans."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards import companions, files, schema
from shards.dataset import CARD, FEATURES, MANIFEST, TABLES, hash_file, hash_json, read_denylist
from shards.index import split_index, split_to_json
from shards.stats import SPLITS, ShardError, ShardStats, read_json_object, shard_paths
from shards.verify.shard import RESTORE, Finding, ShardReport, read_bounded

FINISH = "rerun the build, which rewrites the index files from the existing shards"
_UNFINISHED = "rerun the build, which completes the shard; or delete the file"
_OUR_FILE = re.compile(r"(\d{5,9})(\.tar|\.parquet|_stats\.json)")
_INDEXES = ("sizes.json", "shardindex.json")
_MAX_TABLE = 16 << 30  # bytes of ledger or spans, uncompressed
_MAX_NAMED = 20  # rows listed per table
_LEDGER = dict.fromkeys(("set", "video_uid", "status", "reason", "detail", "key", "shard"), pa.string())
_SPANS = {
    "video_uid": pa.string(),
    "start": pa.float64(),
    "end": pa.float64(),
    "status": pa.string(),
    "reason": pa.string(),
}


def find_shards(root: Path, companions: Iterable[str]) -> tuple[list[tuple[str, str, int]], list[Finding]]:
    """Return (set, split, number) of each shard with a stats file, and findings about missing and unexpected files."""
    shards: list[tuple[str, str, int]] = []
    findings: list[Finding] = []
    known = set(companions)
    for set_name in schema.RECORDS:
        for path in sorted((root / set_name).glob("*")):
            if not path.is_dir() or path.name not in SPLITS:
                problem = f"unexpected in a set, which has the folders {', '.join(SPLITS)}"
                findings.append(Finding(file=_name(root, path), problem=problem, remedy="move it out of the dataset"))
                continue
            numbers, found = _list_split(root, path, known)
            shards += [(set_name, path.name, number) for number in numbers]
            findings += found
    for path in sorted(root.glob("*")):
        if path.is_dir() and path.name not in (*schema.RECORDS, FEATURES) and any(path.glob("*/*.tar")):
            problem = f"unknown set; known sets: {', '.join(schema.RECORDS)}"
            remedy = "use the code that wrote it, or move it out of the dataset"
            findings.append(Finding(file=path.name, problem=problem, remedy=remedy))
    return shards, findings


def _list_split(root: Path, folder: Path, companions: set[str]) -> tuple[list[int], list[Finding]]:
    parts: dict[int, set[str]] = {}
    findings = []
    for path in sorted(folder.iterdir()):
        match = _OUR_FILE.fullmatch(path.name)
        if match and path.name == f"{int(match[1]):05d}{match[2]}" and path.is_file():
            parts.setdefault(int(match[1]), set()).add(match[2])
        elif path.name.startswith(files.TEMPORARY):
            remedy = "delete it, unless a build is running"
            findings.append(Finding(file=_name(root, path), problem="temporary file of a killed writer", remedy=remedy))
        elif path.name not in _INDEXES and _name(root, path) not in companions:
            problem = "unexpected file: it belongs to no shard, and dataset.json does not list it"
            findings.append(Finding(file=_name(root, path), problem=problem, remedy="move it out of the dataset"))
    for number, present in sorted(parts.items()):
        findings += _missing_parts(root, folder, number, present)
    return sorted(number for number, present in parts.items() if "_stats.json" in present), findings


def _missing_parts(root: Path, folder: Path, number: int, present: set[str]) -> Iterator[Finding]:
    stem = f"{_name(root, folder)}/{number:05d}"
    if "_stats.json" not in present:
        for ext in sorted(present):
            problem = "the shard has no stats file, so it is incomplete"
            yield Finding(file=f"{stem}{ext}", problem=problem, remedy=_UNFINISHED)
        return
    try:
        samples = ShardStats.read(folder / f"{number:05d}_stats.json").samples
    except ShardError:
        return  # reported by check_shard
    for ext in (".tar", ".parquet"):
        if samples and ext not in present:
            yield Finding(
                file=f"{stem}{ext}", problem=f"absent, but the stats file lists {samples} samples", remedy=RESTORE
            )
        if not samples and ext in present:
            yield Finding(
                file=f"{stem}{ext}", problem="unexpected, since the stats file lists no samples", remedy=_UNFINISHED
            )


def read_manifest(root: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Return the contents of `dataset.json`, empty if it cannot be read, and findings about the file itself."""
    path = root / MANIFEST
    try:
        value = read_json_object(path)
    except (ShardError, OSError) as error:
        problem = str(error).replace(f"{root}/", "")
        return {}, [Finding(file=MANIFEST, problem=problem, remedy=FINISH)]
    problems = []
    expected = value.pop("sha256", None)
    if expected != (actual := hash_json(value)):
        problems.append(f"altered: the sha256 of its contents is {actual}, but it states {expected}")
    elif files.json_bytes({**value, "sha256": expected}) != path.read_bytes():
        problems.append("altered: the bytes are not those that the build writes for these contents")
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        problems.append(f"schema version {value.get('schema_version')!r}; this code reads {schema.SCHEMA_VERSION}")
    for name in ("sets", "files", "toolchain"):
        if not isinstance(value.get(name), dict):
            problems.append(f"{name}: expected an object, not {value.get(name)!r:.80}")
            value[name] = {}
    return value, [Finding(file=MANIFEST, problem=problem, remedy=FINISH) for problem in problems]


def index_findings(
    root: Path, manifest: Mapping[str, Any], shards: Sequence[tuple[str, str, int]]
) -> Iterator[Finding]:
    """Yield problems of the splits' index files and of the entries for splits and shards in `dataset.json`."""
    by_split: dict[tuple[str, str], list[ShardStats]] = {}
    for set_name, split, number in sorted(shards):
        tar, _, stats_path = shard_paths(root, set_name, split, number)
        try:
            stats = ShardStats.read(stats_path)
        except ShardError:
            continue  # reported by check_shard
        if stats.shard != _name(root, tar):
            continue  # reported by check_shard
        by_split.setdefault((set_name, split), []).append(stats)
    listed = {
        (set_name, split): entry
        for set_name, splits in manifest.get("sets", {}).items()
        for split, entry in (splits.items() if isinstance(splits, dict) else ())
    }
    for (set_name, split), stats_list in by_split.items():
        for name, value in split_index(stats_list).items():
            path = root / set_name / split / name
            expected = files.json_bytes(value)
            if not path.is_file() or path.stat().st_size != len(expected) or path.read_bytes() != expected:
                problem = "absent, altered or outdated: it does not list the existing shards"
                yield Finding(file=_name(root, path), problem=problem, remedy=FINISH)
        if manifest:
            entry = listed.pop((set_name, split), None)
            yield from _split_findings(f"{set_name}/{split}", entry, split_to_json(root, stats_list))
        for stats in stats_list:
            if manifest and stats.toolchain != manifest["toolchain"]:
                problem = (
                    f"built with a different toolchain: {stats.toolchain}; that of dataset.json is "
                    f"{manifest['toolchain']}"
                )
                yield Finding(file=stats.shard, problem=problem, remedy="rebuild the dataset in an empty folder")
    for set_name, split in listed:
        problem = f"it lists {set_name}/{split}, which has no complete shard"
        yield Finding(file=MANIFEST, problem=problem, remedy=RESTORE)


def _split_findings(name: str, listed: Any, actual: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield differences between a split's entry in the manifest and the one computed from its stats files."""
    if not isinstance(listed, dict):
        problem = f"it does not list {name}, which has {actual['samples']} samples"
        yield Finding(file=MANIFEST, problem=problem, remedy=FINISH)
        return
    for field in ("samples", "bytes", "failed", "fingerprint"):
        if listed.get(field) != actual[field]:
            problem = f"{name}: {field} is {listed.get(field)!r:.80}; according to the stats files {actual[field]!r}"
            yield Finding(file=MANIFEST, problem=problem, remedy=FINISH)
    for field in ("shards", "empty"):
        entries = listed.get(field) or []
        expected = {entry["name"]: entry for entry in entries if isinstance(entry, dict) and "name" in entry}
        present = {entry["name"]: entry for entry in actual[field]}
        for tar_name in sorted({*expected, *present}):
            old, new = expected.get(tar_name), present.get(tar_name)
            if old is not None and new is not None and old.get("stats_sha256") != new["stats_sha256"]:
                problem = f"sha256 is {new['stats_sha256']}; in dataset.json it is {old.get('stats_sha256')}"
                yield Finding(file=f"{name}/{tar_name.replace('.tar', '_stats.json')}", problem=problem, remedy=RESTORE)
            elif old != new:
                problem = f"{name}/{tar_name}: listed as {_entry(old)}; according to its files {_entry(new)}"
                yield Finding(file=MANIFEST, problem=problem, remedy=RESTORE if new is None else FINISH)


def file_findings(root: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield problems of the files that `dataset.json` lists with a hash: card, ledger, spans, companions."""
    listed = manifest.get("files", {})
    for name, sha256 in listed.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            problem = f"it lists {name!r}, which is outside the dataset's folder"
            yield Finding(file=MANIFEST, problem=problem, remedy="do not use this dataset: it is malicious")
        elif not (root / name).is_file():
            yield Finding(file=name, problem="absent; dataset.json lists it", remedy=RESTORE)
        elif (actual := hash_file(root / name)) != sha256:
            yield Finding(file=name, problem=f"sha256 is {actual}; in dataset.json it is {sha256}", remedy=FINISH)
    for name in (CARD, *TABLES):
        if manifest and (root / name).is_file() and name not in listed:
            yield Finding(file=name, problem="dataset.json does not list it", remedy=FINISH)
    try:
        read_denylist(root / "denylist.txt")
    except UnicodeDecodeError as error:
        yield Finding(file="denylist.txt", problem=f"not UTF-8 text: {error}", remedy="save it as UTF-8")


def companion_findings(
    root: Path, manifest: Mapping[str, Any], shards: Sequence[tuple[str, str, int]]
) -> Iterator[Finding]:
    """Yield problems of the questions and labels that the existing splits must have."""
    for set_name, split in sorted({(set_name, split) for set_name, split, _ in shards}):
        if split not in schema.set_spec(set_name).companions:
            continue
        name = companions.companion_path(set_name, split)
        if manifest and name not in manifest["files"]:
            yield Finding(file=name, problem="dataset.json does not list it", remedy=FINISH)
        if not (root / name).is_file():
            if name not in manifest.get("files", {}):  # otherwise reported by file_findings
                yield Finding(file=name, problem="absent, so the split has no questions or labels", remedy=FINISH)
            continue
        try:
            companions.read_companion(root, set_name, split)
        except companions.CompanionError as error:
            yield Finding(file=name, problem=str(error).replace(f"{root}/{name}: ", ""), remedy=FINISH)


def key_findings(reports: Sequence[ShardReport]) -> Iterator[Finding]:
    """Yield the samples whose key occurs more than once in the dataset."""
    keys = pa.array([key for report in reports for key in report.keys], pa.string())
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    repeated = {entry["values"].as_py() for entry in pc.value_counts(keys) if entry["counts"].as_py() > 1}
    for report in reports:
        for key in report.keys:
            if key in repeated:
                problem = "another sample has the same key; keys are unique within a dataset"
                remedy = "rebuild in an empty folder: the annotations have changed"
                yield Finding(file=_tar_name(report), key=key, problem=problem, remedy=remedy)


def ledger_findings(root: Path, reports: Sequence[ShardReport]) -> Iterator[Finding]:
    """Yield differences between `ledger.parquet`, if it exists, and the samples in the shards."""
    yield from _table_findings(root, "ledger.parquet", _LEDGER, lambda table: _ledger_rows(root, table, reports))


def spans_findings(root: Path) -> Iterator[Finding]:
    """Yield gaps, overlaps and unknown statuses in `spans.parquet`, if it exists."""
    yield from _table_findings(root, "spans.parquet", _SPANS, _span_rows)


def _table_findings(
    root: Path, name: str, columns: Mapping[str, pa.DataType], check: Callable[[pa.Table], Iterable[tuple[str, str]]]
) -> Iterator[Finding]:
    if not (root / name).is_file():
        return
    try:
        table = read_bounded(root / name, limit=_MAX_TABLE)
    except (ShardError, pa.ArrowException, OSError) as error:
        yield Finding(file=name, problem=f"cannot be read: {error}".replace(f"{root}/", ""), remedy=FINISH)
        return
    for column, kind in columns.items():
        fields = [field for field in table.schema if field.name == column]
        if len(fields) != 1 or fields[0].type != kind or table[column].null_count:
            yield Finding(file=name, problem=f"missing column {column} of type {kind} without nulls", remedy=FINISH)
            return
    findings = [
        Finding(file=name, key=key, problem=problem, remedy=FINISH) for key, problem in islice(check(table), 1000)
    ]
    yield from findings[:_MAX_NAMED]
    if len(findings) > _MAX_NAMED:
        yield Finding(file=name, problem=f"at least {len(findings) - _MAX_NAMED} more problems", remedy=FINISH)


def _ledger_rows(root: Path, table: pa.Table, reports: Sequence[ShardReport]) -> Iterator[tuple[str, str]]:
    """Yield (key, problem): unknown statuses, packed rows without a sample, samples without a row, repeated rows."""
    for status in pc.unique(table["status"]).to_pylist():
        if status not in ("packed", "filtered", "failed"):
            yield "", f"unknown status {status!r}; expected packed, filtered or failed"
    of_sets = table.filter(pc.is_in(table["set"], pa.array(list(schema.RECORDS))))  # videos have rows, but no sample
    packed = of_sets.filter(pc.equal(of_sets["status"], "packed"))
    rows = pc.binary_join_element_wise(packed["shard"], packed["key"], "\t").combine_chunks()
    placed = pa.array([f"{_tar_name(report)}\t{key}" for report in reports for key in report.keys], pa.string())
    for entry in placed.filter(pc.invert(pc.is_in(placed, rows))):
        shard, _, key = entry.as_py().partition("\t")
        yield key, f"the sample in {shard} has no packed row"
    for entry in rows.filter(pc.invert(pc.is_in(rows, placed))):
        shard, _, key = entry.as_py().partition("\t")
        yield key, f"the packed row lists {shard}, which has no such sample"
    if pc.count_distinct(rows).as_py() != len(rows):
        for entry in pc.value_counts(rows):
            if entry["counts"].as_py() > 1:
                yield (
                    entry["values"].as_py().partition("\t")[2],
                    f"{entry['counts'].as_py()} packed rows for one sample",
                )
    accounted = {*table["key"].to_pylist()} if "item" not in table.column_names else {*table["item"].to_pylist()}
    for report in reports:
        job = report.job
        for item in _failed(root, job.set_name, job.split, job.number):
            if item not in accounted:
                yield item, f"the sample failed in {_tar_name(report)}, but has no row"


def _failed(root: Path, set_name: str, split: str, number: int) -> list[str]:
    try:
        return [item.key for item in ShardStats.read(shard_paths(root, set_name, split, number)[2]).failed]
    except ShardError:
        return []  # reported by check_shard


def _span_rows(table: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield (video, problem) for spans that do not cover a video without gaps from 0 s, each packed or failed."""
    at, video = 0.0, ""
    ordered = table.sort_by([("video_uid", "ascending"), ("start", "ascending"), ("end", "ascending")])
    for row in ordered.select(list(_SPANS)).to_pylist():
        if row["video_uid"] != video:
            at, video = 0.0, row["video_uid"]
        if row["status"] not in ("packed", "failed"):
            yield video, f"unknown status {row['status']!r}; expected packed or failed"
        if row["status"] == "failed" and not row["reason"]:
            yield video, f"{row['start']}–{row['end']} s failed without a reason"
        if abs(row["start"] - at) > 1e-6 or row["end"] < row["start"]:
            yield video, f"span {row['start']}–{row['end']} s; expected one from {at} s"
        at = row["end"]


def _tar_name(report: ShardReport) -> str:
    return f"{report.job.set_name}/{report.job.split}/{report.job.number:05d}.tar"


def _entry(entry: Mapping[str, Any] | None) -> str:
    return json.dumps(entry)[:400] if entry is not None else "nothing"


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
