"""Compares two runs of the same benchmark on the items that both scored: differences, intervals, paired tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from eval.metrics.paired import Paired, compare_paired
from eval.results import SCORES, Item, Result, Score

_SAME = 0.005  # percentage points within which a mean of items counts as the score itself


class CompareError(ValueError):
    """Two results of different benchmarks, data or questions; the message names both values."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One score of both runs."""

    name: str
    a: float  # percent, of the run's own items
    b: float
    a_items: int
    b_items: int
    of: int
    paired: Paired | None  # on the common items; None if the score is no mean of items, or no item is common
    note: str = ""  # what the test is over, or why there is none
    chance: float | None = None  # percent


@dataclass(frozen=True, kw_only=True)
class Change:
    """An item that the runs score differently."""

    id: str
    group: str
    text: str
    a: float  # percent
    b: float
    a_predicted: str
    b_predicted: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs of one benchmark."""

    benchmark: str
    set_name: str
    split: str
    fingerprint: str
    checkpoints: tuple[str, str]
    digests: tuple[str, str]
    rows: list[Row]
    changes: list[Change]  # greatest first
    only_a: int  # items that only A scored
    only_b: int
    settings: dict[str, tuple[Any, Any]]  # those that differ, by dotted name
    notes: list[str]


def load_results(folder: Path) -> list[Result]:
    """Return the results of a training run, or those in the subfolders of a folder, or else the folder's own.

    Raises `ResultError` for a damaged result and `CompareError` where there is none.
    """
    if (folder / "evaluation").is_dir():  # of a run: `EvalConfig.overview`
        folder = folder / "evaluation"
    # A folder over several results has a scores.json too: a list of theirs.
    found = [Result.load(path.parent) for path in sorted(folder.glob(f"*/{SCORES}"))]
    if not found and (folder / SCORES).is_file():
        return [Result.load(folder)]
    if not found:
        raise CompareError(f"{folder}: there is no {SCORES}, nor in its folders: name what an evaluation wrote")
    return found


def compare_all(a: Sequence[Result], b: Sequence[Result], *, seed: int = 0) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons of the benchmarks that both have, and the names of those that one has only."""
    of_a, of_b = _by_name(a, "A"), _by_name(b, "B")
    common = [name for name in of_a if name in of_b]
    if not common:
        raise CompareError(f"no common benchmark: A has {', '.join(of_a)}; B has {', '.join(of_b)}")
    lonely = [f"{name} (A)" for name in of_a if name not in of_b] + [f"{name} (B)" for name in of_b if name not in of_a]
    return [compare(of_a[name], of_b[name], seed=seed) for name in common], lonely


def compare(a: Result, b: Result, *, seed: int = 0) -> Comparison:
    """Return how B differs from A; raise `CompareError` if benchmark, data or questions are not the same."""
    for what in ("benchmark", "set_name", "split", "fingerprint"):
        first, second = getattr(a, what), getattr(b, what)
        if first != second:
            reason = ": scores on different data cannot be compared" if what == "fingerprint" else ""
            raise CompareError(f"{a.benchmark}: {what} {first!r} of A, {second!r} of B{reason}")
    items_a, items_b = _by_identity(a, "A"), _by_identity(b, "B")
    common = [identity for identity in items_a if identity in items_b]
    for identity in common:
        first, second = items_a[identity], items_b[identity]
        if first.answer != second.answer or first.text != second.text:
            raise CompareError(
                f"{a.benchmark}: item {first.id} ({first.group}) is not the same question: {first.text!r} → "
                f"{first.answer!r} of A, {second.text!r} → {second.answer!r} of B"
            )
    scores_b = {score.name: score for score in b.scores}
    rows = [
        _row(score, scores_b[score.name], items_a, items_b, common, seed)
        for score in a.scores
        if score.name in scores_b
    ]
    names_a = {score.name for score in a.scores}
    lonely = [f"{s.name} (A)" for s in a.scores if s.name not in scores_b]
    lonely += [f"{s.name} (B)" for s in b.scores if s.name not in names_a]
    notes = [f"only one run has the scores {', '.join(lonely)}"] if lonely else []
    if a.checkpoint_digest == b.checkpoint_digest:
        notes.append("both runs have the same weights")
    return Comparison(
        benchmark=a.benchmark,
        set_name=a.set_name,
        split=a.split,
        fingerprint=a.fingerprint,
        checkpoints=(a.checkpoint, b.checkpoint),
        digests=(a.checkpoint_digest, b.checkpoint_digest),
        rows=rows,
        changes=_changes(items_a, items_b, common),
        only_a=len(items_a) - len(common),
        only_b=len(items_b) - len(common),
        settings=_differing(_flat(a.settings), _flat(b.settings)),
        notes=notes,
    )


def _row(
    a: Score,
    b: Score,
    items_a: dict[tuple[str, str], Item],
    items_b: dict[tuple[str, str], Item],
    common: Sequence[tuple[str, str]],
    seed: int,
) -> Row:
    row = Row(
        name=a.name, a=a.value, b=b.value, a_items=a.items, b_items=b.items, of=a.of, paired=None, chance=a.chance
    )
    groups = _groups_of(a, items_a)
    if groups is None or groups != _groups_of(b, items_b):
        return dataclasses.replace(row, note="not a mean of the items: no paired test")
    parts = [[identity for identity in common if identity[0] in group] for group in groups]
    if not all(parts):
        return dataclasses.replace(row, note="no common items")
    # With these weights the plain mean over items is the mean of the parts' means.
    total = sum(map(len, parts))
    weights = np.concatenate([np.full(len(part), total / (len(parts) * len(part))) for part in parts])
    values_a, values_b = (
        np.array([items[identity].score for part in parts for identity in part]) for items in (items_a, items_b)
    )
    paired = compare_paired(weights * values_a, weights * values_b, seed=seed)
    over = ", ".join(sorted({name for group in groups for name in group if name})) or "all"
    note = f"over {total:,} items ({over})" + (", equal weight per part" if len(parts) > 1 else "")
    return dataclasses.replace(row, paired=paired, note=note)


def _groups_of(score: Score, items: dict[tuple[str, str], Item]) -> list[frozenset[str]] | None:
    """Return the groups whose items' mean is the score; several sets of groups if it is the mean of their means.

    Tried in this order: the group named in the score's name, all items, the mean of all groups' means, that of the
    groups named in the score's name, any one group, any two groups. None if none of these gives the score's value.
    """
    names = list(dict.fromkeys(group for group, _ in items))
    lower = score.name.casefold()
    named = sorted((name for name in names if name and name.casefold() in lower), key=len, reverse=True)
    ways: list[list[frozenset[str]]] = [[frozenset([name])] for name in named]
    ways += [[frozenset(names)], [frozenset([name]) for name in names], [frozenset([name]) for name in named]]
    ways += [[frozenset([name])] for name in names]
    # Pairs: the average of two directions if there are items of other scores, too.
    ways += [[frozenset([first]), frozenset([second])] for i, first in enumerate(names) for second in names[i + 1 :]]
    for way in ways:
        means = [[item.score for (group, _), item in items.items() if group in part] for part in way]
        if means and all(means) and math.isfinite(score.value):
            value = float(np.mean([np.mean(part) for part in means]))
            if abs(value - score.value) <= _SAME:
                return way
    return None


def _changes(
    items_a: dict[tuple[str, str], Item], items_b: dict[tuple[str, str], Item], common: Sequence[tuple[str, str]]
) -> list[Change]:
    found = [
        Change(
            id=a.id,
            group=a.group,
            text=a.text,
            a=a.score,
            b=b.score,
            a_predicted=a.predicted,
            b_predicted=b.predicted,
        )
        for a, b in ((items_a[identity], items_b[identity]) for identity in common)
        if a.score != b.score
    ]
    return sorted(found, key=lambda change: (-abs(change.b - change.a), change.group, change.id))


def _by_name(results: Sequence[Result], run: str) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for result in results:
        if result.benchmark in found:
            raise CompareError(f"{run} has {result.benchmark} twice: name the folder of one of them")
        found[result.benchmark] = result
    return found


def _by_identity(result: Result, run: str) -> dict[tuple[str, str], Item]:
    found = {(item.group, item.id): item for item in result.items}
    if len(found) < len(result.items):
        raise CompareError(f"{result.benchmark}: {run} has {len(result.items) - len(found)} items twice")
    return found


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*a, *b])
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}
