# PYTHON_ARGCOMPLETE_OK
"""Exports a dataset in a format of another project: `python -m shards.export FORMAT ROOT OUT`.

docs/consumers.md describes the formats. An export is resumable: run the same command again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.cli import Command, ExitCode, Request
from shards.export.formats import FORMATS
from shards.export.job import DEFAULT_PROMPTS, ExportError, Options, export
from shards.stats import ShardError, read_json_object


def main(argv: Sequence[str] | None = None) -> int:
    """Export what the command line asks for; return the exit code."""
    command = Command("python -m shards.export", __doc__)
    listed = "; ".join(f"{name}: {form.title}" for name, form in FORMATS.items())
    command.positional("format", help=listed)
    command.positional("root", type=Path, help="the dataset's folder")
    command.positional("out", type=Path, help="the folder that is written")
    command.flag("--sets", default="", metavar="SETS", help="as clips,summaries (default: all)")
    command.flag("--splits", default="", metavar="SPLITS", help="as train,val (default: all)")
    command.flag("--features", metavar="NAME", help="features-tar, hf: the feature set, or its folder (with a slash)")
    command.flag("--prompts", type=Path, metavar="FILE", help='llava, qwen-vl: JSON, {"clips": ["…?"], …}')
    command.flag("--raw-captions", action="store_true", help="llava, qwen-vl: captions as annotated, with #C and C")
    command.resumes("What is exported is kept: run the same command again to resume.")

    def work(request: Request[None]) -> int:
        flags = request.flags
        if flags.format not in FORMATS:
            raise ExportError(f"unknown format {flags.format!r}; known are {', '.join(FORMATS)}")
        options = Options(
            features=flags.features, prompts=_prompts(flags.prompts), raw_captions=bool(flags.raw_captions)
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(flags.format, total=None)

            def on_shard(samples: int, total: int, is_new: bool) -> None:
                bar.update(task, total=total, advance=samples)

            samples = export(
                FORMATS[flags.format],
                flags.root,
                flags.out,
                options,
                sets=_words(flags.sets),
                splits=_words(flags.splits),
                on_shard=on_shard,
            )
        request.console.print(f"{samples:,} samples → {flags.out}", soft_wrap=True, markup=False)
        return ExitCode.OK

    return command.run(work, argv)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _prompts(path: Path | None) -> dict[str, Sequence[str]]:
    """Return the questions of a file by set, and the default ones of sets that it does not name."""
    if path is None:
        return dict(DEFAULT_PROMPTS)
    try:
        value = read_json_object(path)
    except ShardError as error:
        raise ExportError(f"--prompts {error}") from None
    for name, texts in value.items():
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise ExportError(f"--prompts {path}: {name}: a list of one or more questions is expected")
    return {**DEFAULT_PROMPTS, **value}


if __name__ == "__main__":
    sys.exit(main())
