"""Makes a file of questions from any shards: `python eval/build_mcq.py ROOT --set clips --split val --out FILE.json`.

Further arguments are `key=value` of McqConfig, as seed=1 or questions=500. Beside FILE.json stands FILE.made.json: the
configuration, the fingerprint of the shards, the code's revision, and how many questions came of how many clips.
Exit codes: 0 done, 1 the shards cannot be read or give no question, 2 usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.loading import ConfigError, load, to_dict
from configs.revision import code_revision
from eval.mcq_builder import Built, McqConfig, build_from
from shards.companions import write_companion
from shards.files import write_json
from shards.schema import SETS, SchemaError
from shards.stats import ShardError


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="build_mcq.py", description=__doc__.split("\n")[0])
    parser.add_argument("root", help="the dataset: a folder or URL")
    parser.add_argument("--set", default="clips", choices=list(SETS), help="default: %(default)s")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="where to write the questions")
    parser.add_argument("--config", type=Path, help="YAML of McqConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as seed=1 or types=[intra]")
    arguments = parser.parse_intermixed_args(argv)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False, soft_wrap=True)
    if arguments.out.suffix != ".json":
        parser.error(f"--out {arguments.out}: a name that ends in .json is expected")
    try:
        config = load(McqConfig, arguments.config, arguments.overrides)
        built = build_from(arguments.root, arguments.set, arguments.split, config, name=arguments.out.stem)
    except ConfigError as error:
        errors.print(f"[bold red]✗[/] {escape(str(error))}")
        return 2
    except (ShardError, SchemaError, OSError) as error:
        errors.print(f"[bold red]✗[/] {escape(str(error))}")
        return 1
    if not built.questions.questions:
        errors.print(
            f"[bold red]✗[/] no question can be made of {escape(arguments.root)} {arguments.set}/{arguments.split}: "
            f"{config.options} options need as many clips with unlike texts; try options=2 or another type"
        )
        return 1
    write_companion(arguments.out, built.questions)
    made = {
        "set": arguments.set,
        "split": arguments.split,
        "fingerprint": built.fingerprint,
        "revision": code_revision(),
        "config": to_dict(config),
        "made": {kind: dataclasses.asdict(made) for kind, made in built.made.items()},
    }
    write_json(arguments.out.with_suffix(".made.json"), made)
    console.print(_table(built))
    console.print(f"wrote {escape(str(arguments.out))}", soft_wrap=True)
    return 0


def _table(built: Built) -> Table:
    table = Table("questions", "made", "with a distractor of the same classes", "impossible")
    for kind, made in built.made.items():
        table.add_row(kind, f"{made.questions:,}", f"{made.relaxed:,}", f"{made.impossible:,}")
    return table


if __name__ == "__main__":
    sys.exit(main())
