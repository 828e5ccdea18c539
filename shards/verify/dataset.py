"""Checks what lies over the shards: files that are there or not, the indexes, dataset.json, ledger and spans."""

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

FINISH = "run the build again: it writes the index files anew from the shards that are there"
_UNFINISHED = "run the build again: it finishes the shard; or delete the file"
_OUR_FILE = re.compile(r"(\d{5,9})(\.tar|\.parquet|_stats\.json)")
_INDEXES = ("sizes.json", "shardindex.json")
_MAX_TABLE = 16 << 30  # bytes, ledger and spans, unpacked
_MAX_NAMED = 20  # rows named of one kind of problem
_LEDGER = dict.fromkeys(("set", "video_uid", "status", "reason", "detail", "key", "shard"), pa.string())
_SPANS = {
    "video_uid": pa.string(),
    "start": pa.float64(),
    "end": pa.float64(),
    "status": pa.string(),
    "reason": pa.string(),
}


def find_shards(root: Path, companions: Iterable[str]) -> tuple[list[tuple[str, str, int]], list[Finding]]:
    """Return (set, split, number) of each shard that has a stats file, and findings about the files that are there."""
    shards: list[tuple[str, str, int]] = []
    findings: list[Finding] = []
    known = set(companions)
    for set_name in schema.RECORDS:
        for path in sorted((root / set_name).glob("*")):
            if not path.is_dir() or path.name not in SPLITS:
                what = f"it has no place in a set; a set has the folders {', '.join(SPLITS)}"
                findings.append(Finding(file=_name(root, path), what=what, mend="move it out of the dataset"))
                continue
            numbers, found = _list_split(root, path, known)
            shards += [(set_name, path.name, number) for number in numbers]
            findings += found
    for path in sorted(root.glob("*")):
        if path.is_dir() and path.name not in (*schema.RECORDS, FEATURES) and any(path.glob("*/*.tar")):
            what = f"a set that the contract does not know; it knows {', '.join(schema.RECORDS)}"
            findings.append(Finding(file=path.name, what=what, mend="use the code that wrote it, or move it away"))
    return shards, findings


def _list_split(root: Path, folder: Path, companions: set[str]) -> tuple[list[int], list[Finding]]:
    parts: dict[int, set[str]] = {}
    findings = []
    for path in sorted(folder.iterdir()):
        match = _OUR_FILE.fullmatch(path.name)
        if match and path.name == f"{int(match[1]):05d}{match[2]}" and path.is_file():
            parts.setdefault(int(match[1]), set()).add(match[2])
        elif path.name.startswith(files.TEMPORARY):
            mend = "delete it, unless a build is running"
            findings.append(Finding(file=_name(root, path), what="left by a writer that was killed", mend=mend))
        elif path.name not in _INDEXES and _name(root, path) not in companions:
            what = "an unexpected file: none of a shard's, and dataset.json does not list it"
            findings.append(Finding(file=_name(root, path), what=what, mend="move it out of the dataset"))
    for number, present in sorted(parts.items()):
        findings += _missing_parts(root, folder, number, present)
    return sorted(number for number, present in parts.items() if "_stats.json" in present), findings


def _missing_parts(root: Path, folder: Path, number: int, present: set[str]) -> Iterator[Finding]:
    stem = f"{_name(root, folder)}/{number:05d}"
    if "_stats.json" not in present:
        for ext in sorted(present):
            what = "the shard has no stats file: it is unfinished, nothing vouches for it"
            yield Finding(file=f"{stem}{ext}", what=what, mend=_UNFINISHED)
        return
    try:
        samples = ShardStats.read(folder / f"{number:05d}_stats.json").samples
    except ShardError:
        return  # check_shard names it
    for ext in (".tar", ".parquet"):
        if samples and ext not in present:
            yield Finding(file=f"{stem}{ext}", what=f"absent; its stats speak of {samples} samples", mend=RESTORE)
        if not samples and ext in present:
            yield Finding(file=f"{stem}{ext}", what="its stats speak of no sample, so no such file", mend=_UNFINISHED)


def read_manifest(root: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Return what `dataset.json` says, empty where it says nothing, and what is wrong with the file itself."""
    path = root / MANIFEST
    try:
        value = read_json_object(path)
    except (ShardError, OSError) as error:
        what = str(error).replace(f"{root}/", "")
        return {}, [Finding(file=MANIFEST, what=what, mend=FINISH)]
    problems = []
    said = value.pop("sha256", None)
    if said != (found := hash_json(value)):
        problems.append(f"its sha256 over itself is {found}, it says {said}: it was altered")
    elif files.json_bytes({**value, "sha256": said}) != path.read_bytes():
        problems.append("not the bytes that the build writes for what it says: it was altered")
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        problems.append(f"schema version {value.get('schema_version')!r}; this code reads {schema.SCHEMA_VERSION}")
    for name in ("sets", "files", "toolchain"):
        if not isinstance(value.get(name), dict):
            problems.append(f"{name} is {value.get(name)!r:.80}; an object is expected")
            value[name] = {}
    return value, [Finding(file=MANIFEST, what=what, mend=FINISH) for what in problems]


def index_findings(
    root: Path, manifest: Mapping[str, Any], shards: Sequence[tuple[str, str, int]]
) -> Iterator[Finding]:
    """Yield what is wrong with the splits' index files and with what `dataset.json` says of the shards."""
    by_split: dict[tuple[str, str], list[ShardStats]] = {}
    for set_name, split, number in sorted(shards):
        tar, _, stats_path = shard_paths(root, set_name, split, number)
        try:
            stats = ShardStats.read(stats_path)
        except ShardError:
            continue  # check_shard names it
        if stats.shard != _name(root, tar):
            continue  # so it does this
        by_split.setdefault((set_name, split), []).append(stats)
    said = {
        (set_name, split): entry
        for set_name, splits in manifest.get("sets", {}).items()
        for split, entry in (splits.items() if isinstance(splits, dict) else ())
    }
    for (set_name, split), stats_list in by_split.items():
        for name, value in split_index(stats_list).items():
            path = root / set_name / split / name
            expected = files.json_bytes(value)
            if not path.is_file() or path.stat().st_size != len(expected) or path.read_bytes() != expected:
                what = "stale, altered or absent: it does not list the shards that are there"
                yield Finding(file=_name(root, path), what=what, mend=FINISH)
        if manifest:
            entry = said.pop((set_name, split), None)
            yield from _split_findings(f"{set_name}/{split}", entry, split_to_json(root, stats_list))
        for stats in stats_list:
            if manifest and stats.toolchain != manifest["toolchain"]:
                what = f"made by another toolchain: {stats.toolchain}; dataset.json says {manifest['toolchain']}"
                yield Finding(file=stats.shard, what=what, mend="build the dataset anew in an empty folder")
    for set_name, split in said:
        what = f"it lists {set_name}/{split}, of which there is no finished shard"
        yield Finding(file=MANIFEST, what=what, mend=RESTORE)


def _split_findings(name: str, said: Any, found: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield where the manifest's entry for a split is not what the split's stats files add up to."""
    if not isinstance(said, dict):
        what = f"it does not list {name}, which has {found['samples']} samples"
        yield Finding(file=MANIFEST, what=what, mend=FINISH)
        return
    for field in ("samples", "bytes", "failed", "fingerprint"):
        if said.get(field) != found[field]:
            what = f"{name}: {field} is {said.get(field)!r:.80}; the stats files give {found[field]!r}"
            yield Finding(file=MANIFEST, what=what, mend=FINISH)
    for field in ("shards", "empty"):
        listed = {
            entry["name"]: entry for entry in said.get(field) or [] if isinstance(entry, dict) and "name" in entry
        }
        present = {entry["name"]: entry for entry in found[field]}
        for tar_name in sorted({*listed, *present}):
            old, new = listed.get(tar_name), present.get(tar_name)
            if old is not None and new is not None and old.get("stats_sha256") != new["stats_sha256"]:
                what = f"the sha256: {new['stats_sha256']}; dataset.json says {old.get('stats_sha256')}"
                yield Finding(file=f"{name}/{tar_name.replace('.tar', '_stats.json')}", what=what, mend=RESTORE)
            elif old != new:
                what = f"{name}/{tar_name}: listed as {_entry(old)}; its files give {_entry(new)}"
                yield Finding(file=MANIFEST, what=what, mend=RESTORE if new is None else FINISH)


def file_findings(root: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with the files that `dataset.json` lists by hash: card, ledger, spans, companions."""
    listed = manifest.get("files", {})
    for name, sha256 in listed.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            what = f"it lists {name!r}, which leaves the dataset's folder"
            yield Finding(file=MANIFEST, what=what, mend="do not use this dataset: it was made to mislead")
        elif not (root / name).is_file():
            yield Finding(file=name, what="absent; dataset.json lists it", mend=RESTORE)
        elif (found := hash_file(root / name)) != sha256:
            yield Finding(file=name, what=f"the sha256: {found}; dataset.json says {sha256}", mend=FINISH)
    for name in (CARD, *TABLES):
        if manifest and (root / name).is_file() and name not in listed:
            yield Finding(file=name, what="dataset.json does not list it", mend=FINISH)
    try:
        read_denylist(root / "denylist.txt")
    except UnicodeDecodeError as error:
        yield Finding(file="denylist.txt", what=f"not UTF-8 text: {error}", mend="write it as UTF-8")


def companion_findings(
    root: Path, manifest: Mapping[str, Any], shards: Sequence[tuple[str, str, int]]
) -> Iterator[Finding]:
    """Yield what is wrong with the questions and labels that belong beside the shards that are there."""
    for set_name, split in sorted({(set_name, split) for set_name, split, _ in shards}):
        if split not in schema.set_spec(set_name).companions:
            continue
        name = companions.companion_path(set_name, split)
        if manifest and name not in manifest["files"]:
            yield Finding(file=name, what="dataset.json does not list it", mend=FINISH)
        if not (root / name).is_file():
            if name not in manifest.get("files", {}):  # else it is named as a file that is listed and absent
                yield Finding(file=name, what="absent: the samples have no questions or labels", mend=FINISH)
            continue
        try:
            companions.read_companion(root, set_name, split)
        except companions.CompanionError as error:
            yield Finding(file=name, what=str(error).replace(f"{root}/{name}: ", ""), mend=FINISH)


def key_findings(reports: Sequence[ShardReport]) -> Iterator[Finding]:
    """Yield the keys that more than one sample of the dataset has."""
    keys = pa.array([key for report in reports for key in report.keys], pa.string())
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    twice = {entry["values"].as_py() for entry in pc.value_counts(keys) if entry["counts"].as_py() > 1}
    for report in reports:
        for key in report.keys:
            if key in twice:
                what = "another sample has this key, too; keys are unique over the dataset"
                yield Finding(file=_tar_name(report), key=key, what=what, mend="build anew: the annotations changed")


def ledger_findings(root: Path, reports: Sequence[ShardReport]) -> Iterator[Finding]:
    """Yield where `ledger.parquet`, if there is one, is not the account of the samples that are there."""
    yield from _table_findings(root, "ledger.parquet", _LEDGER, lambda table: _ledger_rows(root, table, reports))


def spans_findings(root: Path) -> Iterator[Finding]:
    """Yield where `spans.parquet`, if there is one, has gaps, overlaps or an unknown status."""
    yield from _table_findings(root, "spans.parquet", _SPANS, _span_rows)


def _table_findings(
    root: Path, name: str, columns: Mapping[str, pa.DataType], check: Callable[[pa.Table], Iterable[tuple[str, str]]]
) -> Iterator[Finding]:
    if not (root / name).is_file():
        return
    try:
        table = read_bounded(root / name, limit=_MAX_TABLE)
    except (ShardError, pa.ArrowException, OSError) as error:
        yield Finding(file=name, what=f"cannot be read: {error}".replace(f"{root}/", ""), mend=FINISH)
        return
    for column, kind in columns.items():
        found = [field for field in table.schema if field.name == column]
        if len(found) != 1 or found[0].type != kind or table[column].null_count:
            yield Finding(file=name, what=f"there is no column {column} of {kind} without nulls", mend=FINISH)
            return
    findings = [Finding(file=name, key=key, what=what, mend=FINISH) for key, what in islice(check(table), 1000)]
    yield from findings[:_MAX_NAMED]
    if len(findings) > _MAX_NAMED:
        yield Finding(file=name, what=f"{len(findings) - _MAX_NAMED} or more problems like these", mend=FINISH)


def _ledger_rows(root: Path, table: pa.Table, reports: Sequence[ShardReport]) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong): unknown statuses, packed rows without sample, samples without row, doubled rows."""
    for status in pc.unique(table["status"]).to_pylist():
        if status not in ("packed", "filtered", "failed"):
            yield "", f"the status {status!r}; packed, filtered and failed are known"
    of_sets = table.filter(pc.is_in(table["set"], pa.array(list(schema.RECORDS))))  # videos have rows, but no sample
    packed = of_sets.filter(pc.equal(of_sets["status"], "packed"))
    rows = pc.binary_join_element_wise(packed["shard"], packed["key"], "\t").combine_chunks()
    placed = pa.array([f"{_tar_name(report)}\t{key}" for report in reports for key in report.keys], pa.string())
    for entry in placed.filter(pc.invert(pc.is_in(placed, rows))):
        shard, _, key = entry.as_py().partition("\t")
        yield key, f"the sample in {shard} has no packed row"
    for entry in rows.filter(pc.invert(pc.is_in(rows, placed))):
        shard, _, key = entry.as_py().partition("\t")
        yield key, f"a packed row names {shard}, where no such sample is"
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
                yield item, f"it failed in {_tar_name(report)}, and has no row"


def _failed(root: Path, set_name: str, split: str, number: int) -> list[str]:
    try:
        return [item.key for item in ShardStats.read(shard_paths(root, set_name, split, number)[2]).failed]
    except ShardError:
        return []  # check_shard names it


def _span_rows(table: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield (video, what is wrong): a video's spans follow on one another from 0, each packed or failed."""
    at, video = 0.0, ""
    ordered = table.sort_by([("video_uid", "ascending"), ("start", "ascending"), ("end", "ascending")])
    for row in ordered.select(list(_SPANS)).to_pylist():
        if row["video_uid"] != video:
            at, video = 0.0, row["video_uid"]
        if row["status"] not in ("packed", "failed"):
            yield video, f"the status {row['status']!r}; packed and failed are known"
        if row["status"] == "failed" and not row["reason"]:
            yield video, f"{row['start']}–{row['end']} s failed without a reason"
        if abs(row["start"] - at) > 1e-6 or row["end"] < row["start"]:
            yield video, f"a span {row['start']}–{row['end']} s where one from {at} s is expected"
        at = row["end"]


def _tar_name(report: ShardReport) -> str:
    return f"{report.job.set_name}/{report.job.split}/{report.job.number:05d}.tar"


def _entry(entry: Mapping[str, Any] | None) -> str:
    return json.dumps(entry)[:400] if entry is not None else "nothing"


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
