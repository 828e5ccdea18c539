"""Damage to index files, dataset.json, ledger and spans is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards import files
from shards.dataset import hash_json
from tests.shards import samples
from tests.shards.verify.damage import TAR, findings_text, flip


def test_an_outdated_index(root: Path) -> None:
    samples.write_shard(root, [samples.clip(0, video="added")], number=7)
    text = findings_text(root)
    assert "clips/train/sizes.json [] absent, altered or outdated" in text
    assert "clips/train/shardindex.json [] absent, altered or outdated" in text
    assert "dataset.json [] clips/train/00007.tar: listed as nothing" in text
    assert "ledger.parquet [added_c1_000000] the sample in clips/train/00007.tar has no packed row" in text


def test_missing_and_repeated_rows_of_the_ledger(root: Path) -> None:
    table = pq.read_table(root / "ledger.parquet")
    keys = table["key"].to_pylist()
    kept = [i for i, key in enumerate(keys) if key not in ("video-a_c1_000002", "lost_c1_000000")]
    table = table.take(kept)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), root / "ledger.parquet")
    text = findings_text(root)
    assert "ledger.parquet [video-a_c1_000002] the sample in clips/train/00000.tar has no packed row" in text
    assert "ledger.parquet [lost_c1_000000] the sample failed in clips/train/00000.tar, but has no row" in text
    assert f"ledger.parquet [{keys[0]}] 2 packed rows for one sample" in text


def test_a_packed_row_without_a_sample(root: Path) -> None:
    table = pq.read_table(root / "ledger.parquet").to_pylist()
    table[0]["key"] = "nobody_c1_000000"
    pq.write_table(pa.Table.from_pylist(table), root / "ledger.parquet")
    assert "[nobody_c1_000000] the packed row lists clips/train/00000.tar, which has no such sample" in findings_text(
        root
    )


def test_spans_with_a_gap_and_an_unknown_status(root: Path) -> None:
    rows = pq.read_table(root / "spans.parquet").to_pylist()
    rows[1]["start"], rows[1]["status"] = 41.0, "lost"
    pq.write_table(pa.Table.from_pylist(rows), root / "spans.parquet")
    text = findings_text(root)
    assert "spans.parquet [video-a] unknown status 'lost'" in text
    assert "span 41.0–60.0 s; expected one from 40.0 s" in text


def test_tables_of_wrong_types_or_with_nulls(root: Path) -> None:
    for name, column in (("ledger.parquet", "key"), ("spans.parquet", "start")):
        rows = pq.read_table(root / name).to_pylist()
        rows[0][column] = None
        pq.write_table(pa.Table.from_pylist(rows), root / name)
        assert f"{name} [] missing column {column} of type" in findings_text(root)


def test_missing_and_unexpected_files(root: Path) -> None:
    folder = root / "clips" / "train"
    (folder / "notes.txt").write_text("x")
    (folder / ".tmp-1-00009.tar").write_text("x")
    (folder / "00009.tar").write_bytes(bytes(10240))
    (folder / "00002.parquet").unlink()
    (folder / "00000.tar").unlink()
    (root / "clips" / "extra").mkdir()
    text = findings_text(root)
    assert "clips/train/notes.txt [] unexpected file" in text
    assert "clips/train/.tmp-1-00009.tar [] temporary file of a killed writer" in text
    assert "clips/train/00009.tar [] the shard has no stats file, so it is incomplete" in text
    assert "clips/train/00002.parquet [] absent, but the stats file lists 4 samples" in text
    assert "clips/train/00000.tar [] absent, but the stats file lists 4 samples" in text
    assert "clips/extra [] unexpected in a set" in text


def test_a_manifest_that_lists_a_file_outside_the_dataset(root: Path) -> None:
    manifest = json.loads((root / "dataset.json").read_text())
    manifest.pop("sha256")
    manifest["files"]["../../etc/passwd"] = "0" * 64
    files.write_json(root / "dataset.json", {**manifest, "sha256": hash_json(manifest)})
    assert "it lists '../../etc/passwd', which is outside the dataset's folder" in findings_text(root)


def test_the_shards_are_checked_even_without_a_manifest(root: Path) -> None:
    (root / "dataset.json").unlink()
    flip(root / TAR, 600)
    text = findings_text(root)
    assert "dataset.json [] dataset.json: no such file" in text
    assert f"{TAR} [] sha256 is" in text
