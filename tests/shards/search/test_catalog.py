"""A catalog has every sample, caption, class and loss of its dataset, and finds them by key and by words."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import schema
from shards.config import SourceConfig
from shards.dataset import Dataset
from shards.index import write_dataset
from shards.search.catalog import RANKED, Catalog, CatalogError, Found, catalog_path, match_expression, open_catalog
from shards.sources import Source, open_source
from tests.shards import samples
from tests.shards.samples import DOTTED_VIDEO, TEXTS

WORDS = ("cuts", "the", "carrot", "Möhre", "opens", "drawer", "人参", "it's", "#C", "washes", "a", "7")


@pytest.fixture(scope="module")
def source(sample_dataset: Dataset) -> Source:
    return open_source(sample_dataset.root, SourceConfig())


@pytest.fixture(scope="module")
def catalog(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return open_catalog(source, tmp_path_factory.mktemp("catalog") / "catalog.sqlite")


def every_row(dataset: Dataset) -> dict[str, dict]:
    return {
        row["key"]: {**row, "set": set_name, "split": split}
        for set_name, split, entry in dataset.splits()
        for row in entry.rows().to_pylist()
    }


def test_every_sample_is_found_with_its_place_and_times(sample_dataset: Dataset, catalog: Catalog) -> None:
    rows = every_row(sample_dataset)
    assert sum(split.samples for split in catalog.splits) == len(rows)
    for key, row in rows.items():
        found = catalog.sample(key)
        assert found is not None
        assert (found.set_name, found.split, found.video_uid, found.text) == (
            row["set"], row["split"], row["video_uid"], row["text"],
        )  # fmt: skip
        assert (found.start, found.stop, found.fps) == (row["clip_start"], row["clip_end"], row["fps"])
        assert (found.mp4_offset, found.jpg_size) == (row["mp4_offset"], row["jpg_size"])
        assert catalog.shard_of(found) == row["shard"]
    assert catalog.samples(rows).keys() == rows.keys()
    assert catalog.sample("nobody_c1_000000") is None


def test_an_unknown_key_has_a_closest_one(catalog: Catalog) -> None:
    assert catalog.closest_key("video-a_c1_00000Z") in [f"video-a_c1_{i:06d}" for i in range(4)]


def test_classes_are_those_of_the_records(sample_dataset: Dataset, catalog: Catalog) -> None:
    expected: Counter[tuple[str, int]] = Counter()
    for key in every_row(sample_dataset):
        found = catalog.sample(key)
        assert found is not None
        expected.update((kind, tag) for kind, tags in found.classes.items() for tag in tags)
    assert found.classes.keys() == {"tag_verb", "tag_noun"}
    counted = {(kind, tag): n for kind, tag, n in catalog.rows("SELECT kind, tag, samples FROM tag_counts")}
    assert counted == expected and expected["tag_verb", 5] == 2


def test_losses_and_spans_are_those_of_the_tables(catalog: Catalog) -> None:
    reasons = set(catalog.rows("SELECT set_name, status, reason, items FROM loss_reasons"))
    assert reasons == {
        ("clips", "failed", "decode_error", 1),
        ("clips", "failed", "video_missing", 1),
        ("clips", "filtered", "unsure", 1),
    }
    assert catalog.rows("SELECT start, stop, status FROM spans ORDER BY start") == [
        (0.0, 40.0, "packed"),
        (40.0, 60.0, "failed"),
    ]
    assert catalog.rows("SELECT seconds, lost FROM videos WHERE uid = 'video-a'") == [(60.0, 1)]


def test_each_distribution_counts_every_sample(catalog: Catalog) -> None:
    for split in catalog.splits:
        for name in ("seconds", "words"):
            ((count,),) = catalog.rows(
                "SELECT sum(count) FROM histograms WHERE name = ? AND split = ?", (name, split.id)
            )
            assert count == split.samples


def words_of(text: str) -> set[str]:
    """Return the words of a text as FTS5's unicode61 takes them: runs of letters and digits, without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return set(re.findall(r"[^\W_]+", plain.lower()))


@pytest.mark.parametrize(
    "query", ["opens", "C", "mohre", "MÖHRE", "drawer the", "looks again", "人参を切る", "summary made"]
)
def test_a_caption_is_found_if_it_has_every_word(catalog: Catalog, query: str) -> None:
    everything = catalog.rows("SELECT id, text FROM samples")
    expected = {number for number, text in everything if words_of(query) <= words_of(text)}
    page = catalog.search_captions(query, limit=1000)
    assert expected and {sample.id for sample in page.samples} == expected
    assert page.total == len(expected) and page.after is None


def test_a_word_with_a_star_stands_for_its_beginnings(catalog: Catalog) -> None:
    assert {sample.text for sample in catalog.search_captions("draw* op*").samples} == {TEXTS[0]}
    assert not catalog.search_captions("draw").samples


@given(st.text(max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_no_query_is_an_error(catalog: Catalog, query: str) -> None:
    query = query.encode("utf-8", "replace").decode()
    page = catalog.search_captions(query)
    assert all(isinstance(sample, Found) for sample in page.samples)


@pytest.mark.parametrize("query", ["", "-- !!", '"', "*", "()", "\0"])
def test_what_has_no_word_finds_nothing(catalog: Catalog, query: str) -> None:
    assert match_expression(query) is None
    assert catalog.search_captions(query).samples == []


@pytest.mark.parametrize(
    "query", ['"', "text:opens", "NEAR(opens drawer)", "opens OR nothing", "opens NOT c", "{text}: opens"]
)
def test_operators_of_the_index_are_words(catalog: Catalog, query: str) -> None:
    found = {sample.text for sample in catalog.search_captions(query, limit=100).samples}
    assert all(words_of(query) <= words_of(text) for text in found)


def test_a_split_restricts_a_search(catalog: Catalog) -> None:
    for split in catalog.splits:
        found = catalog.search_captions("c", split=split, limit=100).samples
        assert found and {(sample.set_name, sample.split) for sample in found} == {(split.set_name, split.split)}


def test_pages_show_every_hit_once_in_the_same_order_as_one_page(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.search.catalog.RANKED", 4)  # so that pages lie within, across and after the ranked hits
    whole = [sample.id for sample in catalog.search_captions("c", limit=1000).samples]
    shown, after = [], 0
    for _ in range(100):
        page = catalog.search_captions("c", after=after, limit=3)
        shown += [sample.id for sample in page.samples]
        if page.after is None:
            break
        after = page.after
    assert len(shown) == len(set(shown)) and len(shown) > 4
    assert whole == shown[: len(whole)]
    assert set(shown) == {row[0] for row in catalog.rows("SELECT rowid FROM captions WHERE captions MATCH '\"c\"'")}
    assert shown[4:] == sorted(shown[4:]), "after the ranked hits the order is that of the dataset"


def test_short_captions_come_first(catalog: Catalog) -> None:
    lengths = [len(sample.text) for sample in catalog.search_captions("c", limit=100).samples]
    assert lengths == sorted(lengths) and len(set(lengths)) > 1
    assert RANKED == 2000


def test_a_catalog_is_made_once_and_again_for_another_dataset(
    sample_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = shutil.copytree(sample_dataset.root, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    source = open_source(root, SourceConfig())
    path = open_catalog(source).path
    assert path == catalog_path(source) and path.parent == tmp_path / "cache" / "hiervl"
    assert oct(path.parent.stat().st_mode)[-3:] == "700"
    written = path.stat().st_mtime_ns
    assert open_catalog(source).path.stat().st_mtime_ns == written, "the second start uses it"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before, "the dataset is not touched"
    samples.write_shard(root, [samples.clip(0, video="added", text="#C C juggles")], number=7)
    dataset = sample_dataset
    write_dataset(root, config={}, toolchain=dataset.toolchain, provenance=dataset.provenance)
    grown = open_catalog(open_source(root, SourceConfig()), path)
    assert [sample.text for sample in grown.search_captions("juggles").samples] == ["#C C juggles"]


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_a_damaged_catalog_is_made_again(source: Source, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(content)
    assert open_catalog(source, path).splits


def test_a_catalog_is_only_read(catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="readonly"):
        catalog.rows("DELETE FROM samples")


def test_a_folder_of_someone_else_is_refused(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "hiervl")
    with pytest.raises(OSError, match="symbolic link"):
        open_catalog(source)


def test_records_that_cannot_be_read_have_no_classes(dataset_copy: Dataset, tmp_path: Path) -> None:
    shard = dataset_copy.split("clips", "train").shards[0]
    row = shard.rows(["key", "json_offset"]).to_pylist()[1]
    with shard.path.open("r+b") as handle:
        handle.seek(row["json_offset"])
        handle.write(b"[[[[")
    catalog = open_catalog(open_source(dataset_copy.root, SourceConfig()), tmp_path / "catalog.sqlite")
    damaged, sound = catalog.sample(row["key"]), catalog.of_video(DOTTED_VIDEO, begin=0, end=1e9, limit=9)[2]
    assert damaged is not None and damaged.classes == {}
    assert sound.classes == {"tag_verb": [5], "tag_noun": [5]}


def test_every_set_of_the_schema_can_be_cataloged() -> None:
    """The columns that a catalog reads are those of every record."""
    for name in schema.SETS:
        assert {"video_uid", "clip_start", "clip_end", "text", "fps", "first_frame", "clip_frames"} <= set(
            schema.scalar_fields(name)
        )
