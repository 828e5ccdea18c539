"""Progress in a log: finished stages, rates and the remaining time."""

from __future__ import annotations

import io

from rich.console import Console

from preprocessing.progress import StageProgress


def test_a_finished_stage_is_logged_with_its_rate() -> None:
    console = Console(file=io.StringIO(), width=200)
    progress = StageProgress(console)
    with progress.shown():
        progress.begin("chunks", 30.0, "s of video")
        for _ in range(3):
            progress.advance("chunks", 10.0)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # a StringIO
    assert lines[-1].startswith("chunks: 30 of 30 s of video, ") and lines[-1].endswith("/s, 0 s left")
