"""Finds the clips and summaries nearest to a text, or to one of themselves, and shows them as a page.

    python eval/search.py ROOT --checkpoint C "a person washes a carrot"
    python eval/search.py ROOT --checkpoint C --key KEY [--sets clips/val,summaries] [--top 24]

Similarity is the cosine of the embeddings; a long clip's is the aggregated one of its windows. Embeddings are kept, so
that only the first search is slow; it may be made by several ranks. Shapes in names: N samples, D width of the shared
space.
"""

from __future__ import annotations

import argparse
import bisect
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from configs.loading import ConfigError
from eval.benchmark import OK, guarded, open_for, pool
from eval.config import EvalConfig, load_eval
from eval.embed import EmbedSettings, embed_split, embed_texts
from eval.report import media
from eval.report.document import document, place, player, text
from eval.report.media import Clip
from hiervl_train.checkpoint.open import OpenedCheckpoint
from hiervl_train.distributed import DistributedContext
from shards.dataset import Dataset, read_rows
from shards.files import write_bytes
from shards.schema import set_spec
from shards.sources import Source, open_source

_LOOKED_AT = 2000  # keys around the place of an unknown one, among which the likest is looked for


class SearchError(ConfigError):
    """A search that cannot be made; the message says what is unknown and what there is instead."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedSet:
    """A split that is searched: the embeddings of its samples, of length 1."""

    set_name: str
    split: str
    keys: list[str]
    vectors_ND: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Searcher:
    """A checkpoint and a dataset, ready to embed; its methods are called by all ranks at once."""

    opened: OpenedCheckpoint
    source: Source
    settings: EmbedSettings
    ranks: DistributedContext
    cache: Path | None

    def part(self, set_name: str, split: str, *, keys: Sequence[str] | None = None) -> EmbeddedSet | None:
        """Return the embeddings of a split's samples, or of those with `keys`, on the first rank.

        Those of long samples are aggregated. What cannot be embedded is left out.
        """
        with Progress(console=Console(stderr=True), transient=True, disable=not self.ranks.is_main) as bar:
            task = bar.add_task(f"{set_name}/{split}", total=None)
            found = embed_split(
                self.opened.model,
                self.source,
                set_name,
                split,
                self.settings,
                ranks=self.ranks,
                keys=keys,
                cache=self.cache if keys is None else None,
                digest=self.opened.digest,
                progress=lambda done, of: bar.update(task, completed=done, total=of),
            )
        if found is None:
            return None
        vectors_ND = found.vectors
        if set_spec(set_name).is_long:
            vectors_ND = pool(self.opened.model, vectors_ND, self.settings, self.ranks)
        return EmbeddedSet(set_name=set_name, split=split, keys=found.keys, vectors_ND=_unit(vectors_ND))

    def vector(self, query: Query, parts: Mapping[tuple[str, str], EmbeddedSet | None]) -> np.ndarray | None:
        """Return the embedding (D,) of what was asked for, on the first rank."""
        if query.text:
            texts = embed_texts(self.opened.model, self.opened.tokenizer, [query.text], self.settings, ranks=self.ranks)
            return None if texts is None else texts.of([query.text])[0]
        home = find_split(self.source, query.key)
        part = parts[home] if home in parts else self.part(*home, keys=[query.key])
        if part is None:
            return None
        if query.key not in part.keys:
            raise SearchError(f"--key: {query.key} could not be embedded, or its video is withdrawn")
        return part.vectors_ND[part.keys.index(query.key)]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A sample found, and how near it lies: the cosine of its embedding and the query's."""

    key: str
    set_name: str
    split: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Query:
    """What was asked for: a text, or the sample of a key."""

    text: str = ""
    key: str = ""


def nearest(
    query_D: np.ndarray, parts: Sequence[EmbeddedSet], top: int, *, leave_out: str = ""
) -> dict[str, list[Hit]]:
    """Return set → its `top` samples nearest to the query, nearest first; equal ones by key.

    The key `leave_out` is not among them. Splits of one set are ranked together. Parts without samples give nothing.
    """
    query_D = _unit(query_D[None])[0]
    found: dict[str, list[Hit]] = {}
    for part in parts:
        scores_N = part.vectors_ND @ query_D
        # One more than asked for, as one may be left out; ties at the edge are all kept until keys are compared.
        edge = np.partition(scores_N, -top - 1)[-top - 1] if len(scores_N) > top + 1 else -np.inf
        found.setdefault(part.set_name, []).extend(
            Hit(key=part.keys[index], set_name=part.set_name, split=part.split, score=float(scores_N[index]))
            for index in np.flatnonzero(scores_N >= edge)
            if part.keys[index] != leave_out
        )
    return {name: sorted(hits, key=lambda hit: (-hit.score, hit.key))[:top] for name, hits in found.items()}


def choose_splits(dataset: Dataset, wanted: str) -> list[tuple[str, str]]:
    """Return the splits that `clips,summaries/val` names, in the order of the contract; "" names clips and summaries.

    Raises `SearchError` on a name that the dataset does not have.
    """
    there = [(set_name, split) for set_name, split, _ in dataset.splits()]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        return [pair for pair in there if not set_spec(pair[0]).is_benchmark] or there
    for name in names:
        if not any(name in (set_name, f"{set_name}/{split}") for set_name, split in there):
            known = ", ".join(f"{set_name}/{split}" for set_name, split in there)
            raise SearchError(f"--sets: {dataset.root} has no {name!r}; it has {known}")
    return [(set_name, split) for set_name, split in there if {set_name, f"{set_name}/{split}"} & set(names)]


def find_split(source: Source, key: str) -> tuple[str, str]:
    """Return the set and the split of a key; raise `SearchError` naming the known key that looks most like it."""
    near = []
    for set_name, split_name, split in source.dataset.splits():
        for shard in split.shards:
            keys = read_rows(source.parquet(shard), ["key"])["key"].to_pylist()
            if key in keys:
                return set_name, split_name
            near += [found] if (found := likest(key, keys)) is not None else []
    found = likest(key, near)
    hint = f"; the likest is {found}" if found is not None else ": it is empty"
    raise SearchError(f"--key: {source.dataset.root} has no sample {key!r}{hint}")


def likest(key: str, keys: Sequence[str]) -> str | None:
    """Return the known key that most looks like an unknown one: of millions, those around its place in order."""
    ranked = sorted(keys)
    middle = bisect.bisect(ranked, key)
    around = ranked[max(0, middle - _LOOKED_AT // 2) : middle + _LOOKED_AT // 2]

    def likeness(known: str) -> tuple[float, int]:
        matcher = difflib.SequenceMatcher(None, key, known, autojunk=False)
        start = matcher.get_matching_blocks()[0]
        return matcher.ratio(), start.size if start.a == start.b == 0 else 0  # alike, and alike from the start

    return max(around, key=likeness, default=None)


def render(
    query: Query, hits: Mapping[str, Sequence[Hit]], clips: Mapping[str, Clip], *, made_of: str, searched: int
) -> bytes:
    """Return the page of a search: the query, and set by set what lies nearest, with players."""
    asked = query.text or f"what is like {query.key}"
    own = clips.get(query.key)
    film = f'<div class="query">{player(own)}<p class="words" dir="auto">{text(own.text)}</p></div>' if own else ""
    facts = f"{text(made_of)}, {searched:,} samples searched"
    parts = [f'<h1 dir="auto">{text(asked)}</h1><div class="quiet">{facts}</div>{film}']
    for set_name, found in hits.items():
        figures = "".join(_figure(rank, hit, clips.get(hit.key)) for rank, hit in enumerate(found, 1))
        parts.append(f"<h2>Nearest in {text(set_name)}<small>by cosine</small></h2>")
        parts.append(f'<section class="question"><header></header><div class="options">{figures}</div></section>')
    if not hits:
        parts.append('<p class="notice">Nothing was searched: the dataset has no samples in these sets.</p>')
    return document(f"Search: {asked}", "".join(parts))


def _figure(rank: int, hit: Hit, clip: Clip | None) -> str:
    where = f"{text(place(clip))}<br>" if clip else ""
    return (
        f'<figure>{player(clip, "clip not shown")}<figcaption><div><span class="badge">{rank}</span>'
        f'{hit.score:.3f} <span class="quiet">{text(hit.split)}</span></div>'
        f'<p class="words" dir="auto">{text(clip.text if clip else "")}</p>'
        f'<div class="mono">{where}{text(hit.key)}</div></figcaption></figure>'
    )


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float32; rows of length 0 stay."""
    lengths_N1 = np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    return (vectors_ND / np.maximum(lengths_N1, 1e-12)).astype(np.float32)


def _folder(query: Query, digest: str, root: str, splits: Sequence[tuple[str, str]]) -> Path:
    """Return where a search's page goes unless told: named by what was asked, one folder for each search."""
    asked = query.text or query.key
    identity = repr((asked, bool(query.text), digest, root, sorted(splits)))
    name = re.sub(r"[^a-z0-9]+", "-", asked.lower())[:40].strip("-")
    return Path("runs", "search", f"{name or 'query'}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")


def _print(hits: Mapping[str, Sequence[Hit]], clips: Mapping[str, Clip], page: Path) -> None:
    console = Console()
    for set_name, found in hits.items():
        table = Table(title=set_name, title_justify="left", title_style="bold", header_style="dim", box=None)
        table.add_column("", justify="right", no_wrap=True, min_width=2)
        table.add_column("cosine", justify="right", no_wrap=True)
        table.add_column("split", no_wrap=True)
        table.add_column("text and key", overflow="fold")
        for rank, hit in enumerate(found, 1):
            words = " ".join(clips[hit.key].text.split())[:200] if hit.key in clips else ""
            table.add_row(str(rank), f"{hit.score:.3f}", hit.split, f"{escape(words)}\n[dim]{hit.key}[/]")
        console.print(table, "")
    console.print(f"wrote {page}", highlight=False, markup=False, soft_wrap=True)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python eval/search.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", help="the dataset's folder or URL")
    parser.add_argument("text", nargs="?", default="", help="what to look for")
    parser.add_argument("--key", default="", help="look for what is like this clip or summary")
    parser.add_argument("--checkpoint", required=True, help="ours (a folder), a run's folder, or a released .pth")
    parser.add_argument("--sets", default="", metavar="SETS", help="as clips,summaries/val (default: both levels)")
    parser.add_argument("--top", type=int, default=12, help="how many of each set (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the page (default: one below runs/search)")
    parser.add_argument("--config", type=Path, help="YAML of EvalConfig, as configs/eval/hiervl_sa.yaml")
    parser.add_argument(
        "-o",
        dest="overrides",
        action="append",
        default=[],
        metavar="key=value",
        help="as -o tokenizer=PATH -o workers=8",
    )
    options = parser.parse_intermixed_args(arguments)
    if bool(options.text.strip()) == bool(options.key):
        parser.error("either a text or --key KEY is expected")
    if options.top < 1:
        parser.error(f"--top {options.top}: at least 1 is expected")
    return options


def search(options: argparse.Namespace, config: EvalConfig, here: DistributedContext) -> Path | None:
    """Embed what is not embedded yet, rank, write the page and print the table; return its path on the first rank."""
    source = open_source(config.shards, config.source)
    splits = choose_splits(source.dataset, options.sets)
    query = Query(text=options.text, key=options.key)
    if query.key:
        find_split(source, query.key)  # an unknown one is named before anything is embedded
    opened = open_for(config, here)
    searcher = Searcher(opened=opened, source=source, settings=config.embedding(opened), ranks=here, cache=config.cache)
    parts = {pair: searcher.part(*pair) for pair in splits}
    query_D = searcher.vector(query, parts)
    here_parts = [part for part in parts.values() if part is not None]
    if query_D is None:
        return None
    hits = nearest(query_D, here_parts, options.top, leave_out=query.key)
    folder = options.output or _folder(query, opened.digest, config.shards, splits)
    shown = [query.key] * bool(query.key) + [hit.key for found in hits.values() for hit in found]
    clips = media.bring(source, shown, folder)
    page = folder / "index.html"
    searched = sum(len(part.keys) for part in here_parts)
    write_bytes(page, render(query, hits, clips, made_of=str(opened.path), searched=searched))
    _print(hits, clips, page)
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, as those of the benchmarks: 2 where the search cannot be made."""
    options = _arguments(arguments)
    named = [f"checkpoint={json.dumps(options.checkpoint)}", f"shards={json.dumps(options.root)}"]

    def work(here: DistributedContext, _: Console) -> int:
        search(options, read(), here)
        return OK

    def read() -> EvalConfig:
        return load_eval("search", options.config, [*named, *options.overrides])

    return guarded(work, read)


if __name__ == "__main__":
    sys.exit(main())
