"""Writes the reports of a benchmark's result: report.md with the scores, index.html with clips and charts.

FOLDER/report.md  index.html  media/<key>.jpg  media/<key>.mp4  bokeh-<version>.min.js
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from configs.cli import exit_code_of
from eval.report import media, page
from eval.results import SCORES, Result, Score
from shards.config import SourceConfig
from shards.files import write_bytes, write_json
from shards.html.page import write_page
from shards.schema import SchemaError
from shards.sources import open_source
from shards.stats import ShardError

MARKDOWN, PAGE = "report.md", "index.html"
logger = logging.getLogger(__name__)
_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|&"})


def write_report(
    result: Result,
    folder: str | Path,
    *,
    root: str | Path | None,
    source: SourceConfig | None = None,
    max_bytes: int = 256 << 20,
) -> Path:
    """Write report.md and index.html of a result into `folder`, each atomically; return the page's path.

    Images and videos of the questions shown are copied from the dataset at `root`, a path or URL (`source` says how to
    read a URL), up to `max_bytes` in total. If `root` is None or cannot be read, the page has none and says why.
    """
    folder = Path(folder)
    write_bytes(folder / MARKDOWN, markdown(result).encode(errors="replace"))
    shown = page.choose(result.items)
    clips: dict[str, media.Clip] = {}
    notes = []
    if root is not None:
        try:
            opened = open_source(root, source or SourceConfig())
            splits = [(result.set_name, result.split)]
            clips = media.copy_media(opened, page.keys_shown(shown), folder, splits=splits, max_bytes=max_bytes)
            if opened.dataset.split(*splits[0]).fingerprint != result.fingerprint:
                notes.append("The shards have changed since these scores were computed: clips may differ.")
        except (ShardError, SchemaError, OSError, json.JSONDecodeError) as error:  # a report without clips is useful
            if exit_code_of(error) is None:
                logger.warning("%s has no clips", folder / PAGE, exc_info=error)
            notes.append(f"The clips could not be read: {error}")
    title = f"{result.benchmark}: {result.checkpoint}"
    return write_page(folder / PAGE, title, page.render(result, shown, clips, notes))


def write_overview(results: Sequence[Result], folder: str | Path) -> Path:
    """Write report.md, index.html and scores.json over several results into `folder`; return the page's path.

    Each links to its own report if that is in `folder`/<benchmark>. `scores.json` is the list of their own.
    """
    folder = Path(folder)
    linked = [(r, f"{r.benchmark}/{PAGE}" if (folder / r.benchmark / PAGE).is_file() else "") for r in results]
    parts = ["# Evaluation", ""]
    for result, address in linked:
        name = _escape(result.benchmark)
        parts += [f"## [{name}]({address.replace(PAGE, MARKDOWN)})" if address else f"## {name}", "", _facts(result)]
        parts += ["", _table(result.scores), ""]
    write_json(folder / SCORES, [result.tree() for result in results])
    write_bytes(folder / MARKDOWN, "\n".join(parts).encode(errors="replace"))
    return write_page(folder / PAGE, "Evaluation", page.render_overview(linked))


def markdown(result: Result) -> str:
    """Return a result as Markdown: scores beside published values, what was not scored, and settings."""
    parts = [f"# {_escape(result.benchmark)}", "", _facts(result), "", _table(result.scores), ""]
    if result.missing:
        counts: dict[str, int] = {}
        for entry in result.missing:
            counts[entry.reason] = counts.get(entry.reason, 0) + 1
        parts += [f"Not scored: {len(result.missing):,} items.", ""]
        parts += [f"- {count:,}: {_escape(reason)}" for reason, count in sorted(counts.items(), key=lambda c: -c[1])]
        parts.append("")
    parts += ["## Settings", "", "| setting | value |", "|---|---|"]
    parts += [f"| {_escape(name)} | {_escape(value)} |" for name, value in page.flatten(result.settings)]
    facts = {
        "dataset": result.root,
        "fingerprint": result.fingerprint,
        "checkpoint digest": result.checkpoint_digest,
        "machine": result.machine,
        "seconds": f"{result.seconds:.1f}",
    }
    parts += [f"| {_escape(name)} | {_escape(value)} |" for name, value in page.flatten(facts)]
    return "\n".join(parts) + "\n"


def _facts(result: Result) -> str:
    return (
        f"Checkpoint {_escape(result.checkpoint)} on {_escape(f'{result.set_name}/{result.split}')}, "
        f"{_escape(result.made_at)}. Percent, with bootstrap 95 % intervals."
    )


def _table(scores: Sequence[Score]) -> str:
    names = page.published_names(scores)
    head = [_escape(name) for name in page.score_head(names)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[_escape(score.name), *page.score_cells(score, names)] for score in scores]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(value: object) -> str:
    """Return a text as Markdown that shows it, on one line so that it fits a table's cell."""
    return " ".join(str(value)[:500].split()).translate(_ESCAPED)
