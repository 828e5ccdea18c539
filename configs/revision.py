"""Names the code that ran: what a copy says of itself, the git revision of the checkout, else the installed version."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def code_revision() -> str:
    """Return `git:<commit>` (with `+changes` where tracked files differ from it), else `hiervl <version>`.

    A copy that `cluster/submit.sh` made has a file REVISION: the checkout around it may have moved on.
    """
    here = Path(__file__).resolve().parent
    copied = here.parent / "REVISION"
    if copied.is_file():
        return copied.read_text(encoding="utf-8").strip()
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True, check=False)
        return f"git:{commit.stdout.strip()}{'+changes' if changes.returncode else ''}"
    except (OSError, subprocess.CalledProcessError):
        try:
            return f"hiervl {version('hiervl')}"
        except PackageNotFoundError:
            return "unknown"
