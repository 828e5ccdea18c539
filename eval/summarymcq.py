"""SummaryMCQ: which of five stretches of minutes a summary tells of; accuracy (HierVL, section 4).

    python eval/summarymcq.py --checkpoint C --shards ROOT [--questions FILE] [--config F] [key=value …]

Each stretch is its windows in their order, aggregated; the summary is embedded as any text is.
"""

from __future__ import annotations

import sys

from eval.benchmark import Benchmark, main
from eval.egomcq import evaluate

BENCHMARK = Benchmark(
    name="summarymcq", set_name="summarymcq", split="test", evaluate=evaluate, title="SummaryMCQ, from shards"
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
