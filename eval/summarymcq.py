# PYTHON_ARGCOMPLETE_OK
"""SummaryMCQ: which of five minutes-long samples a summary describes; accuracy (HierVL, section 4).

    python eval/summarymcq.py --checkpoint C --shards ROOT [--questions FILE] [--config F] [key=value …]

A sample's embedding is aggregated from its windows in temporal order; the summary is embedded like any text.
"""

from __future__ import annotations

import sys

from eval import mcq
from eval.benchmark import Benchmark
from eval.command import main

BENCHMARK = Benchmark(
    name="summarymcq",
    set_name="summarymcq",
    split="test",
    title="SummaryMCQ, or any file of questions over long samples",
    read=mcq.read,
    inputs=mcq.inputs,
    score=mcq.score,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
