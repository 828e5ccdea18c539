"""Renders a dataset as one self-contained HTML page: key frames with captions, summaries with their timelines."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.dataset import Dataset, Split, read_member
from shards.summary import SplitSummary, human_bytes, human_hours, summarize

_STRIP = 8  # narrations shown as pictures under a summary's timeline
_LANES = 4  # rows of a timeline
_SUMMARIES = 12  # at most, of a split: each is large

# Colours, headings, tiles and tables: what every page of the project shares.
BASE_STYLE = """
:root { color-scheme: light dark; --ground: #f6f5f2; --card: #ffffff; --ink: #1d1d1f; --quiet: #6b6a66;
  --line: #e3e1da; --mark: #b4532a; --track: #eceae3; }
@media (prefers-color-scheme: dark) { :root { --ground: #16171a; --card: #202226; --ink: #ececea; --quiet: #9a9992;
  --line: #33353a; --mark: #e8935f; --track: #2b2d32; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 28px; letter-spacing: -0.02em; margin: 0 0 4px; font-weight: 650; }
h2 { font-size: 19px; letter-spacing: -0.01em; margin: 52px 0 16px; font-weight: 650; }
h2 small { font-weight: 400; font-size: 14px; color: var(--quiet); margin-left: 10px; letter-spacing: 0; }
.quiet { color: var(--quiet); } .mono { font: 12px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 26px 0 8px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.tile b { display: block; font-size: 22px; font-weight: 650; letter-spacing: -0.02em; }
.tile span { color: var(--quiet); font-size: 13px; }
.scroll { overflow-x: auto; margin-top: 20px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; color: var(--quiet); font-size: 13px; padding: 6px 12px; }
td { text-align: right; padding: 8px 12px; border-top: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
"""

_STYLE = (
    BASE_STYLE
    + """
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  display: flex; flex-direction: column; }
figure img { width: 100%; aspect-ratio: 4 / 3; object-fit: cover; display: block; background: var(--track); }
figcaption { padding: 10px 12px 12px; display: flex; flex-direction: column; gap: 6px; flex: 1; }
figcaption p { margin: 0; white-space: pre-line; overflow-wrap: anywhere; }
figcaption .mono { margin-top: auto; color: var(--quiet); overflow-wrap: anywhere; }
.summary { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 18px;
  margin: 0 0 18px; }
.head { display: flex; gap: 18px; align-items: flex-start; }
.head img { width: 200px; aspect-ratio: 4 / 3; object-fit: cover; border-radius: 8px; background: var(--track);
  flex: none; }
.head p { margin: 0 0 6px; font-size: 18px; line-height: 1.35; font-weight: 600; letter-spacing: -0.01em; }
.track { position: relative; background: var(--track); border-radius: 6px; margin: 16px 0 4px;
  overflow: hidden; }
.track i { position: absolute; height: 12px; min-width: 4px; border-radius: 3px; }
.axis { display: flex; justify-content: space-between; color: var(--quiet); }
.strip { display: grid; grid-template-columns: repeat(8, 1fr); gap: 10px; margin-top: 12px; }
.strip div { font-size: 12.5px; line-height: 1.35; overflow-wrap: anywhere; }
.strip img, .strip .none { width: 100%; aspect-ratio: 4 / 3; object-fit: cover; border-radius: 6px; display: flex;
  align-items: center; justify-content: center; background: var(--track); color: var(--quiet); font-size: 11px; }
.strip .dot { display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 5px; }
@media (max-width: 760px) { .strip { grid-template-columns: repeat(4, 1fr); } .head img { width: 120px; } }
"""
)


def render(dataset: Dataset, *, samples: int = 48) -> str:
    """Return the page, with at most `samples` pictures a split, spread evenly over its shards."""
    totals = [(split, summarize(split)) for _, _, split in dataset.splits()]
    body = [_header(dataset, [total for _, total in totals])]
    for split, total in totals:
        is_summary = issubclass(schema.record_class(split.set_name), schema.SummaryRecord)
        shown = _choose(split, min(samples, _SUMMARIES) if is_summary else samples)
        if not shown:
            continue
        note = f"{len(shown):,} of {total.samples:,} samples, spread evenly"
        body.append(f"<h2>{_text(f'{split.set_name}/{split.split}')}<small>{note}</small></h2>")
        if is_summary:
            pictures = _narration_pictures(dataset, shown)
            body += [_summary(sample, pictures) for sample in shown]
        else:
            body.append(f'<div class="grid">{"".join(map(_figure, shown))}</div>')
    # Nothing is fetched and nothing runs, whatever a caption holds.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(dataset.root.resolve().name)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _header(dataset: Dataset, totals: Sequence[SplitSummary]) -> str:
    tiles = (
        (f"{sum(t.samples for t in totals):,}", "samples"),
        (human_hours(sum(t.clip_hours for t in totals)), "in clips"),
        (human_bytes(sum(t.bytes for t in totals)), "in tars"),
        (f"{sum(t.shards for t in totals):,}", "shards"),
        (f"{sum(t.failed for t in totals):,}", "could not be packed"),
    )
    rows = [
        f"<tr><td>{_text(f'{t.set_name}/{t.split}')}</td><td>{t.samples:,}</td><td>{t.videos:,}</td>"
        f"<td>{human_hours(t.clip_hours)}</td><td>{t.clip_seconds[3] if t.clip_seconds else 0:.2f} s</td>"
        f"<td>{t.shards:,}</td><td>{human_bytes(t.bytes)}</td><td>{human_bytes(t.bytes_per_sample)}</td>"
        f'<td class="mono">{t.fingerprint[:12]}</td></tr>'
        for t in totals
    ]
    head = ("split", "samples", "videos", "clips", "median", "shards", "bytes", "a sample", "fingerprint")
    # Settings are recorded with the toolchain, too, under dotted names; they would drown it here.
    made = ", ".join(f"{name} {version}" for name, version in dataset.toolchain.items() if "." not in name)
    return (
        f"<h1>{_text(dataset.root.resolve().name)}</h1>"
        f'<div class="quiet">Made with {_text(made)}</div>'
        f'<div class="tiles">{"".join(f"<div class=tile><b>{b}</b><span>{s}</span></div>" for b, s in tiles)}</div>'
        f'<div class="scroll"><table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _choose(split: Split, count: int) -> list[dict[str, Any]]:
    """Return up to `count` samples of a split, each its record with `key` and the picture as `jpg`."""
    rows = split.rows(["key", "jpg_offset", "jpg_size", "json_offset", "json_size"])
    step = max(len(rows) / count, 1.0)
    wanted = rows.take(pa.array([int(index * step) for index in range(min(count, len(rows)))], pa.int64()))
    paths = {shard.name: shard.path for shard in split.shards}
    chosen = []
    for row in wanted.to_pylist():
        record = json.loads(read_member(paths[row["shard"]], row["json_offset"], row["json_size"]))
        jpg = read_member(paths[row["shard"]], row["jpg_offset"], row["jpg_size"])
        chosen.append({**record, "key": row["key"], "jpg": jpg})
    return chosen


def _narration_pictures(dataset: Dataset, summaries: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return key → picture of the narrations that the summaries' strips show, where `clips` has them."""
    wanted = pa.array([n["key"] for summary in summaries for n in _strip(summary["narrations"])], pa.string())
    pictures = {}
    for split in dataset.sets.get("clips", {}).values():
        paths = {shard.name: shard.path for shard in split.shards}
        rows = split.rows(["key", "jpg_offset", "jpg_size"])
        for row in rows.filter(pc.is_in(rows["key"], wanted)).to_pylist():
            pictures[row["key"]] = read_member(paths[row["shard"]], row["jpg_offset"], row["jpg_size"])
    return pictures


def _strip(narrations: Sequence[Any]) -> list[Any]:
    """Return up to `_STRIP` narrations, spread evenly."""
    step = max(len(narrations) / _STRIP, 1.0)
    return [narrations[int(index * step)] for index in range(min(_STRIP, len(narrations)))]


def _figure(sample: Mapping[str, Any]) -> str:
    length = sample["clip_frames"] / sample["fps"]
    stored = f"{sample['clip_frames']} of {sample['num_frames']} frames"
    where = f"{_clock(sample['clip_start'])} · {length:.2f} s<br>{stored}"
    tags = f"verbs {sample['tag_verb']} nouns {sample['tag_noun']}" if "tag_verb" in sample else ""
    return (
        f"<figure>{_image(sample['jpg'], sample['text'])}<figcaption><p>{_text(sample['text'])}</p>"
        f'<div class="mono">{where}<br>{_text(tags)}<br>{_text(sample["key"])}</div></figcaption></figure>'
    )


def _summary(sample: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    start, end, narrations = sample["clip_start"], sample["clip_end"], sample["narrations"]
    span = max(end - start, 1e-9)
    lanes = _lanes(narrations)
    blocks = []
    for narration, lane in zip(narrations, lanes, strict=True):
        left = min(max((narration["clip_start"] - start) / span, 0.0), 1.0) * 100
        width = min(max((narration["clip_end"] - narration["clip_start"]) / span * 100, 0.0), 100 - left)
        title = f"{_clock(narration['clip_start'])} {narration['text']}"
        place = f"left:{left:.2f}%;width:{width:.2f}%;top:{4 + 16 * lane}px"
        blocks.append(f'<i style="{place};background:{_colour(narration)}" title="{_text(title)}"></i>')
    height = 8 + 16 * (max(lanes, default=0) + 1) - 4
    middle = _clock((start + end) / 2)
    count = f"{len(narrations)} narration{'' if len(narrations) == 1 else 's'}"
    where = f"{_clock(start)}–{_clock(end)} · {count} · {sample['num_frames']} frames at {sample['fps']:g}/s"
    strip = "".join(_strip_item(narration, pictures) for narration in _strip(narrations))
    return (
        f'<section class="summary"><div class="head">{_image(sample["jpg"], sample["text"])}<div>'
        f'<p>{_text(sample["text"])}</p><div class="quiet">{where}</div>'
        f'<div class="mono quiet">{_text(sample["key"])}</div></div></div>'
        f'<div class="track" style="height:{height}px">{"".join(blocks)}</div>'
        f'<div class="axis mono"><span>{_clock(start)}</span><span>{middle}</span><span>{_clock(end)}</span></div>'
        f'<div class="strip">{strip}</div></section>'
    )


def _lanes(narrations: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the row of each narration on the timeline: the first of `_LANES` that is free, so that few overlap."""
    ends = [float("-inf")] * _LANES
    lanes = []
    for narration in narrations:
        free = [lane for lane, end in enumerate(ends) if end <= narration["clip_start"]]
        lane = free[0] if free else ends.index(min(ends))
        ends[lane] = max(ends[lane], narration["clip_end"])
        lanes.append(lane)
    return lanes


def _strip_item(narration: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    jpg = pictures.get(narration["key"])
    picture = _image(jpg, narration["text"]) if jpg is not None else '<span class="none">not packed</span>'
    dot = f'<span class="dot" style="background:{_colour(narration)}"></span>'
    time = f'<span class="mono quiet">{dot}{_clock(narration["clip_start"])}</span>'
    return f"<div>{picture}{time}<br>{_text(narration['text'])}</div>"


def _image(jpg: bytes, text: str) -> str:
    return f'<img loading="lazy" alt="{_text(text)}" src="data:image/jpeg;base64,{base64.b64encode(jpg).decode()}">'


def _colour(narration: Mapping[str, Any]) -> str:
    """Return a colour that stands for what is done: the same verb has the same one."""
    verbs = narration["tag_verb"]
    return f"hsl({verbs[0] * 47 % 360} 55% 52%)" if verbs else "hsl(30 5% 60%)"


def _clock(seconds: float) -> str:
    """Return a time in the video as h:mm:ss or m:ss, to a tenth of a second."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"


def _text(value: str) -> str:
    return escape(value, quote=True)
