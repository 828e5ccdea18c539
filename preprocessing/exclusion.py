"""Holds what is published against the current exclusions and splits, at every start of a build.

Published shards are never rewritten. A video that `annotations.exclude` has come to list is therefore withdrawn: its
uid goes to `denylist.txt`, and loaders skip it. One that the list no longer has is restored. What a denylist cannot
express, such as a video that moved from train to val, is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from preprocessing.annotations import Annotations
from preprocessing.annotations.metadata import read_val_list
from preprocessing.config import BuildConfig
from preprocessing.errors import UsageError
from shards.dataset import DENYLIST, MANIFEST, open_dataset, read_denylist
from shards.files import write_bytes
from shards.schema import SETS

_MARK = "# annotations.exclude: "  # behind a uid that this module wrote; other lines are the user's
_NAMED = 3  # videos that a message names


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """The change of a dataset's denylist that the current exclusions require."""

    added: dict[str, str] = field(default_factory=dict)  # uid of a published video → the file that excludes it
    removed: frozenset[str] = frozenset()  # uids that were added by an earlier build and are excluded no more

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


def required_withdrawal(config: BuildConfig, annotations: Annotations, excluded: Mapping[str, str]) -> Withdrawal:
    """Return how the denylist must change so that no excluded video is trained on; nothing is written.

    `excluded` maps uids to the file that lists them. Raises `UsageError`, with the remedy, where a published video now
    belongs to another split, and where withdrawing it would also take it from a benchmark in the same dataset.
    """
    published = _published_videos(config.output)
    listed, ours = _read(config.output / DENYLIST)
    pretraining = {name for name, spec in SETS.items() if not spec.is_benchmark}
    is_pretraining = any(name in pretraining for name in annotations.sets)
    held = {uid for (name, _), uids in published.items() if name in pretraining for uid in uids}
    change = Withdrawal(
        added={uid: excluded[uid] for uid in sorted(held & excluded.keys()) if uid not in listed},
        removed=frozenset(uid for uid in ours if uid not in excluded) if is_pretraining else frozenset(),
    )
    denied = (listed | change.added.keys()) - change.removed
    withdrawn = {uid: excluded.get(uid, "") for uid in sorted(ours - change.removed)} | change.added
    _require_no_benchmark(config, annotations, published, withdrawn)
    _require_same_splits(config, annotations, published, denied)
    unwritable = [uid for uid in change.added if read_denied_line(_line(uid, "")) != {uid}]
    if unwritable:
        raise UsageError(
            f"annotations.exclude lists {_named(unwritable)}, which published shards contain and which cannot be "
            f"written into {DENYLIST} ('#' starts a comment there): {_another_output(config)}"
        )
    return change


def carry_out(change: Withdrawal, root: Path, console: Console, *, is_dry_run: bool = False) -> None:
    """Write a dataset's denylist, and say what changes in it; with `is_dry_run`, only say it."""
    path = root / DENYLIST
    verb = "would be" if is_dry_run else "are"
    if change.added:
        console.print(
            f"{_named(change.added)} {verb} added to {path}: annotations.exclude lists them and published shards "
            "contain them. Loaders skip them from now on",
            markup=False,
        )
    if change.removed:
        console.print(
            f"{_named(change.removed)} {verb} taken off {path}: annotations.exclude does not list them any more",
            markup=False,
        )
    if is_dry_run or not change:
        return
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if not (_MARK in line and read_denied_line(line) & change.removed)]
    kept += [_line(uid, file) for uid, file in change.added.items()]
    write_bytes(path, "".join(f"{line}\n" for line in kept).encode())


def read_denied_line(line: str) -> set[str]:
    """Return the uid that a line of a denylist names, if any."""
    uid = line.partition("#")[0].strip()
    return {uid} if uid else set()


def _published_videos(root: Path) -> dict[tuple[str, str], frozenset[str]]:
    """Return (set, split) → the uids of the videos with published samples."""
    if not (root / MANIFEST).exists():
        return {}
    return {
        (set_name, split): frozenset(
            uid for shard in entry.shards for uid in shard.rows(["video_uid"])["video_uid"].unique().to_pylist()
        )
        for set_name, split, entry in open_dataset(root).splits()
    }


def _read(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the uids in a denylist, and those of them that this module wrote."""
    try:
        listed = read_denylist(path)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{path}: not a text file in UTF-8 ({error}); correct it, one video_uid a line") from None
    return listed, frozenset(uid for line in lines if _MARK in line for uid in read_denied_line(line))


def _require_no_benchmark(
    config: BuildConfig,
    annotations: Annotations,
    published: Mapping[tuple[str, str], frozenset[str]],
    withdrawn: Mapping[str, str],
) -> None:
    """Raise `UsageError` where a benchmark in this dataset, or in this build, uses a withdrawn video (uid → file)."""
    used: dict[str, set[str]] = {}
    for (name, _), uids in published.items():
        if SETS[name].is_benchmark:
            used.setdefault(name, set()).update(uids)
    for name, table in annotations.sets.items():
        if SETS[name].is_benchmark:
            used.setdefault(name, set()).update(table["video_uid"].unique().to_pylist())
    for name, needed in used.items():
        if both := sorted(needed & withdrawn.keys()):
            raise UsageError(
                f"annotations.exclude ({withdrawn[both[0]] or 'of an earlier build'}) lists {_named(both)}, which "
                f"published shards for training contain. They can only be withdrawn from all of {config.output}, and "
                f"{name}, there too, needs them: {_another_output(config)}"
            )


def _require_same_splits(
    config: BuildConfig,
    annotations: Annotations,
    published: Mapping[tuple[str, str], frozenset[str]],
    denied: Iterable[str],
) -> None:
    """Raise `UsageError` where a video of a set of this build is published in a split to which it no longer belongs."""
    now = dict(zip(*(annotations.videos[name].to_pylist() for name in ("video_uid", "split")), strict=True))
    now = {**dict.fromkeys(read_val_list(config.annotations), "val"), **now}
    for (name, split), uids in published.items():
        if name not in annotations.sets or SETS[name].is_benchmark:
            continue
        moved = sorted(uid for uid in uids - frozenset(denied) if now.get(uid, split) != split)
        if moved:
            raise UsageError(
                f"{_named(moved)} in published shards of {name}/{split} now belong to {now[moved[0]]}, by "
                "annotations.val_list, metadata or split_fields, or captions. Published shards are never rewritten: "
                f"restore the former files, or list these videos in {config.output / DENYLIST} (loaders skip them, "
                f"in every split), or {_another_output(config)}"
            )


def _line(uid: str, file: str) -> str:
    return f"{uid}  {_MARK}{file}"


def _another_output(config: BuildConfig) -> str:
    return f"build into another output with the same work folder, {config.work_folder}, whose chunks are used again"


def _named(uids: Iterable[str]) -> str:
    """Return a number of videos with the first of their uids."""
    names: Sequence[str] = sorted(uids)
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names)} video{'s' if len(names) > 1 else ''} ({', '.join(names[:_NAMED])}{more})"
