"""Runs a decoder and ffmpeg as child processes with limited memory and time, which die together with their parent."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

_MESSAGES_KEPT = 64 * 1024  # bytes of stderr; a damaged source can print millions of lines
_PIPE_BYTES = 1 << 20  # Linux allows this much to everybody


@dataclass(frozen=True, kw_only=True)
class PipeResult:
    """The result of two commands, of which the first feeds the second."""

    status: int  # exit status of the second
    messages: str  # the beginning of what both wrote to standard error
    cause: str  # the line of it that says best why they failed
    cpu_seconds: float  # user and system, of both
    timed_out: bool


def run_piped(producer: list[str], consumer: list[str], *, timeout: float, memory: int) -> PipeResult:
    """Run two commands (arguments), the standard output of the first feeding the second.

    Each gets at most `memory` bytes of address space; both are killed after `timeout` seconds.
    """
    environment = {**os.environ, "LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1", "PYTHONPATH": _import_path()}
    with ExitStack() as cleanup:
        messages = [cleanup.enter_context(tempfile.TemporaryFile()) for _ in range(2)]

        def start(
            command: list[str], stdin: int | IO[bytes], stdout: int, stderr: IO[bytes]
        ) -> subprocess.Popen[bytes]:
            child = subprocess.Popen(
                [*_tied_to_parent(), *command], stdin=stdin, stdout=stdout, stderr=stderr, env=environment
            )
            cleanup.callback(_end, child)
            resource.prlimit(child.pid, resource.RLIMIT_AS, (memory, memory))
            return child

        first = start(producer, subprocess.DEVNULL, subprocess.PIPE, messages[0])
        assert first.stdout is not None
        with suppress(OSError):  # a larger pipe only saves switches between the two processes
            fcntl.fcntl(first.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        second = start(consumer, first.stdout, subprocess.DEVNULL, messages[1])
        first.stdout.close()  # so that the first ends when the second does
        deadline = time.monotonic() + timeout
        usages = [_wait(second, deadline), _wait(first, deadline)]
        for child in (second, first):
            _end(child)
        texts = [_beginning(file) for file in messages]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages if usage)
    # A consumer that fails breaks the producer's pipe; one that gets nothing complains only because of that.
    is_producers = bool(texts[0].strip()) and "BrokenPipeError" not in texts[0]
    lines = [line.strip() for line in texts[0 if is_producers else 1].splitlines() if line.strip()]
    cause = lines[-1 if is_producers else 0][:300] if lines else f"no message, exit status {first.returncode}"
    return PipeResult(
        status=second.returncode or 0,
        messages="".join(texts),
        cause=cause,
        cpu_seconds=cpu,
        timed_out=None in usages,
    )


def _beginning(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_MESSAGES_KEPT).decode(errors="replace")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child that still runs."""
    if child.returncode is None:
        child.kill()
        _wait(child, time.monotonic() + 60)


def _import_path() -> str:
    """Return PYTHONPATH with the folder of this project, so that a child imports the same code."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _wait(child: subprocess.Popen[bytes], deadline: float) -> resource.struct_rusage | None:
    """Wait for a child as `Popen.wait` does, and return its resource usage; None after `deadline`."""
    pause = 0.001
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return usage
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


@lru_cache(maxsize=1)
def _tied_to_parent() -> tuple[str, ...]:
    """Return a command prefix that makes the kernel kill the child when its parent dies; empty without util-linux."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
