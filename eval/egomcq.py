# PYTHON_ARGCOMPLETE_OK
"""EgoMCQ: which of five clips shows a narration; inter- and intra-video accuracy (EgoVLP, section 3.3).

    python eval/egomcq.py --checkpoint C --shards ROOT [--questions FILE] [--config F] [key=value …]

Any file of questions of the same form will do, over clips or long samples (`eval/build_mcq.py` makes them).
"""

from __future__ import annotations

import sys

from eval import mcq
from eval.benchmark import Benchmark
from eval.command import main

BENCHMARK = Benchmark(
    name="egomcq",
    set_name="egomcq",
    split="test",
    title="EgoMCQ, or any file of questions",
    read=mcq.read,
    inputs=mcq.inputs,
    score=mcq.score,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
