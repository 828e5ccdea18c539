"""The card describes every field to people, and every split to Hugging Face `datasets`."""

from __future__ import annotations

from pathlib import Path

import yaml

from shards import schema
from shards.dataset import Dataset
from shards.index import write_dataset
from tests.shards import samples


def test_a_split_whose_samples_all_failed_is_not_in_the_cards_yaml(tmp_path: Path) -> None:
    samples.write_shard(tmp_path, [samples.clip(0)])
    samples.write_shard(tmp_path, [], split="val")
    dataset = write_dataset(tmp_path, config={}, toolchain=samples.TOOLCHAIN, provenance={})
    assert len(dataset.rows("clips", "val")) == 0
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "clips/train/*.tar"}]


def test_the_card_shows_every_field_with_its_meaning_and_the_licence(sample_dataset: Dataset) -> None:
    card = (sample_dataset.root / "README.md").read_text()
    for name, (kind, _) in schema.field_docs("summaries").items():
        # Only datasets of own captions with further columns have the field `extra`.
        assert (f"| `{name}` | {kind} |" in card) == (name != "extra")
    assert "Made for tests." in card
