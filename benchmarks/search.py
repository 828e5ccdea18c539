"""Measures catalog, pages and search at the size of Ego4D, on synthetic data: parquet files and vectors, no video.

    python benchmarks/search.py [--samples 3800000] [--width 256] [--videos 9600] [--folder DIR] [--repeats 5]

A dataset of so many clips and 1 in 40 as many summaries is made in `--folder` (kept where it is given, 7 GB at the
default size; temporary otherwise). Its tars hold a record for each sample and nothing else, so that making the catalog
reads as many records as from real ones. Then it makes the catalog, opens every kind of page as the server does, and
searches by a vector and by key. Times are medians over `--repeats` with different arguments, the first call apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import show
from starlette.testclient import TestClient

sys.path.remove(str(Path(__file__).resolve().parent))  # a file there has the name of a package

from eval.nearest import find_key, join
from shards import schema
from shards.browse.app import application
from shards.browse.frame import Site
from shards.dataset import Dataset, Shard, Split, row_schema
from shards.search.catalog import Catalog, open_catalog
from shards.search.vectors import VectorSet
from shards.sources import LocalSource

PER_SHARD = 4096
RECORD = 512  # bytes of a record in a tar, padded
LIMIT = 0.3  # s, of a page
VERBS = ("takes", "puts", "opens", "cuts", "washes", "turns", "holds", "drops", "moves", "cleans", "lifts", "closes")
NOUNS = 400
REASONS = ("decode_error", "video_missing", "unsure", "redacted", "empty caption")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=3_800_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--videos", type=int, default=9_600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="search-") as temporary:
        folder = arguments.folder or Path(temporary)
        dataset = make_dataset(folder / "shards", arguments.samples, arguments.videos)
        make_vectors(folder / "vectors", dataset, arguments.width)
        figures = measure(dataset, folder, arguments.repeats)
    rows = [(name, f"{value:,.3f} {unit}", target, "") for name, (value, unit, target) in figures.items()]
    show(
        "search",
        rows,
        {"samples": arguments.samples, "width": arguments.width, **{k: v[0] for k, v in figures.items()}},
    )
    return 0


def measure(dataset: Dataset, folder: Path, repeats: int) -> dict[str, tuple[float, str, str]]:
    """Return quantity → value, unit and target."""
    source = LocalSource.__new__(LocalSource)  # without a dataset.json, which would need every tar's hash
    source.dataset = dataset
    path = folder / "catalog.sqlite"
    is_new = not path.exists()
    began = time.perf_counter()
    catalog = open_catalog(source, path)
    figures = {"catalog made" if is_new else "catalog opened": (time.perf_counter() - began, "s", "600")}
    figures["catalog, size"] = (path.stat().st_size / 1e9, "GB", "")
    figures |= _pages(source, catalog, repeats)
    figures |= _searches(source, catalog, folder / "vectors", repeats)
    figures["greatest memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "GB", "")
    return figures


def _pages(source: LocalSource, catalog: Catalog, repeats: int) -> dict[str, tuple[float, str, str]]:
    client = TestClient(
        application(Site(source=source, catalog=catalog, name="benchmark")), base_url="http://localhost"
    )
    last = catalog.splits[0].last - 1
    keys = [
        catalog.rows("SELECT key FROM samples WHERE id = ?", (number,))[0][0] for number in range(1, last, last // 9)
    ]
    uids = [uid for (uid,) in catalog.rows("SELECT uid FROM videos ORDER BY samples DESC LIMIT 5")]
    addresses: dict[str, list[str]] = {
        "overview": ["/"],
        "videos": ["/videos"],
        "videos, sorted": ["/videos?sort=longest", "/videos?sort=fullest"],
        "videos, by verb, noun and length": [
            f"/videos?verb=tag_verb:{v}&noun=tag_noun:{7 * v}&min=1" for v in range(9)
        ],
        "videos, by a common word": ["/videos?q=takes", "/videos?q=c", "/videos?q=puts+cup7"],
        "one video": [f"/video?uid={quote(uid)}" for uid in uids],
        "one sample": [f"/sample/{key}" for key in keys],
        "search, rare words": [f"/search?q=washes+cup{n}+drawer{n + 3}" for n in range(0, 90, 10)],
        "search, a word of every caption": ["/search?q=c"],
        "search, a common word, a late page": [f"/search?q=takes&after={last // 2 + n}" for n in range(5)],
        "search, in one split": ["/search?q=takes&split=2"],
        "losses": ["/losses"],
        "losses of a reason": ["/losses?set=clips&status=failed&reason=decode_error"],
        "distributions": ["/distributions"],
    }
    figures = {}
    for name, paths in addresses.items():
        seconds = []
        for turn in range(repeats + 1):
            began = time.perf_counter()
            answer = client.get(paths[turn % len(paths)])
            seconds.append(time.perf_counter() - began)
            assert answer.status_code == 200, (paths[turn % len(paths)], answer.text[-500:])
        figures[f"page: {name}, first"] = (seconds[0], "s", "")
        figures[f"page: {name}"] = (statistics.median(seconds[1:]), "s", f"{LIMIT}")
    return figures


def _searches(source: LocalSource, catalog: Catalog, folder: Path, repeats: int) -> dict[str, tuple[float, str, str]]:
    began = time.perf_counter()
    vectors = [VectorSet(folder / name / "train", name, "train") for name in ("clips", "summaries")]
    figures = {"vectors opened": (time.perf_counter() - began, "s", "")}
    random = np.random.default_rng(1)
    queries = [random.normal(size=vectors[0].width).astype(np.float32) for _ in range(repeats + 1)]

    def timed(work: Callable[[int], object]) -> list[float]:
        seconds = []
        for turn in range(repeats + 1):
            start = time.perf_counter()
            work(turn)
            seconds.append(time.perf_counter() - start)
        return seconds

    whole = timed(lambda turn: join(catalog, source.dataset, queries[turn], vectors, 12))
    figures["query, first"] = (whole[0], "s", "")
    figures["query"] = (statistics.median(whole[1:]), "s", "0.5")
    cpu = time.process_time()
    scores = timed(lambda turn: vectors[0].scores(queries[turn] / np.linalg.norm(queries[turn])))
    figures["of which products, one set"] = (statistics.median(scores[1:]), "s", "0.4")
    figures["products, CPU time"] = ((time.process_time() - cpu) / (repeats + 1), "s", "")
    last = catalog.splits[0].last - 1
    keys = [
        catalog.rows("SELECT key FROM samples WHERE id = ?", (1 + last * t // 20,))[0][0] for t in range(repeats + 1)
    ]

    def by_key(turn: int) -> None:
        found = find_key(source, catalog, keys[turn])
        assert vectors[0].vector_of(found.key, catalog.shard_of(found)) is not None

    figures["vector of a key"] = (statistics.median(timed(by_key)[1:]), "s", "")
    figures["nearest key of a misspelt one"] = (
        statistics.median(timed(lambda turn: catalog.closest_key(f"{keys[turn][:-1]}x"))),
        "s",
        "",
    )
    return figures


def make_dataset(root: Path, samples: int, videos: int) -> Dataset:
    """Return a dataset in which only what a catalog reads is there; existing files are used again."""
    summaries = max(1, samples // 40)
    sets = {
        "clips": {"train": _make_split(root, "clips", samples, videos)},
        "summaries": {"train": _make_split(root, "summaries", summaries, videos)},
    }
    _make_ledger(root, samples, videos)
    files = {
        name: hashlib.sha256(f"{name} {samples} {videos}".encode()).hexdigest()
        for name in ("ledger.parquet", "spans.parquet")
    }
    return Dataset(root=root, config={}, toolchain={"none": "0"}, provenance={}, sets=sets, files=files)


def _make_split(root: Path, set_name: str, samples: int, videos: int) -> Split:
    folder = root / set_name / "train"
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, first in enumerate(range(0, samples, PER_SHARD)):
        count = min(PER_SHARD, samples - first)
        tar, parquet = folder / f"{number:05d}.tar", folder / f"{number:05d}.parquet"
        if not tar.exists() or not parquet.exists():
            _make_shard(tar, parquet, set_name, first, count, samples, videos)
        digest = hashlib.sha256(f"{set_name} {number} {count} {videos}".encode()).hexdigest()
        hashes = {"sha256": digest, "parquet_sha256": digest, "stats_sha256": digest}
        shards.append(Shard(name=tar.name, path=tar, samples=count, bytes=tar.stat().st_size, **hashes))
    text = "".join(shard.sha256 for shard in shards)
    return Split(
        set_name=set_name,
        split="train",
        samples=samples,
        bytes=sum(shard.bytes for shard in shards),
        failed=0,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        shards=tuple(shards),
        empty={},
    )


def _make_shard(tar: Path, parquet: Path, set_name: str, first: int, count: int, samples: int, videos: int) -> None:
    random = np.random.default_rng(first + len(set_name))
    numbers = np.arange(first, first + count)
    video = numbers * videos // samples  # samples of a video follow each other, as in real shards
    within = numbers - (video * samples + videos - 1) // videos
    length = 120.0 if set_name == "summaries" else 1.0
    start = within * (7.0 if set_name == "clips" else 280.0) + random.random(count)
    verb, noun, other = (
        random.integers(0, len(VERBS), count),
        random.integers(0, NOUNS, count),
        random.integers(0, NOUNS, count),
    )
    letter = schema.SETS[set_name].letter
    uid = [f"{v:08x}-0000-4000-8000-{v:012x}" for v in video.tolist()]
    passes = 1 + within % 2
    texts = [
        f"#C C {VERBS[a]} the cup{b} from the drawer{c}"
        for a, b, c in zip(verb.tolist(), noun.tolist(), other.tolist(), strict=True)
    ]
    rows = {
        "key": [f"{u}_{letter}{p}_{w:06d}" for u, p, w in zip(uid, passes.tolist(), within.tolist(), strict=True)],
        "video_uid": uid,
        "clip_start": start,
        "clip_end": start + length,
        "media_start": start,
        "first_frame": np.zeros(count, np.int64),
        "clip_frames": np.full(count, 30),
        "num_frames": np.full(count, 30),
        "fps": np.full(count, 30.0 / length),
        "width": np.full(count, 384),
        "height": np.full(count, 288),
        "text": texts,
        "narration_source": [f"narration_pass_{p}" for p in passes.tolist()],
        "narration_ind": within,
        "narration_time": start,
        "segment": [f"{u}_{int(s // 60)}" for u, s in zip(uid, start.tolist(), strict=True)],
        "json_offset": np.arange(count) * RECORD,
        "json_size": np.full(count, RECORD),
        **{
            f"{member}_{what}": np.zeros(count, np.int64)
            for member in ("jpg", "mp4", "txt")
            for what in ("offset", "size")
        },
    }
    columns = row_schema(set_name)
    table = pa.table([pa.array(rows[field.name], field.type) for field in columns], schema=columns)
    with tar.open("wb") as handle:
        for a, b, c in zip(verb.tolist(), noun.tolist(), other.tolist(), strict=True):
            record = {"tag_verb": [a], "tag_noun": sorted({b, c}), "filler": "x" * 300}
            handle.write(json.dumps(record).encode().ljust(RECORD))
    pq.write_table(table, parquet, compression="zstd", store_schema=False)


def _make_ledger(root: Path, samples: int, videos: int) -> None:
    if (root / "spans.parquet").exists():
        return
    lost = samples // 20
    uids = [f"{v:08x}-0000-4000-8000-{v:012x}" for v in range(videos)]
    packed = pa.array(["packed"] * (samples + videos), pa.string())
    items = [*(f"item-{n}" for n in range(samples)), *uids]
    empty = pa.array([""] * (samples + videos), pa.string())
    names = ("set", "item", "video_uid", "status", "reason", "detail")
    whole = pa.table(
        [
            pa.array(["clips"] * samples + ["videos"] * videos),
            pa.array(items),
            pa.array([""] * samples + uids),
            packed,
            empty,
            empty,
        ],
        names=names,
    )
    failed = pa.table(
        [
            pa.array(["clips"] * lost),
            pa.array([f"lost-{n}" for n in range(lost)]),
            pa.array([uids[n % videos] for n in range(lost)]),
            pa.array(["failed"] * lost),
            pa.array([REASONS[n % len(REASONS)] for n in range(lost)]),
            pa.array([f"at {n} s" for n in range(lost)]),
        ],
        names=names,
    )
    pq.write_table(pa.concat_tables([whole, failed]), root / "ledger.parquet", compression="zstd")
    spans = [(uid, 600.0 * part, 600.0 * part + 600) for uid in uids for part in range(4)]
    table = pa.table(
        {
            "video_uid": [uid for uid, _, _ in spans],
            "start": [start for _, start, _ in spans],
            "end": [end for _, _, end in spans],
            "status": ["packed"] * len(spans),
            "reason": [""] * len(spans),
        }
    )
    pq.write_table(table, root / "spans.parquet", compression="zstd")


def make_vectors(folder: Path, dataset: Dataset, width: int) -> None:
    """Write random unit vectors of all samples, without reading keys where they are there already."""
    random = np.random.default_rng(0)
    base = random.normal(size=(PER_SHARD, width)).astype(np.float32)
    for set_name, split_name, split in dataset.splits():
        place = folder / set_name / split_name
        place.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(split.shards):
            stem = Path(shard.name).stem
            if (place / f"{stem}.npy").exists():
                continue
            rows = np.roll(base, number, axis=1) + 0.5 * base[::-1]
            rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True))[: shard.samples].astype(np.float16)
            keys = pq.read_table(shard.parquet, columns=["key"])
            index = keys.append_column("first_row", pa.array(np.arange(shard.samples)))
            index = index.append_column("rows", pa.array(np.ones(shard.samples, np.int64)))
            pq.write_table(index, place / f"{stem}.parquet", compression="zstd", store_schema=False)
            np.save(place / f"{stem}.npy", rows)


if __name__ == "__main__":
    sys.exit(main())
