# PYTHON_ARGCOMPLETE_OK
"""Finds the clips and summaries nearest to a text, or to one of themselves, and shows them as a page.

    python eval/search.py ROOT --checkpoint C "a person washes a carrot"
    python eval/search.py ROOT --checkpoint C --key KEY [--sets clips/val,summaries] [--top 24]

Similarity is the cosine of embeddings; the windows of long samples are aggregated. The first search of a split embeds
it and keeps a vector of each sample; later ones only read these. `data.features=NAME` takes the embeddings from a
feature set. It may run on several ranks.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.cli import Command, ExitCode, Request
from eval.command import on_all_ranks
from eval.config import EvalConfig
from eval.nearest import Query, Result, Searcher, choose_splits, run_search
from eval.report.media import Clip, Place, copy_media
from eval.report.search_page import Narrations, render, title
from eval.run import open_configured
from hiervl_train.distributed import DistributedContext
from shards.html.elements import clock
from shards.html.page import write_page
from shards.schema import SummaryRecord, from_json, record_class
from shards.search.catalog import Catalog, Found
from shards.sources import Source, open_source
from shards.stats import parse_json
from shards.summary import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("python eval/search.py", __doc__, EvalConfig)
    command.positional("root", key="data.root", help="the dataset: a folder or URL")
    command.positional("text", required=False, help="what to search for")
    command.flag("--key", default="", help="search for samples that are similar to this clip or summary")
    command.flag("--checkpoint", key="checkpoint", metavar="PATH", help="a run, one of its checkpoints, or a .pth")
    command.flag("--sets", default="", metavar="SETS", help="as clips,summaries/val (default: both levels)")
    command.flag("--top", type=int, default=12, metavar="N", help="results per set (default: %(default)s)")
    command.flag("--output", type=Path, metavar="FOLDER", help="of the page (default: a folder in runs/search)")
    command.resumes("Finished embeddings are kept: run the same command again to resume.")

    def work(request: Request[EvalConfig]) -> int:
        flags = request.flags
        if bool((flags.text or "").strip()) == bool(flags.key):
            command.error("expected either a text or --key KEY")
        if flags.top < 1:
            command.error(f"--top {flags.top}: must be at least 1")

        def run(ranks: DistributedContext) -> int:
            search(flags, request.config, ranks)
            return ExitCode.OK

        return on_all_ranks(run, request.config.distributed)

    return command.run(work, argv)


def search(flags: argparse.Namespace, config: EvalConfig, ranks: DistributedContext) -> Path | None:
    """Search, write the page and print the table; return the page's path on the first rank, None on the others."""
    source = open_source(config.data.root, config.data.source)
    splits = choose_splits(source.dataset, flags.sets)
    query = Query(text=flags.text or "", key=flags.key)
    opened = open_configured(config, ranks)
    with tempfile.TemporaryDirectory(prefix="vectors-") as temporary:
        searcher = Searcher(
            opened=opened,
            source=source,
            settings=config.embedding(opened),
            ranks=ranks,
            cache=config.cache or Path(temporary),
            keeps=config.cache is not None,
        )
        found = run_search(searcher, splits, query, flags.top)
    if found is None:
        return None
    result, catalog = found
    folder = flags.output or _folder(query, opened.digest, config.data.root, splits)
    page = _write(source, catalog, query, result, folder, checkpoint=str(opened.path))
    console = Console()
    _print(console, result)
    if config.cache is not None:
        console.print(f"vectors: {searcher.folder}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {page}", highlight=False, markup=False, soft_wrap=True)
    return page


def _write(source: Source, catalog: Catalog, query: Query, result: Result, folder: Path, *, checkpoint: str) -> Path:
    """Write the page of a search with the media that it shows; return its path."""
    hits = [moment.sample for moments in result.moments.values() for moment in moments]
    shown = [*([result.own] if result.own is not None else []), *hits]
    narrations = {sample.key: _narrations(source, catalog, sample) for sample in hits if _is_summary(sample)}
    places = [_place(source, catalog, sample) for sample in shown]
    clips: dict[str, Clip] = copy_media(source, [sample.key for sample in shown], folder, places=places)
    page = folder / "index.html"
    body = render(query, result, clips, narrations, checkpoint=checkpoint)
    write_page(page, title(query), body)
    return page


def _place(source: Source, catalog: Catalog, sample: Found) -> Place:
    name = catalog.shard_of(sample)
    split = source.dataset.split(sample.set_name, sample.split)
    shard = next(shard for shard in split.shards if shard.name == name)
    offsets = {
        f"{member}_{what}": getattr(sample, f"{member}_{what}")
        for member in ("jpg", "json", "mp4")
        for what in ("offset", "size")
    }
    return Place(key=sample.key, set_name=sample.set_name, split=sample.split, shard=shard, offsets=offsets)


def _is_summary(sample: Found) -> bool:
    return issubclass(record_class(sample.set_name), SummaryRecord)


def _narrations(source: Source, catalog: Catalog, sample: Found) -> Narrations:
    """Return time (s in the source) and text of a summary's narrations."""
    place = _place(source, catalog, sample)
    value = parse_json(source.read(place.shard, sample.json_offset, sample.json_size))
    record = from_json(sample.set_name, value)
    listed = record.narrations if isinstance(record, SummaryRecord) else []
    return [(narration.clip_start, narration.text) for narration in listed]


def _folder(query: Query, digest: str, root: str, splits: Sequence[tuple[str, str]]) -> Path:
    """Return the default folder of a search's page, named by the query; different searches get different folders."""
    wanted = query.text or query.key
    identity = repr((wanted, bool(query.text), digest, root, sorted(splits)))
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower())[:40].strip("-")
    return Path("runs", "search", f"{name or 'query'}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")


def _print(console: Console, result: Result) -> None:
    for set_name, moments in result.moments.items():
        table = Table(title=set_name, title_justify="left", title_style="bold", header_style="dim", box=None)
        table.add_column("", justify="right", no_wrap=True, min_width=2)
        table.add_column("cosine", justify="right", no_wrap=True)
        table.add_column("split", no_wrap=True)
        table.add_column("text, video and key", overflow="fold")
        for rank, moment in enumerate(moments, 1):
            sample = moment.sample
            texts = [sample.text, *(other.text for other in moment.others)]
            words = " / ".join(" ".join(text.split())[:200] for text in texts)
            where = f"{sample.video_uid} {clock(sample.start)}"
            lines = f"{escape(printable(words))}\n[dim]{escape(printable(where))}  {escape(printable(sample.key))}[/]"
            table.add_row(str(rank), f"{moment.score:.3f}", sample.split, lines)
        console.print(table, "")


if __name__ == "__main__":
    sys.exit(main())
