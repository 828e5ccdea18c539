"""Loads training batches and resumes in the middle of an epoch, to the same next batch.

python examples/load_batches.py [ROOT]        (ROOT: data/embedded/shards, which `make demo` builds)
"""

from __future__ import annotations

import sys
from pathlib import Path

from shards.config import LoaderConfig
from shards.loader import Loader


def main(root: Path) -> None:
    """Print the shapes of two batches, then the second one again from a saved cursor."""
    config = LoaderConfig(global_batch=8, frames=4, size=112, workers=1)
    loader = Loader(root, "clips", "train", config)
    batches = iter(loader)
    first = next(batches)
    cursor = loader.state_dict()  # three integers: save them in a checkpoint
    second = next(batches)
    for batch in (first, second):
        print(f"batch {batch.number} of {len(loader)}: video {tuple(batch.video.shape)}, first text {batch.texts[0]!r}")
    loader.close()

    resumed = Loader(root, "clips", "train", config)
    resumed.load_state_dict(cursor)
    again = next(iter(resumed))
    resumed.close()
    print(f"resumed at batch {again.number}: equal is {again.keys == second.keys and again.video.equal(second.video)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/embedded/shards"))
