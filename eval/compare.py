"""Puts two runs side by side with paired significance: `python eval/compare.py RUN_A RUN_B [--out FOLDER]`.

A run is the folder of one benchmark's result, or one that holds several. With --out: compare.json and index.html.
Exit codes: 0 done, 1 the results cannot be read or are not of the same thing, 2 usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.report.comparison import CompareError, Comparison, compare_all, load_results
from eval.report.comparison_page import p_value, render, signed
from eval.report.page import number
from eval.results import ResultError
from shards.files import write_bytes, write_json

VERSION = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__.split("\n")[0])
    parser.add_argument("run_a", type=Path, metavar="RUN_A")
    parser.add_argument("run_b", type=Path, metavar="RUN_B")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write compare.json and index.html")
    parser.add_argument("--seed", type=int, default=0, help="of intervals and tests (default: %(default)s)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        results = [load_results(folder) for folder in (arguments.run_a, arguments.run_b)]
        comparisons, lonely = compare_all(*results, seed=arguments.seed)
    except (ResultError, CompareError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]✗[/] {escape(str(error))}")
        return 1
    notes = [f"Only one run has {', '.join(lonely)}."] if lonely else []
    for comparison in comparisons:
        _print(comparison, console)
    for note in notes:
        console.print(escape(note))
    if arguments.out is not None:
        tree = {
            "version": VERSION,
            "seed": arguments.seed,
            "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
            "only_one_run_has": lonely,
        }
        write_json(arguments.out / "compare.json", json.loads(json.dumps(tree)))
        write_bytes(arguments.out / "index.html", render(comparisons, notes))
        console.print(f"wrote {escape(str(arguments.out / 'index.html'))}", soft_wrap=True)
    return 0


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
