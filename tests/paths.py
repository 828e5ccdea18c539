"""Where tests find what is not part of the project: real videos, real annotations, a reference checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def shared(name: str) -> Path:
    """Return a file or folder beside the repository; skip the test, naming it, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"shared/{name} is not here")
    return path
