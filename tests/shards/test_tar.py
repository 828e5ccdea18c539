"""Headers equal those of GNU tar."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shards import tar


def test_a_header_is_the_one_that_gnu_tar_writes(tmp_path: Path) -> None:
    (tmp_path / "key_c1_000001.txt").write_bytes(b"x" * 1234)
    options = ["--format=ustar", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--mode=644"]
    subprocess.run(["tar", *options, "-cf", "made.tar", "key_c1_000001.txt"], check=True, cwd=tmp_path)
    assert (tmp_path / "made.tar").read_bytes()[:512] == tar.header("key_c1_000001.txt", 1234)
