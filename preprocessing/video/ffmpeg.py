"""Runs ffmpeg as a child process with limited memory and time, which dies together with its parent."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache

_MESSAGES_KEPT = 64 * 1024  # bytes of stderr; a damaged source can print millions of lines


@dataclass(frozen=True, kw_only=True)
class FfmpegResult:
    """The result of one run of ffmpeg."""

    status: int  # exit status
    messages: str  # the beginning of stderr
    cpu_seconds: float  # user and system
    timed_out: bool


def run(command: list[str], *, timeout: float, memory: int) -> FfmpegResult:
    """Run `command` (arguments) with at most `memory` bytes of address space; kill it after `timeout` seconds."""
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(
            [*_tied_to_parent(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env={**os.environ, "LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1"},
        )
        timed_out = False
        try:
            resource.prlimit(child.pid, resource.RLIMIT_AS, (memory, memory))
            usage = _wait(child, timeout)
            timed_out = usage is None
        finally:
            if child.returncode is None:
                child.kill()
                usage = _wait(child, timeout=60)
        messages.seek(0)
        text = messages.read(_MESSAGES_KEPT).decode(errors="replace")
    cpu = usage.ru_utime + usage.ru_stime if usage else 0.0
    return FfmpegResult(status=child.returncode or 0, messages=text, cpu_seconds=cpu, timed_out=timed_out)


def _wait(child: subprocess.Popen[bytes], timeout: float) -> resource.struct_rusage | None:
    """Wait for a child as `Popen.wait` does, and return its resource usage; None after `timeout` seconds."""
    deadline = time.monotonic() + timeout
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
