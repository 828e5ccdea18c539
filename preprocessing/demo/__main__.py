"""`python -m preprocessing.demo --out DIR [--contact-sheet FILE.png] [key=value …]`: make the embedded dataset."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from configs.loading import ConfigError, load
from preprocessing.demo.build import generate
from preprocessing.demo.config import DemoConfig
from preprocessing.demo.contact_sheet import contact_sheet


def main() -> int:
    """Return 0, or 2 where the arguments cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.demo", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make it in")
    parser.add_argument("--contact-sheet", type=Path, help="also write a PNG of some clips here")
    parser.add_argument("--workers", type=int, help="processes; default: one a core")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as size=tiny, seed=1, videos=12")
    arguments = parser.parse_args()
    begun = time.monotonic()
    try:
        config = load(DemoConfig, overrides=arguments.overrides)
        dataset = generate(config, arguments.out, workers=arguments.workers)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - begun
    print(f"{dataset.root}: {config.n_videos} videos of about {config.mean_seconds:g} s ({seconds:.1f} s)")
    if arguments.contact_sheet:
        contact_sheet(dataset, arguments.contact_sheet)
        print(arguments.contact_sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
