"""Tasks that record each of their starts in a file, for the tests of workers that leave."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Work:
    """A task that takes some seconds."""

    folder: Path
    number: int
    seconds: float


def work(task: Work) -> int:
    """Record the start, take the time, return the task's number."""
    marks = task.folder / "marks"
    marks.mkdir(exist_ok=True)
    (marks / f"{task.number}.{uuid.uuid4().hex}").touch()
    time.sleep(task.seconds)
    return task.number


def starts(folder: Path) -> Counter[int]:
    """Return how often each task was started."""
    return Counter(int(path.name.split(".")[0]) for path in (folder / "marks").iterdir())
