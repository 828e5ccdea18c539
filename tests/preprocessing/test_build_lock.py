"""A folder can be locked by one build at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.build_lock import build_lock
from preprocessing.errors import UsageError


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
