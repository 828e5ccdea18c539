# PYTHON_ARGCOMPLETE_OK
"""Renders the embedded dataset: `python -m preprocessing.demo --out DIR [--contact-sheet FILE.png] [key=value …]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.cli import Command, Request
from preprocessing.demo.build import generate
from preprocessing.demo.config import DemoConfig
from preprocessing.demo.contact_sheet import contact_sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("python -m preprocessing.demo", __doc__, DemoConfig)
    command.flag("--out", type=Path, required=True, metavar="DIR", help="folder to render into")
    command.flag("--contact-sheet", type=Path, metavar="FILE", help="also write a PNG of some clips here")
    command.flag("--workers", type=int, help="processes (default: one per core)")
    return command.run(_run, argv)


def _run(request: Request[DemoConfig]) -> None:
    begun, config, flags = time.monotonic(), request.config, request.flags
    dataset = generate(config, flags.out, workers=flags.workers)
    seconds = time.monotonic() - begun
    print(f"{dataset.root}: {config.n_videos} videos of about {config.mean_seconds:g} s ({seconds:.1f} s)")
    if flags.contact_sheet:
        contact_sheet(dataset, flags.contact_sheet)
        print(flags.contact_sheet)


if __name__ == "__main__":
    sys.exit(main())
