"""The contact sheet shows clips of the dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing.demo import DemoDataset
from preprocessing.demo.contact_sheet import contact_sheet

pytestmark = pytest.mark.medium


def test_the_contact_sheet_shows_clips(dataset: DemoDataset, tmp_path: Path) -> None:
    contact_sheet(dataset, tmp_path / "sheet.png", clips=4, width=80)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
