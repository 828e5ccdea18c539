"""Runs every benchmark of this folder, one after another: `make bench`. Each prints its table and saves its JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"run_all.py", "measuring.py", "loader_media.py", "trainer_runs.py", "trainer_plan.py"}


def main() -> int:
    """Return how many benchmarks failed."""
    failed = 0
    for path in sorted(HERE.glob("*.py")):
        if path.name not in NOT_BENCHMARKS:
            print(f"== {path.name}", flush=True)
            failed += subprocess.run([sys.executable, str(path)], cwd=HERE.parent, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
