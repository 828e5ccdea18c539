"""Writes a benchmark's result for people: report.md beside the published figures, and index.html with its clips.

FOLDER/report.md  index.html  media/<key>.jpg  media/<key>.mp4
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from eval.report import media, page
from eval.results import Result, Score
from shards.config import SourceConfig
from shards.files import write_bytes
from shards.schema import SchemaError
from shards.sources import open_source
from shards.stats import ShardError

MARKDOWN, PAGE = "report.md", "index.html"
_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|&"})


def write_report(
    result: Result,
    folder: str | Path,
    *,
    root: str | Path | None,
    source: SourceConfig | None = None,
    max_bytes: int = 256 << 20,
) -> Path:
    """Write report.md and index.html of a result into `folder`, each whole or not at all; return the page's path.

    Pictures and films of the questions shown are copied from the dataset at `root` (a path or URL; `source` says how
    a URL is read), `max_bytes` in all. Where it is None or cannot be read, the page says so and has none.
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
            clips = media.bring(opened, page.keys_shown(shown), folder, splits=splits, max_bytes=max_bytes)
            if opened.dataset.split(*splits[0]).fingerprint != result.fingerprint:
                notes.append("The shards have changed since these scores were made: clips may be others than scored.")
        except (ShardError, SchemaError, OSError, json.JSONDecodeError) as error:  # scores are worth having without
            notes.append(f"The clips could not be read: {error}")
    write_bytes(folder / PAGE, page.render(result, shown, clips, notes))
    return folder / PAGE


def write_overview(results: Sequence[Result], folder: str | Path) -> Path:
    """Write report.md and index.html over several results into `folder`; return the page's path.

    Each is linked to its own report where that lies in `folder`/<its benchmark's name>.
    """
    folder = Path(folder)
    linked = [(r, f"{r.benchmark}/{PAGE}" if (folder / r.benchmark / PAGE).is_file() else "") for r in results]
    parts = ["# Evaluation", ""]
    for result, address in linked:
        name = _escape(result.benchmark)
        parts += [f"## [{name}]({address.replace(PAGE, MARKDOWN)})" if address else f"## {name}", "", _facts(result)]
        parts += ["", _table(result.scores), ""]
    write_bytes(folder / MARKDOWN, "\n".join(parts).encode(errors="replace"))
    write_bytes(folder / PAGE, page.render_overview(linked))
    return folder / PAGE


def markdown(result: Result) -> str:
    """Return a result as Markdown: a table beside the published figures, what was not scored, the settings."""
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
    head = ["score", "value", "95 %", "scored", "tied", *map(_escape, names)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for score in scores:
        counts = [f"{score.items:,} of {score.of:,}", f"{score.tied:,}"]
        published = [page.number(score.published.get(name)) for name in names]
        lines.append([_escape(score.name), page.number(score.value), page.interval(score), *counts, *published])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(value: object) -> str:
    """Return a text as Markdown that shows it, in one line of a table."""
    return " ".join(str(value)[:500].split()).translate(_ESCAPED)
