"""Checks the set of files of a dataset: shards and their index files, and what `dataset.json` lists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from shards import files, schema
from shards.dataset import CARD, DENYLIST, FEATURES, MANIFEST, TABLES, hash_file, read_denylist, split_problems
from shards.index import split_index, split_to_json
from shards.stats import ShardError, ShardStats, file_problem, shard_paths
from shards.verify.findings import FINISH, MOVE, RESTORE, Finding, each, guarded, without_root

_UNFINISHED = "rerun the build, which completes the shard; or delete the file"
_OUR_FILE = re.compile(r"(\d{5,9})(\.tar|\.parquet|_stats\.json)")
_INDEXES = ("sizes.json", "shardindex.json")
_ENERGON = (".nv-meta", ".tar.idx")  # Megatron-Energon's index: a folder of a set, and a file beside each tar
_SEPARATORS = re.compile(r"[\s,;|\x00-\x1f]")  # in a line of a denylist: more than one video, or none
_LIMITS = {".md": 64 << 20, ".json": 256 << 20}  # bytes of the files that dataset.json lists, by suffix
_MAX_FILE = 16 << 30  # bytes of any other


@dataclass(kw_only=True)
class Contents:
    """What is in the folder of a dataset."""

    shards: list[tuple[str, str, int]] = field(default_factory=list)  # (set, split, number) with a stats file
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what does not belong to a dataset, but does no harm


def find_shards(root: Path, companions: Iterable[str]) -> Contents:
    """Return each shard with a stats file, and findings about missing and unexpected files and links."""
    contents = Contents()
    known = set(companions)
    inside = root.resolve()
    for set_name in schema.RECORDS:
        for path in _entries(root / set_name, contents, root, inside):
            splits = schema.SETS[set_name].splits
            if path.name not in splits or not path.is_dir():
                problem = f"unexpected in a set; {set_name} has the folders {', '.join(splits)}"
                contents.findings.append(Finding(file=_name(root, path), problem=problem, remedy=MOVE))
                continue
            _list_split(root, path, known, contents, inside)
    for path in _entries(root, contents, root, inside):
        if path.name in (*schema.RECORDS, FEATURES) or not path.is_dir():
            continue
        if any(path.glob("*/*.tar")):
            problem = f"unknown set; known sets: {', '.join(schema.RECORDS)}"
            remedy = "use the code that wrote it, or move it out of the dataset"
            contents.findings.append(Finding(file=path.name, problem=problem, remedy=remedy))
    return contents


def _entries(folder: Path, contents: Contents, root: Path, inside: Path) -> Iterator[Path]:
    """Yield what is in a folder in order; note what belongs to other tools, report links that leave the dataset."""
    name = _name(root, folder)
    if folder != root and folder.is_symlink() and not _is_inside(folder, inside):
        contents.findings.append(_outside(name, folder))
    if not folder.is_dir():
        if os.path.lexists(folder):
            problem = f"{_kind(folder)} in place of the folder of a set or split"
            contents.findings.append(Finding(file=name, problem=problem, remedy=RESTORE))
        return
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_ENERGON):
            contents.notes.append(f"{_name(root, path)}: Megatron-Energon's index, which is no part of the dataset")
            continue
        if path.is_symlink() and not (folder == root and path.name in schema.RECORDS) and not _is_inside(path, inside):
            contents.findings.append(_outside(_name(root, path), path))
        yield path


def _is_inside(path: Path, inside: Path) -> bool:
    try:
        return path.resolve().is_relative_to(inside)
    except (OSError, RuntimeError):  # a loop
        return False


def _outside(name: str, path: Path) -> Finding:
    problem = f"a symbolic link to {os.readlink(path)}, outside the dataset: a copy of the folder would lack it"
    return Finding(file=name, problem=problem, remedy="copy what the link leads to: cp -RL FROM TO")


def _kind(path: Path) -> str:
    try:
        return file_problem(path) or "a file"
    except OSError as error:
        return f"what cannot be read ({error.strerror})"


def _list_split(root: Path, folder: Path, companions: set[str], contents: Contents, inside: Path) -> None:
    parts: dict[int, set[str]] = {}
    findings = contents.findings
    for path in _entries(folder, contents, root, inside):
        match = _OUR_FILE.fullmatch(path.name)
        if match and path.name == f"{int(match[1]):05d}{match[2]}":
            if path.is_file():
                parts.setdefault(int(match[1]), set()).add(match[2])
            else:
                problem = f"{_kind(path)} in place of a file"
                findings.append(Finding(file=_name(root, path), problem=problem, remedy=RESTORE))
        elif path.name.startswith(files.TEMPORARY):
            remedy = "delete it, unless a build is running"
            findings.append(Finding(file=_name(root, path), problem="temporary file of a killed writer", remedy=remedy))
        elif path.name not in _INDEXES and _name(root, path) not in companions:
            problem = "unexpected file: it belongs to no shard, and dataset.json does not list it"
            findings.append(Finding(file=_name(root, path), problem=problem, remedy=MOVE))
    for number, present in sorted(parts.items()):
        findings += _missing_parts(root, folder, number, present)
    contents.shards += [
        (folder.parent.name, folder.name, number)
        for number, present in sorted(parts.items())
        if "_stats.json" in present
    ]


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
    listed = {}
    for set_name, splits in manifest.get("sets", {}).items():
        if set_name not in schema.RECORDS or not isinstance(splits, dict) or not splits:
            known = ", ".join(schema.RECORDS)
            problem = f"sets: {set_name!r:.80} is not a set with splits; known sets: {known}"
            yield Finding(file=MANIFEST, problem=problem, remedy=FINISH)
            continue
        for split, entry in splits.items():
            listed[set_name, split] = entry
            yield from each(MANIFEST, (f"{set_name}/{split}: {p}" for p in split_problems(entry)), FINISH)
    for (set_name, split), stats_list in by_split.items():
        for name, value in split_index(stats_list).items():
            path = root / set_name / split / name
            expected = files.json_bytes(value)
            if not path.is_file() or path.stat().st_size != len(expected) or path.read_bytes() != expected:
                kind = f"{_kind(path)}; " if os.path.lexists(path) and not path.is_file() else ""
                problem = f"{kind}absent, altered or outdated: it does not list the existing shards"
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
    for name_of_value in ("samples", "bytes", "failed", "fingerprint"):
        if (stated := listed.get(name_of_value)) != actual[name_of_value]:
            by_stats = actual[name_of_value]
            problem = f"{name}: {name_of_value} is {stated!r:.80}; according to the stats files {by_stats!r}"
            yield Finding(file=MANIFEST, problem=problem, remedy=FINISH)
    for kind in ("shards", "empty"):
        stated = listed.get(kind)
        entries = stated if isinstance(stated, list) else []
        expected = {
            entry["name"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        present = {entry["name"]: entry for entry in actual[kind]}
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
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\0" in name:
            problem = f"it lists {name!r}, which is outside the dataset's folder"
            yield Finding(file=MANIFEST, problem=problem, remedy="do not use this dataset: it is malicious")
        elif not os.path.lexists(root / name):
            yield Finding(file=name, problem="absent; dataset.json lists it", remedy=RESTORE)
        else:
            yield from guarded(name, partial(_hash_findings, root, name, sha256), root=root)
    for name in (CARD, *TABLES):
        if manifest and os.path.lexists(root / name) and name not in listed:
            yield Finding(file=name, problem="dataset.json does not list it", remedy=FINISH)
        elif manifest and name == CARD and name not in listed:
            yield Finding(file=name, problem="absent, and dataset.json does not list it", remedy=FINISH)


def _hash_findings(root: Path, name: str, sha256: Any) -> Iterator[Finding]:
    path = root / name
    limit = _LIMITS.get(path.suffix, _MAX_FILE)
    if kind := file_problem(path):
        yield Finding(file=name, problem=f"{kind} in place of a file", remedy=RESTORE)
    elif not path.resolve().is_relative_to(root.resolve()):
        yield _outside(name, path) if path.is_symlink() else Finding(file=name, problem="outside", remedy=RESTORE)
    elif (size := path.stat().st_size) > limit:
        yield Finding(file=name, problem=f"{size} bytes; at most {limit} are expected, so not read", remedy=RESTORE)
    elif (actual := hash_file(path)) != sha256:
        yield Finding(file=name, problem=f"sha256 is {actual}; in dataset.json it is {sha256}", remedy=FINISH)


def denylist_findings(root: Path, videos: Iterable[str | None]) -> Iterator[Finding]:
    """Yield lines of the denylist that withdraw nothing because they are not the name of one video."""
    if not os.path.lexists(root / DENYLIST):
        return
    remedy = "write one video_uid a line, as UTF-8; what follows # is a comment"
    try:
        denied = read_denylist(root / DENYLIST)
    except (ShardError, OSError) as error:
        yield Finding(file=DENYLIST, problem=without_root(error, root), remedy=remedy)
        return
    for line in sorted(denied.difference(filter(None, videos))):
        if _SEPARATORS.search(line):
            problem = f"the line {line[:200]!r} is no video of the dataset, and not the name of one video"
            yield Finding(file=DENYLIST, problem=problem, remedy=remedy)


def _entry(entry: Mapping[str, Any] | None) -> str:
    return json.dumps(entry)[:400] if entry is not None else "nothing"


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
