# PYTHON_ARGCOMPLETE_OK
"""Compares two runs with paired significance tests: `python eval/compare.py RUN_A RUN_B [--out FOLDER]`.

A run is the folder of one benchmark's result, or one that holds several. Exit codes: `configs.cli.ExitCode`; 1 if the
results cannot be read or compared.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.cli import Command, Request
from eval.report.comparison import Comparison, compare_all, load_results
from eval.report.comparison_page import p_value, render, signed
from eval.report.page import number
from shards.files import write_json
from shards.html.page import write_page

VERSION = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("python eval/compare.py", __doc__)
    command.positional("run_a", type=Path, help="the folder of one benchmark's result, or one that holds several")
    command.positional("run_b", type=Path, help="the same of another checkpoint")
    command.flag("--out", type=Path, metavar="FOLDER", help="where to write compare.json and index.html")
    command.flag("--seed", type=int, default=0, help="of intervals and tests (default: %(default)s)")
    return command.run(_run, argv)


def _run(request: Request[None]) -> None:
    flags, console = request.flags, request.console
    results = [load_results(folder) for folder in (flags.run_a, flags.run_b)]
    comparisons, unpaired = compare_all(*results, seed=flags.seed)
    notes = [f"Only one run has {', '.join(unpaired)}."] if unpaired else []
    for comparison in comparisons:
        _print(comparison, console)
    for note in notes:
        console.print(escape(note))
    if flags.out is None:
        return
    tree = {
        "version": VERSION,
        "seed": flags.seed,
        "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
        "only_one_run_has": unpaired,
    }
    write_json(flags.out / "compare.json", json.loads(json.dumps(tree)))
    write_page(flags.out / "index.html", "Comparison", render(comparisons, notes))
    console.print(f"wrote {escape(str(flags.out / 'index.html'))}", soft_wrap=True)


def _print(comparison: Comparison, console: Console) -> None:
    table = Table(
        title=f"{escape(comparison.benchmark)}: A {escape(comparison.checkpoints[0])}, B "
        f"{escape(comparison.checkpoints[1])}",
        title_justify="left",
    )
    table.add_column("score")
    for name in ("A", "B", "B − A", "95 %", "p", "items"):
        table.add_column(name, justify="right")
    table.add_column("test")
    for row in comparison.rows:
        paired = row.paired
        table.add_row(
            escape(row.name),
            number(row.a),
            number(row.b),
            signed(paired.difference if paired else row.b - row.a),
            f"{signed(paired.low)} to {signed(paired.high)}" if paired else "–",
            p_value(paired.p) if paired else "–",
            f"{paired.items:,}" if paired else "–",
            escape(paired.test if paired else row.note),
        )
    console.print(table)
    for note in comparison.notes:
        console.print(escape(note))
    if comparison.only_a or comparison.only_b:
        console.print(
            f"{comparison.only_a:,} items only A scored and {comparison.only_b:,} only B: tests leave them out"
        )
    if comparison.settings:
        console.print(f"settings that differ: {escape(', '.join(comparison.settings))}")


if __name__ == "__main__":
    sys.exit(main())
