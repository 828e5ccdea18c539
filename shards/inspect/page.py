"""Writes a small static page of a dataset: players with captions, summaries with their timelines.

Images and videos lie in a folder beside the page, `<name of the page>.media`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.dataset import Dataset, Shard, Split, read_member
from shards.files import write_bytes
from shards.html.elements import Html, absent, clock, heading, image, notice, player, table, tag, tile, tiles
from shards.html.page import write_page
from shards.inspect.tables import read_record
from shards.keys import is_key
from shards.stats import ShardError
from shards.summary import SplitSummary, human_bytes, human_hours, summarize

_OFFSETS = [f"{member}_{what}" for member in ("jpg", "json", "mp4") for what in ("offset", "size")]
_STRIP = 8  # narrations shown as images below a summary's timeline
_LANES = 4  # rows of a timeline
_MAX_JPG = 4 << 20  # bytes of an image
_MAX_VIDEOS = 64 << 20  # bytes of all videos of a page; of further samples only the image is shown
_SUMMARIES = 12  # most summaries shown of a split: each takes much room


class _Media:
    """The images and videos of a page, copied into the folder beside it."""

    def __init__(self, page: Path) -> None:
        self._folder = page.with_name(f"{page.name}.media")
        self._left = _MAX_VIDEOS

    def image(self, shard: Shard, row: Mapping[str, Any]) -> str:
        """Copy a sample's image; return its path from the page. Raises `ShardError` if it cannot be read."""
        if not is_key(row["key"]):
            raise ShardError(f"{shard.name}: {row['key']!r} is no key: run python -m shards.verify")
        if row["jpg_size"] > _MAX_JPG:
            raise ShardError(f"{shard.name}: an image of {row['jpg_size']} bytes is too large for a page")
        return self._copy(shard, row, "jpg")

    def video(self, shard: Shard, row: Mapping[str, Any]) -> str | None:
        """Copy a sample's video; return its path from the page, None where the page has enough of them."""
        if row["mp4_size"] > self._left:
            return None
        self._left -= row["mp4_size"]
        return self._copy(shard, row, "mp4")

    def _copy(self, shard: Shard, row: Mapping[str, Any], kind: str) -> str:
        name = f"{row['key']}.{kind}"
        try:
            write_bytes(self._folder / name, read_member(shard.path, row[f"{kind}_offset"], row[f"{kind}_size"]))
        except FileNotFoundError as error:
            raise ShardError(f"{shard.name}: {error.strerror or error}") from None
        return f"{quote(self._folder.name)}/{name}"


def write(dataset: Dataset, path: Path, *, samples: int = 48) -> Path:
    """Write the page with up to `samples` samples per split, spread evenly over its shards; return its path.

    Samples of withdrawn videos are left out.
    """
    media = _Media(path)
    totals = [(split, summarize(split)) for _, _, split in dataset.splits()]
    body: list[object] = [_header(dataset, [total for _, total in totals])]
    for split, total in totals:
        is_summary = issubclass(schema.record_class(split.set_name), schema.SummaryRecord)
        shown = _choose(dataset, split, min(samples, _SUMMARIES) if is_summary else samples, media)
        if not shown:
            continue
        note = f"{len(shown):,} of {total.samples:,} samples, spread evenly"
        body.append(heading(f"{split.set_name}/{split.split}", note))
        if is_summary:
            images = _narration_images(dataset, shown, media)
            body += [_summary(sample, images) for sample in shown]
        else:
            body.append(tag("div", [_sample(sample) for sample in shown], class_="grid"))
    return write_page(path, dataset.root.resolve().name, body)


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


def _choose(dataset: Dataset, split: Split, count: int, media: _Media) -> list[dict[str, Any]]:
    """Return up to `count` samples of a split: record with `key` and media, or `key` and the `problem` with it."""
    rows = split.rows(["key", "video_uid", *_OFFSETS])
    rows = rows.filter(pc.invert(pc.is_in(rows["video_uid"], pa.array(sorted(dataset.denylist), pa.string()))))
    step = max(len(rows) / count, 1.0)
    wanted = rows.take(pa.array([int(index * step) for index in range(min(count, len(rows)))], pa.int64()))
    shards = {shard.name: shard for shard in split.shards}
    chosen: list[dict[str, Any]] = []
    for row in wanted.to_pylist():
        shard = shards[row["shard"]]
        try:
            record = read_record(split.set_name, shard, row)
            files = {"jpg": media.image(shard, row), "mp4": media.video(shard, row)}
            chosen.append({**record, "key": row["key"], **files})
        except ShardError as error:
            chosen.append({"key": row["key"], "problem": str(error)})
    return chosen


def _show(sample: Mapping[str, Any]) -> Html:
    """Return a player, or the image where the page has enough videos."""
    if sample["mp4"] is None:
        return image(sample["jpg"], sample["text"])
    begin, fps = sample["first_frame"] / sample["fps"], sample["fps"]
    end = begin + sample["clip_frames"] / fps
    return player(sample["mp4"], poster=sample["jpg"], label=sample["text"], begin=begin, end=end, fps=fps)


def _narration_images(dataset: Dataset, summaries: Sequence[Mapping[str, Any]], media: _Media) -> dict[str, str]:
    """Return key → image of the narrations in the summaries' strips, as far as `clips` has them."""
    listed = [summary["narrations"] for summary in summaries if "problem" not in summary]
    wanted = pa.array([narration["key"] for narrations in listed for narration in _strip(narrations)], pa.string())
    images = {}
    for split in dataset.sets.get("clips", {}).values():
        shards = {shard.name: shard for shard in split.shards}
        rows = split.rows(["key", "jpg_offset", "jpg_size"])
        for row in rows.filter(pc.is_in(rows["key"], wanted)).to_pylist():
            with suppress(ShardError):  # then it is shown as absent
                images[row["key"]] = media.image(shards[row["shard"]], row)
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
    return tag("figure", _show(sample), caption)


def _summary(sample: Mapping[str, Any], images: Mapping[str, str]) -> Html:
    """Return a summary: its image and text, its narrations on a timeline, and some of them as images."""
    if "problem" in sample:
        return tag("section", notice(sample["key"], ": ", sample["problem"]), class_="item")
    start, end, narrations = sample["clip_start"], sample["clip_end"], sample["narrations"]
    count = f"{len(narrations)} narration{'' if len(narrations) == 1 else 's'}"
    where = f"{clock(start)}–{clock(end)} · {count} · {sample['num_frames']} frames at {sample['fps']:g}/s"
    header = tag(
        "header",
        tag("div", _show(sample), class_="lead"),
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


def _strip_item(narration: Mapping[str, Any], images: Mapping[str, str]) -> Html:
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
