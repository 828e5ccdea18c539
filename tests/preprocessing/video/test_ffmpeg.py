"""Child processes are limited in time and memory, and their messages and CPU time are returned."""

from __future__ import annotations

import sys

from preprocessing.video.ffmpeg import run


def test_status_messages_and_cpu_time_are_returned() -> None:
    code = "import sys; sum(range(10**6)); print('hello', file=sys.stderr); sys.exit(3)"
    result = run([sys.executable, "-c", code], timeout=60, memory=1 << 32)
    assert (result.status, result.messages, result.timed_out) == (3, "hello\n", False)
    assert 0 < result.cpu_seconds < 60


def test_a_process_is_killed_after_the_timeout() -> None:
    result = run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2, memory=1 << 32)
    assert result.timed_out and result.status != 0


def test_memory_is_limited() -> None:
    result = run([sys.executable, "-c", "x = bytearray(1 << 30)"], timeout=60, memory=1 << 29)
    assert result.status == 1 and "MemoryError" in result.messages
