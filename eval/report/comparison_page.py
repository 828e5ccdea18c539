"""The HTML page of a comparison of two runs: differences with intervals, the items that changed most, and settings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.report.comparison import Change, Comparison, Row
from eval.report.page import number
from shards.html import charts
from shards.html.elements import Html, facts, heading, notice, table, tag

_CHANGES = 20  # items shown that became better, and as many that became worse


def render(comparisons: Sequence[Comparison], notes: Sequence[str] = ()) -> list[object]:
    """Return the body of the page over all benchmarks; `notes` are warnings."""
    checkpoints = list(dict.fromkeys(comparison.checkpoints for comparison in comparisons))
    return [
        tag("h1", "Comparison of two runs"),
        [facts((("A", a), ("B", b))) for a, b in checkpoints],
        [notice(note) for note in notes],
        [_section(comparison) for comparison in comparisons],
    ]


def p_value(p: float) -> str:
    """Return a p value with four decimals."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def signed(value: float) -> str:
    """Return a difference in percentage points with its sign, or a dash."""
    return f"{value:+.2f}" if math.isfinite(value) else "–"


def _section(comparison: Comparison) -> list[object]:
    where = f"{comparison.set_name}/{comparison.split}, fingerprint {comparison.fingerprint[:12]}"
    one_sided = (
        notice(f"{comparison.only_a:,} items only A scored and {comparison.only_b:,} only B: the tests leave them out.")
        if comparison.only_a or comparison.only_b
        else None
    )
    tests = sorted(
        {f"{row.name}: {row.paired.test if row.paired else 'no test'}, {row.note}" for row in comparison.rows}
    )
    settings = [(name, str(a), str(b)) for name, (a, b) in comparison.settings.items()]
    return [
        heading(comparison.benchmark, where),
        [notice(note) for note in comparison.notes],
        one_sided,
        charts.intervals(
            "B − A",
            [_interval(row) for row in comparison.rows],
            x_title="difference (percentage points)",
            name="with 95 % interval",
            from_zero=False,
        ),
        table(["score", "A (%)", "B (%)", "B − A", "95 %", "p", "scored", "chance"], map(_cells, comparison.rows)),
        tag("p", [[test, tag("br")] for test in tests], class_="quiet"),
        _changes("Better in B", [change for change in comparison.changes if change.b > change.a]),
        _changes("Worse in B", [change for change in comparison.changes if change.b < change.a]),
        [heading("Settings that differ"), table(["setting", "A", "B"], settings, align="lll")] if settings else None,
    ]


def _interval(row: Row) -> charts.Interval:
    paired = row.paired
    return charts.Interval(
        name=row.name,
        value=_difference(row),
        low=paired.low if paired else None,
        high=paired.high if paired else None,
    )


def _cells(row: Row) -> list[str]:
    paired = row.paired
    scored = f"{row.a_items:,}" if row.a_items == row.b_items else f"{row.a_items:,} and {row.b_items:,}"
    return [
        row.name,
        number(row.a),
        number(row.b),
        signed(_difference(row)),
        f"{signed(paired.low)} to {signed(paired.high)}" if paired else "–",
        p_value(paired.p) if paired else "–",
        f"{scored} of {row.of:,}",
        number(row.chance),
    ]


def _difference(row: Row) -> float:
    """Return the difference on the common items, or of the two scores if there are none."""
    return row.paired.difference if row.paired is not None else row.b - row.a


def _changes(title: str, changes: Sequence[Change]) -> list[Html]:
    if not changes:
        return []
    rows = [
        (change.text, change.group, number(change.a), number(change.b), change.a_predicted, change.b_predicted)
        for change in changes[:_CHANGES]
    ]
    head = ["item", "group", "A (%)", "B (%)", "A chose", "B chose"]
    shown = f"{min(len(changes), _CHANGES)} of {len(changes):,}"
    return [heading(title, shown), table(head, rows, align="llrrll")]
