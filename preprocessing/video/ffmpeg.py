"""Runs one ffmpeg as a limited child process: no shell, bounded memory and time, gone when its parent is gone."""

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
class Finished:
    """How a child ended: its exit status, what it printed on stderr, and its CPU seconds (user and system)."""

    status: int
    messages: str
    cpu_seconds: float
    timed_out: bool


def run(command: list[str], *, timeout: float, memory: int) -> Finished:
    """Run `command` with at most `memory` bytes of address space, ending it after `timeout` seconds."""
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
    return Finished(status=child.returncode or 0, messages=text, cpu_seconds=cpu, timed_out=timed_out)


def _wait(child: subprocess.Popen[bytes], timeout: float) -> resource.struct_rusage | None:
    """Wait for a child as `Popen.wait` does, and return what it used; None where the time ran out."""
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
    """Return the prefix under which the kernel ends the child when its parent dies (util-linux has it)."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
