"""A decoder and an encoder run as a pipe, limited in time and memory; their messages and CPU time are returned."""

from __future__ import annotations

import sys
import time

from preprocessing.video.ffmpeg import PipeResult, run_piped

COPY = "import sys; data = sys.stdin.buffer.read(); print(len(data), file=sys.stderr)"


def run(producer: str, consumer: str, *, timeout: float = 60, memory: int = 1 << 32) -> PipeResult:
    commands = ([sys.executable, "-c", code] for code in (producer, consumer))
    return run_piped(*commands, timeout=timeout, memory=memory)


def test_output_status_messages_and_cpu_time() -> None:
    produce = "import sys; sum(range(10**6)); sys.stdout.buffer.write(bytes(10**6)); print('sent', file=sys.stderr)"
    result = run(produce, COPY + "; sys.exit(3)")
    assert (result.status, result.messages, result.timed_out) == (3, "sent\n1000000\n", False)
    assert 0 < result.cpu_seconds < 60


def test_a_consumer_that_fails_is_the_cause_and_its_producer_ends() -> None:
    began = time.monotonic()
    endless = "import sys\nwhile True: sys.stdout.buffer.write(bytes(10**6))"
    result = run(endless, "import sys; sys.exit('cannot encode')")
    assert result.status == 1 and result.cause == "cannot encode" and time.monotonic() - began < 30


def test_a_producer_that_fails_is_the_cause() -> None:
    assert run("raise ValueError('cannot decode')", COPY).cause == "ValueError: cannot decode"


def test_both_are_killed_after_the_timeout() -> None:
    for codes in (("import time; time.sleep(60)", COPY), ("pass", "import time; time.sleep(60)")):
        began = time.monotonic()
        assert run(*codes, timeout=0.3).timed_out
        assert time.monotonic() - began < 30


def test_memory_of_each_is_limited() -> None:
    greedy = "x = bytearray(1 << 30)"
    for codes in ((greedy, COPY), ("pass", greedy)):
        assert "MemoryError" in run(*codes, memory=1 << 29).messages
