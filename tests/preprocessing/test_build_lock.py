"""A folder can be locked by one build at a time."""

from __future__ import annotations

import errno
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocessing.build_lock import build_lock
from preprocessing.errors import TransientError, UsageError
from tests.paths import REPOSITORY

HOLDER = """
import sys, time
from pathlib import Path
from preprocessing.build_lock import build_lock
with build_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
# Makes the system call `flock` fail with the error number argv[1], as on file systems without locks, and then builds.
WITHOUT_LOCKS = """
import ctypes, logging, os, sys
from pathlib import Path
from preprocessing.build_lock import build_lock

class Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]

class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]

number = {"x86_64": 73, "aarch64": 32}[os.uname().machine]
rules = (Instruction * 4)(
    Instruction(0x20, 0, 0, 0),  # load the number of the system call
    Instruction(0x15, 0, 1, number),  # unless it is flock's, skip the next rule
    Instruction(0x06, 0, 0, 0x00050000 | int(sys.argv[1])),  # fail with this error number
    Instruction(0x06, 0, 0, 0x7FFF0000),  # allow
)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, rules)), 0, 0) == 0, ctypes.get_errno()
logging.basicConfig(format="%(levelname)s %(message)s")
with build_lock(Path(sys.argv[2])) as is_protected:
    print("protected:", is_protected)
"""


def test_a_second_lock_is_refused_until_the_first_is_released(tmp_path: Path) -> None:
    output, work = tmp_path / "new" / "shards", tmp_path / "work"
    with build_lock(output, work):
        with (
            pytest.raises(UsageError, match=r"work: another build is using this folder \(process \d+ on "),
            build_lock(work),
        ):
            pass
        with build_lock(tmp_path / "other"):
            pass
    with build_lock(work):
        pass
    assert not output.exists()


def test_two_paths_to_one_folder_share_a_lock(tmp_path: Path) -> None:
    (tmp_path / "real" / "shards").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "out").symlink_to("../real/shards")
    paths = [tmp_path / "real" / "shards", tmp_path / "link" / "shards", tmp_path / "elsewhere" / "out"]
    for held in paths:
        with build_lock(held) as is_protected:
            assert is_protected
            for other in paths:
                with pytest.raises(UsageError, match="another build is using this folder"), build_lock(other):
                    pass
    with build_lock(*paths):  # one build may name a folder twice
        pass


def test_links_in_a_circle_are_a_fault_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(TransientError, match="a"), build_lock(tmp_path / "a" / "shards"):
        pass


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "shards")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "link")], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"process {holder.pid} on "), build_lock(tmp_path / "shards"):
            pass
    finally:
        holder.kill()
        holder.wait(10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with build_lock(tmp_path / "shards"):
                return
        except UsageError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its holder")


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="needs seccomp of Linux"
)
@pytest.mark.parametrize(
    ("code", "returned", "said"),
    [
        (errno.ENOLCK, 0, "has no locks (No locks available)"),
        (errno.EOPNOTSUPP, 0, "has no locks (Operation not supported)"),
        (errno.ENOSYS, 0, "has no locks (Function not implemented)"),
        (errno.EIO, 1, "TransientError"),
    ],
)
def test_a_file_system_without_locks_gives_a_warning(code: int, returned: int, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, str(code), str(tmp_path / "shards")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == returned and said in done.stderr, done.stderr
    assert ("protected: False" in done.stdout) == (returned == 0)
