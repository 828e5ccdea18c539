"""The command prints and writes its findings and returns the documented exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shards.verify.__main__ import main
from tests.shards.verify.damage import TAR, flip


def test_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "shards.verify", root, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "sound: 15 samples in 6 shards" in done.stdout) == (0, True), done
    flip(root / TAR, 700)
    assert main([str(root), "--workers", "0", "--json", str(tmp_path / "report.json")]) == 1
    assert f"{TAR}" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {finding["file"] for finding in report["findings"]} == {TAR}
    for usage in ([str(tmp_path / "nowhere")], [], [str(root), "--workers", "-1"]):
        with pytest.raises(SystemExit) as caught:
            main(usage)
        assert caught.value.code == 2
