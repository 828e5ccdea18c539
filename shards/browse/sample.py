"""One sample: its player, its key frame, its whole record, its narrations, and what surrounds and resembles it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shards import schema
from shards.browse.finding import near_samples
from shards.browse.frame import (
    Page,
    Query,
    Site,
    card,
    is_long,
    link,
    media,
    read_record,
    show,
    thumbnail,
    video_link,
    when,
)
from shards.html.elements import Html, absent, clock, facts, folded, heading, image, notice, tag
from shards.search.catalog import Found

_NARRATIONS = 200  # shown of a summary
_NEAR = 8  # similar samples


def sample(site: Site, query: Query) -> Page:
    """Return the page of the sample that `key` names."""
    found = site.sample(query["key"])
    record = read_record(site, found)
    body: list[object] = [
        tag("p", "← ", video_link(found.video_uid, at=found.key)),
        tag("h1", found.text or "(no caption)", dir="auto", class_="caption"),
        tag("p", site.badges(found)),
        tag(
            "div",
            tag("div", show(found), class_="screen"),
            tag(
                "figure", image(media(found.key, "jpg"), f"Key frame of: {found.text}"), tag("figcaption", "Key frame")
            ),
            class_="pair sample",
        ),
        facts(_facts(site, found, record)),
    ]
    if isinstance(record, str):
        body.append(notice(record))
    else:
        body += _narrations(site, record)
        body.append(folded("Record", tag("pre", json.dumps(record, ensure_ascii=False, indent=1)[:200_000])))
    body += _around(site, found)
    for name in site.embeddings.names:
        address = link("/search", like=found.key, by=name)
        body.append(heading("Similar", tag("a", f"by {name}", href=address)))
        if site.embeddings.is_open(name):
            body.append(tag("div", near_samples(site, name, found, count=_NEAR), class_="grid"))
    return Page(title=found.text[:80] or found.key, body=body, place="/videos")


def _facts(site: Site, found: Found, record: Mapping[str, Any] | str) -> list[tuple[object, object]]:
    entries: list[tuple[object, object]] = [
        ("key", found.key),
        ("set", f"{found.set_name}/{found.split}, {site.catalog.shard_of(found)}"),
        ("time", f"{when(found)} ({found.stop - found.start:.2f} s)"),
        (
            "stored",
            f"frames {found.first_frame} to {found.first_frame + found.clip_frames - 1} at {found.fps:g} per second",
        ),
    ]
    if not isinstance(record, str):
        hidden = {"text", "narrations", "clip_start", "clip_end", "first_frame", "clip_frames", "fps", *schema.CLASSES}
        entries += [
            (name, _shown(value)) for name, value in record.items() if name not in hidden and value not in ("", {})
        ]
    return entries


def _shown(value: object) -> object:
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def _narrations(site: Site, record: Mapping[str, Any]) -> list[object]:
    listed = record.get("narrations") or []
    if not listed:
        return []
    known = site.catalog.samples(narration["key"] for narration in listed[:_NARRATIONS])
    rows = []
    for narration in listed[:_NARRATIONS]:
        clip = known.get(narration["key"])
        picture = thumbnail(clip.key, "") if clip else absent("not in the shards")
        words = tag("span", narration["text"], class_="words", dir="auto")
        time = tag("span", clock(narration["clip_start"]), class_="mono quiet")
        inner: list[Html] = [picture, time, words]
        rows.append(
            tag("li", tag("a", inner, href=f"/sample/{clip.key}") if clip else tag("span", inner, class_="row"))
        )
    more = f", the first {_NARRATIONS} shown" if len(listed) > _NARRATIONS else ""
    return [heading("Narrations", f"{len(listed):,} within the summary{more}"), tag("ol", rows, class_="samples")]


def _around(site: Site, found: Found) -> list[object]:
    """Return the summaries that a clip lies in."""
    if is_long(found):
        return []
    begin = found.start - 3600.0
    longer = [
        each
        for each in site.catalog.of_video(found.video_uid, begin=begin, end=found.stop, limit=5000)
        if is_long(each) and each.start <= found.start and each.stop >= found.start
    ]
    if not longer:
        return []
    return [heading("Within"), tag("div", [card(site, each) for each in longer[:8]], class_="grid")]
