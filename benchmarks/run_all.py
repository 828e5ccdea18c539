"""Runs all benchmarks of this folder one after another (`make bench`); each prints a table and saves its JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HELPERS = {"run_all.py", "measuring.py", "loader_media.py", "trainer_runs.py", "trainer_plan.py"}


def main() -> int:
    """Run the benchmarks; return the number of those that failed."""
    failed = 0
    for path in sorted(HERE.glob("*.py")):
        if path.name not in HELPERS:
            print(f"== {path.name}", flush=True)
            failed += subprocess.run([sys.executable, str(path)], cwd=HERE.parent, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
