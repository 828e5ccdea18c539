# PYTHON_ARGCOMPLETE_OK
"""Generates questions from any shards: `python eval/build_mcq.py ROOT --set clips --split val --out FILE.json`.

Next to FILE.json, FILE.made.json has the configuration, the fingerprint of the shards, the code's revision, and the
numbers of questions. Exit codes: `configs.cli.ExitCode`; 1 if the shards cannot be read or allow no question.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.markup import escape
from rich.table import Table

from configs.cli import Command, Request
from configs.loading import to_dict
from configs.revision import code_revision
from eval.mcq_builder import BuiltQuestions, McqConfig, build_from
from shards.companions import write_companion
from shards.files import write_json
from shards.schema import SETS, SchemaError
from shards.stats import ShardError


class NoQuestionError(RuntimeError):
    """The shards cannot be read or allow no question."""

    exit_code: ClassVar[int] = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("python eval/build_mcq.py", __doc__, McqConfig)
    command.positional("root", help="the dataset: a folder or URL")
    command.flag("--set", default="clips", choices=list(SETS), help="(default: %(default)s)")
    command.flag("--split", default="val", help="(default: %(default)s)")
    command.flag("--out", type=Path, required=True, metavar="FILE.json", help="where to write the questions")

    def work(request: Request[McqConfig]) -> None:
        if request.flags.out.suffix != ".json":
            command.error(f"--out {request.flags.out}: expected a name that ends in .json")
        _run(request)

    return command.run(work, argv)


def _run(request: Request[McqConfig]) -> None:
    flags, config = request.flags, request.config
    try:
        built = build_from(flags.root, flags.set, flags.split, config, name=flags.out.stem)
    except (ShardError, SchemaError) as error:
        raise NoQuestionError(str(error)) from error
    if not built.questions.questions:
        raise NoQuestionError(
            f"{flags.root}: {flags.set}/{flags.split} allows no question: {config.options} options need as many "
            "clips with different texts; try options=2 or another type"
        )
    write_companion(flags.out, built.questions)
    made = {
        "set": flags.set,
        "split": flags.split,
        "fingerprint": built.fingerprint,
        "revision": code_revision(),
        "config": to_dict(config),
        "made": {kind: dataclasses.asdict(counts) for kind, counts in built.counts.items()},
    }
    write_json(flags.out.with_suffix(".made.json"), made)
    request.console.print(_table(built))
    request.console.print(f"wrote {escape(str(flags.out))}", soft_wrap=True)


def _table(built: BuiltQuestions) -> Table:
    table = Table("type", "questions", "with a distractor of the same classes", "impossible")
    for kind, counts in built.counts.items():
        table.add_row(kind, f"{counts.questions:,}", f"{counts.relaxed:,}", f"{counts.impossible:,}")
    return table


if __name__ == "__main__":
    sys.exit(main())
