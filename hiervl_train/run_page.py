"""Shows a run as one self-contained HTML page: its curves, its state, its configuration."""

from __future__ import annotations

import os


def write_page(folder: str | os.PathLike[str]) -> None:
    """Write `index.html` of a run's folder anew."""
