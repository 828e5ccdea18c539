"""The HTML page of a comparison: each difference with its interval, the items that changed most, what else differs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.report.comparison import Change, Comparison, Row
from eval.report.document import document, text
from eval.report.page import number

_CHANGES = 20  # items shown that became better, and as many that became worse


def render(comparisons: Sequence[Comparison], notes: Sequence[str] = ()) -> bytes:
    """Return the page over all benchmarks; it is one file that asks for nothing."""
    names = list(dict.fromkeys(comparison.checkpoints for comparison in comparisons))
    body = ["<h1>Two runs, side by side</h1>"]
    body += [f'<div class="quiet">A: {text(a)}<br>B: {text(b)}</div>' for a, b in names]
    body += [f'<div class="notice">{text(note)}</div>' for note in notes]
    for comparison in comparisons:
        body += _section(comparison)
    return document("Comparison", "".join(body))


def p_value(p: float) -> str:
    """Return p as it is printed."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def signed(value: float) -> str:
    """Return a difference in percent as it is printed."""
    return f"{value:+.2f}" if math.isfinite(value) else "–"


def _section(comparison: Comparison) -> list[str]:
    rows = comparison.rows
    reach = max((max(abs(r.paired.low), abs(r.paired.high)) for r in rows if r.paired is not None), default=0.0) or 1.0
    head = "".join(f"<th>{name}</th>" for name in ("score", "A", "B", "B − A", "95 %", "p", "scored"))
    where = f"{comparison.set_name}/{comparison.split}, fingerprint {comparison.fingerprint[:12]}"
    parts = [
        f"<h2>{text(comparison.benchmark)}<small>{text(where)}</small></h2>",
        *[f'<div class="notice">{text(note)}</div>' for note in comparison.notes],
    ]
    if comparison.only_a or comparison.only_b:
        lonely = f"{comparison.only_a:,} items only A scored and {comparison.only_b:,} only B: tests leave them out."
        parts.append(f'<div class="notice">{lonely}</div>')
    bars = "".join(
        f"<div><span>{text(row.name)}</span>{_bar(row, reach)}<b>{signed(_difference(row))}</b></div>" for row in rows
    )
    parts.append(f'<div class="bars">{bars}</div>')
    cells = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    parts.append(f'<div class="scroll"><table><tr>{head}</tr>{cells}</table></div>')
    tests = sorted({f"{row.name}: {row.paired.test if row.paired else 'none'}, {row.note}" for row in rows})
    parts.append(f'<p class="quiet">{"<br>".join(map(text, tests))}</p>')
    better = [change for change in comparison.changes if change.b > change.a]
    worse = [change for change in comparison.changes if change.b < change.a]
    parts += [_changes("Better in B", better), _changes("Worse in B", worse)]
    if comparison.settings:
        differing = "".join(
            f"<tr><td>{text(name)}</td><td>{text(a)}</td><td>{text(b)}</td></tr>"
            for name, (a, b) in comparison.settings.items()
        )
        parts.append(
            f'<h3>Settings that differ</h3><div class="scroll"><table class="wrap"><tr><th>setting</th><th>A</th>'
            f"<th>B</th></tr>{differing}</table></div>"
        )
    return parts


def _bar(row: Row, reach: float) -> str:
    """Return the difference as a dot with whiskers on an axis whose middle is 0."""
    if row.paired is None:
        return f'<span class="quiet">{text(row.note)}</span>'

    def x(value: float) -> str:
        return f"{50 + 48 * value / reach:.2f}%"

    paired = row.paired
    whiskers = "".join(
        f'<line class="whisker" x1="{x(a)}" x2="{x(b)}" y1="{top}" y2="{bottom}"/>'
        for a, b, top, bottom in (
            (paired.low, paired.high, 16, 16),
            (paired.low, paired.low, 11, 21),
            (paired.high, paired.high, 11, 21),
        )
    )
    title = f"<title>{signed(paired.difference)} ({signed(paired.low)} to {signed(paired.high)})</title>"
    return (
        '<svg class="strip" width="100%" height="32" role="img">'
        f'<line class="axis" x1="2%" x2="98%" y1="16" y2="16"/><line class="zero" x1="50%" x2="50%" y1="4" y2="28"/>'
        f'{whiskers}<circle class="value" cx="{x(paired.difference)}" cy="16" r="6">{title}</circle></svg>'
    )


def _cells(row: Row) -> str:
    paired = row.paired
    scored = f"{row.a_items:,}" if row.a_items == row.b_items else f"{row.a_items:,} and {row.b_items:,}"
    cells = [
        number(row.a),
        number(row.b),
        signed(_difference(row)),
        f"{signed(paired.low)} to {signed(paired.high)}" if paired else "–",
        p_value(paired.p) if paired else "–",
        f"{scored} of {row.of:,}",
    ]
    return f"<td>{text(row.name)}</td>" + "".join(f"<td>{text(cell)}</td>" for cell in cells)


def _difference(row: Row) -> float:
    """Return the difference on the common items, or of the two scores where there is none."""
    return row.paired.difference if row.paired is not None else row.b - row.a


def _changes(title: str, changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    rows = "".join(
        f"<tr><td>{text(change.text)}</td><td>{text(change.group)}</td><td>{number(change.a)}</td>"
        f"<td>{number(change.b)}</td><td>{text(change.a_predicted)}</td><td>{text(change.b_predicted)}</td></tr>"
        for change in changes[:_CHANGES]
    )
    head = "".join(f"<th>{name}</th>" for name in ("item", "group", "A", "B", "A chose", "B chose"))
    shown = f"<small>{min(len(changes), _CHANGES)} of {len(changes):,}</small>"
    return f'<h2>{title}{shown}</h2><div class="scroll"><table class="wrap"><tr>{head}</tr>{rows}</table></div>'
