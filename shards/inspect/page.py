"""Shows a dataset as one self-contained HTML file: key frames with captions, summaries with their timelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.dataset import Dataset, Shard, Split, read_member
from shards.html.elements import Html, absent, clock, heading, image, notice, table, tag, tile, tiles
from shards.html.page import document
from shards.inspect.tables import read_record
from shards.stats import ShardError
from shards.summary import SplitSummary, human_bytes, human_hours, summarize

_STRIP = 8  # narrations shown as images below a summary's timeline
_LANES = 4  # rows of a timeline
_MAX_JPG = 4 << 20  # bytes of an image in the page
_SUMMARIES = 12  # most summaries shown of a split: each takes much room


def render(dataset: Dataset, *, samples: int = 48) -> str:
    """Return the page with up to `samples` images per split, spread evenly over its shards; it runs no script."""
    totals = [(split, summarize(split)) for _, _, split in dataset.splits()]
    body: list[object] = [_header(dataset, [total for _, total in totals])]
    for split, total in totals:
        is_summary = issubclass(schema.record_class(split.set_name), schema.SummaryRecord)
        shown = _choose(split, min(samples, _SUMMARIES) if is_summary else samples)
        if not shown:
            continue
        note = f"{len(shown):,} of {total.samples:,} samples, spread evenly"
        body.append(heading(f"{split.set_name}/{split.split}", note))
        if is_summary:
            images = _narration_images(dataset, shown)
            body += [_summary(sample, images) for sample in shown]
        else:
            body.append(tag("div", [_sample(sample) for sample in shown], class_="grid"))
    return document(dataset.root.resolve().name, body).decode()


def _header(dataset: Dataset, totals: Sequence[SplitSummary]) -> list[Html]:
    """Return name, toolchain, totals, and a table of the splits."""
    head = ("split", "samples", "videos", "clips", "median clip", "shards", "size", "per sample", "fingerprint")
    rows = [
        (
            f"{t.set_name}/{t.split}",
            f"{t.samples:,}",
            f"{t.videos:,}",
            human_hours(t.clip_hours),
            f"{t.clip_seconds[3] if t.clip_seconds else 0:.2f} s",
            f"{t.shards:,}",
            human_bytes(t.bytes),
            human_bytes(t.bytes_per_sample),
            tag("span", t.fingerprint[:12], class_="mono"),
        )
        for t in totals
    ]
    # The toolchain also holds settings, under dotted names; they would drown the programs here.
    programs = ", ".join(f"{name} {version}" for name, version in dataset.toolchain.items() if "." not in name)
    sums = (
        tile(f"{sum(t.samples for t in totals):,}", "samples"),
        tile(human_hours(sum(t.clip_hours for t in totals)), "of clips"),
        tile(human_bytes(sum(t.bytes for t in totals)), "in tars"),
        tile(f"{sum(t.shards for t in totals):,}", "shards"),
        tile(f"{sum(t.failed for t in totals):,}", "samples failed"),
    )
    return [
        tag("h1", dataset.root.resolve().name),
        tag("div", f"Built with {programs}", class_="quiet"),
        tiles(sums),
        table(head, rows),
    ]


def _choose(split: Split, count: int) -> list[dict[str, Any]]:
    """Return up to `count` samples of a split: its record with `key` and `jpg`, or `key` and the `problem` with it."""
    rows = split.rows(["key", "jpg_offset", "jpg_size", "json_offset", "json_size"])
    step = max(len(rows) / count, 1.0)
    wanted = rows.take(pa.array([int(index * step) for index in range(min(count, len(rows)))], pa.int64()))
    shards = {shard.name: shard for shard in split.shards}
    chosen: list[dict[str, Any]] = []
    for row in wanted.to_pylist():
        shard = shards[row["shard"]]
        try:
            record = read_record(split.set_name, shard, row)
            chosen.append({**record, "key": row["key"], "jpg": _jpg(shard, row)})
        except ShardError as error:
            chosen.append({"key": row["key"], "problem": str(error)})
    return chosen


def _jpg(shard: Shard, row: Mapping[str, Any]) -> bytes:
    """Return a sample's image; raise `ShardError` if it cannot be read, or is too large for a page."""
    if row["jpg_size"] > _MAX_JPG:
        raise ShardError(f"{shard.name}: an image of {row['jpg_size']} bytes is too large for a page")
    try:
        return read_member(shard.path, row["jpg_offset"], row["jpg_size"])
    except OSError as error:
        raise ShardError(f"{shard.name}: {error.strerror or error}") from None


def _narration_images(dataset: Dataset, summaries: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return key → JPEG of the narrations in the summaries' strips, as far as `clips` has them."""
    listed = [summary["narrations"] for summary in summaries if "problem" not in summary]
    wanted = pa.array([narration["key"] for narrations in listed for narration in _strip(narrations)], pa.string())
    images = {}
    for split in dataset.sets.get("clips", {}).values():
        shards = {shard.name: shard for shard in split.shards}
        rows = split.rows(["key", "jpg_offset", "jpg_size"])
        for row in rows.filter(pc.is_in(rows["key"], wanted)).to_pylist():
            with suppress(ShardError):  # then it is shown as absent
                images[row["key"]] = _jpg(shards[row["shard"]], row)
    return images


def _strip(narrations: Sequence[Any]) -> list[Any]:
    """Return up to `_STRIP` narrations, spread evenly."""
    step = max(len(narrations) / _STRIP, 1.0)
    return [narrations[int(index * step)] for index in range(min(_STRIP, len(narrations)))]


def _sample(sample: Mapping[str, Any]) -> Html:
    if "problem" in sample:
        return tag(
            "figure", absent("damaged"), tag("figcaption", sample["key"], ": ", sample["problem"], class_="words")
        )
    length = sample["clip_frames"] / sample["fps"]
    facts = [
        f"{clock(sample['clip_start'])} · {length:.2f} s",
        f"{sample['clip_frames']} of {sample['num_frames']} frames",
        f"verbs {sample['tag_verb']} nouns {sample['tag_noun']}" if "tag_verb" in sample else "",
        sample["key"],
    ]
    caption = tag(
        "figcaption",
        tag("p", sample["text"], class_="words"),
        tag("div", [tag("div", fact) for fact in facts], class_="mono"),
    )
    return tag("figure", image(sample["jpg"], sample["text"]), caption)


def _summary(sample: Mapping[str, Any], images: Mapping[str, bytes]) -> Html:
    """Return a summary: its image and text, its narrations on a timeline, and some of them as images."""
    if "problem" in sample:
        return tag("section", notice(sample["key"], ": ", sample["problem"]), class_="item")
    start, end, narrations = sample["clip_start"], sample["clip_end"], sample["narrations"]
    count = f"{len(narrations)} narration{'' if len(narrations) == 1 else 's'}"
    where = f"{clock(start)}–{clock(end)} · {count} · {sample['num_frames']} frames at {sample['fps']:g}/s"
    header = tag(
        "header",
        tag("div", image(sample["jpg"], sample["text"]), class_="lead"),
        tag(
            "div",
            tag("p", sample["text"], class_="title words"),
            tag("div", where, class_="quiet"),
            tag("div", sample["key"], class_="mono quiet"),
        ),
    )
    ends = [tag("span", clock(time)) for time in (start, (start + end) / 2, end)]
    strip = [_strip_item(narration, images) for narration in _strip(narrations)]
    return tag(
        "section",
        header,
        _timeline(narrations, start, end),
        tag("div", ends, class_="ends mono"),
        tag("div", strip, class_="strip"),
        class_="item",
    )


def _timeline(narrations: Sequence[Mapping[str, Any]], start: float, end: float) -> Html:
    """Return narrations as blocks along a summary's time, in rows so that few overlap."""
    span, lanes, blocks = max(end - start, 1e-9), _lanes(narrations), []
    for narration, lane in zip(narrations, lanes, strict=True):
        left = min(max((narration["clip_start"] - start) / span, 0.0), 1.0) * 100
        width = min(max((narration["clip_end"] - narration["clip_start"]) / span * 100, 0.0), 100 - left)
        place = f"left:{left:.2f}%;width:{width:.2f}%;top:{4 + 16 * lane}px;background:{_colour(narration)}"
        blocks.append(tag("i", style=place, title=f"{clock(narration['clip_start'])} {narration['text']}"))
    height = 4 + 16 * (max(lanes, default=0) + 1)
    return tag("div", blocks, class_="timeline", style=f"height:{height}px")


def _lanes(narrations: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the timeline row of each narration: the first free one, or else the one that is free soonest."""
    ends = [float("-inf")] * _LANES
    lanes = []
    for narration in narrations:
        free = [lane for lane, end in enumerate(ends) if end <= narration["clip_start"]]
        lane = free[0] if free else ends.index(min(ends))
        ends[lane] = max(ends[lane], narration["clip_end"])
        lanes.append(lane)
    return lanes


def _strip_item(narration: Mapping[str, Any], images: Mapping[str, bytes]) -> Html:
    jpg = images.get(narration["key"])
    dot = tag("span", class_="dot", style=f"background:{_colour(narration)}")
    return tag(
        "div",
        image(jpg, narration["text"]) if jpg is not None else absent("not in the shards"),
        tag("div", dot, clock(narration["clip_start"]), class_="mono quiet"),
        tag("div", narration["text"], class_="words"),
    )


def _colour(narration: Mapping[str, Any]) -> str:
    """Return a colour for what is done: one per verb."""
    verbs = narration["tag_verb"]
    return f"hsl({verbs[0] * 47 % 360} 55% 52%)" if verbs else "hsl(30 5% 60%)"
