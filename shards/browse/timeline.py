"""One video: its summaries over its narrations along time, all playable, with what was lost of it."""

from __future__ import annotations

from collections.abc import Sequence

from shards.browse import queries
from shards.browse.frame import (
    Page,
    PageError,
    Query,
    Site,
    is_long,
    link,
    media,
    seconds_in,
    show,
    thumbnail,
    when,
)
from shards.browse.overview import video_facts
from shards.html.elements import Html, badge, clock, folded, heading, notice, playback_rate, table, tag
from shards.search.catalog import Found

WINDOW = 400  # samples on one page; longer videos have several
_LANES = 4  # rows of the samples of one set
_ROW, _GAP = 16, 6  # pixels


def video(site: Site, query: Query) -> Page:
    """Return the page of a video, or of a part of a long one."""
    uid = query.get("uid", "")
    found = queries.find_video(site.catalog, uid)
    if found is None:
        raise PageError(404, f"No video {uid}.")
    head = [tag("h1", found.uid, dir="auto"), video_facts(site, found)]
    if uid in site.source.dataset.denylist:
        return Page(
            title=found.uid, body=[*head, notice("This video is withdrawn: denylist.txt lists it.")], place="/videos"
        )
    at = query.get("at", "")
    chosen = site.sample(at) if at else None
    begin = seconds_in(query, "from")
    samples, begin, end, before = _window(site, found, begin, chosen)
    if chosen is None or chosen.video_uid != uid:
        chosen = samples[0] if samples else None
    body: list[object] = [*head, _badges(site, found)]
    if chosen is not None:
        body += [_stage(site, chosen, samples), _spans(site, found, begin, end), _timeline(samples, begin, end, chosen)]
        body += [_windows(found, begin, end, before), heading("Samples", f"{len(samples):,}, in the order of time")]
        body.append(tag("ol", [_item(site, sample, chosen) for sample in samples], class_="samples"))
    else:
        body += [_spans(site, found, 0.0, found.seconds), notice("No sample of this video is in the shards.")]
    body += _losses(site, uid)
    return Page(title=found.uid, body=body, place="/videos")


def _window(
    site: Site, video: queries.Video, begin: float | None, chosen: Found | None
) -> tuple[list[Found], float, float, float | None]:
    """Return the samples to show, the times that they lie between, and where the window before begins."""
    catalog = site.catalog
    if begin is None and chosen is not None and video.samples > WINDOW:
        begin = max(0.0, chosen.start - 60.0)
    start = begin or 0.0
    low = start if begin else -1e18
    samples = catalog.of_video(video.uid, begin=low, end=1e18, limit=WINDOW + 1)
    has_more = len(samples) > WINDOW
    end = samples[WINDOW].start if has_more else max([video.seconds, *(sample.stop for sample in samples)])
    samples = samples[:WINDOW]
    before = None
    if begin:
        rows = catalog.rows(
            "SELECT start FROM samples WHERE video = ? AND start < ? ORDER BY start DESC LIMIT ?",
            (video.id, low, WINDOW),
        )
        before = max(0.0, float(rows[-1][0])) if rows else None
    return samples, min([start, *(sample.start for sample in samples)]), max(end, start + 1e-3), before


def _windows(video: queries.Video, begin: float, end: float, before: float | None) -> Html | None:
    links = []
    if before is not None:
        links.append(
            tag("a", "← earlier", href=link("/video", uid=video.uid, **{"from": f"{before:.3f}"}), class_="button")
        )
    if end < video.seconds - 1e-6 and video.samples > WINDOW:
        links.append(tag("a", "later →", href=link("/video", uid=video.uid, **{"from": f"{end:.3f}"}), class_="button"))
    return tag("p", f"{clock(begin)} to {clock(end)} of {clock(video.seconds)} ", links) if links else None


def _badges(site: Site, video: queries.Video) -> Html:
    found = queries.tags_of(site.catalog, video.id)
    return tag(
        "p",
        [
            tag("a", badge(f"{site.tag_name(kind, number)} {n:,}"), href=link("/videos", tag=f"{kind}:{number}"))
            for kind, number, n in found
        ],
    )


def _stage(site: Site, chosen: Found, samples: Sequence[Found]) -> Html:
    """Return the large player with the chosen sample; the script puts others into it."""
    keys = [sample.key for sample in samples]
    place = keys.index(chosen.key) if chosen.key in keys else None
    steps = []
    for label, offset in (("← Previous", -1), ("Next →", 1)):
        other = place + offset if place is not None else -1
        address = link("/video", uid=chosen.video_uid, at=keys[other]) + "#stage" if 0 <= other < len(keys) else None
        steps.append(tag("a", label, href=address, class_="button", data_step=offset))
    return tag(
        "section",
        tag("div", show(chosen), class_="screen"),
        tag(
            "div",
            tag("p", chosen.text, class_="title words", dir="auto"),
            tag("p", f"{chosen.set_name} · {when(chosen)}", class_="quiet where"),
            tag("p", site.badges(chosen), class_="tags"),
            tag("p", tag("a", "Everything about this sample", href=f"/sample/{chosen.key}", class_="about")),
            tag("p", steps, tag("button", "Play on", type="button", hidden="", class_="on", aria_pressed="false")),
            tag("p", "Keys: ← and → for the previous and the next sample, space to play", class_="quiet small hint"),
            aria_live="polite",
        ),
        id="stage",
        class_="stage",
        aria_label="Player",
    )


def _timeline(samples: Sequence[Found], begin: float, end: float, chosen: Found) -> Html:
    """Return blocks along time: summaries above, narrations below, each a link that plays it."""
    span, top, parts, axis = end - begin, 4, [], []
    order = sorted(
        {sample.set_name for sample in samples}, key=lambda name: (name != "summaries", name != "clips", name)
    )
    for set_name in order:
        own = [sample for sample in samples if sample.set_name == set_name]
        height = 2 * _ROW if is_long(own[0]) else _ROW
        lanes = _lanes(own)
        for sample, lane in zip(own, lanes, strict=True):
            left = min(max((sample.start - begin) / span, 0.0), 1.0) * 100
            width = min(max((sample.stop - sample.start) / span * 100, 0.0), 100 - left)
            parts.append(
                tag(
                    "a",
                    sample.text if is_long(sample) else None,
                    href=link("/video", uid=sample.video_uid, at=sample.key) + "#stage",
                    style=f"left:{left:.3f}%;width:{width:.3f}%;top:{top + lane * height}px;height:{height - 4}px;"
                    f"background:{_colour(sample)}",
                    title=f"{clock(sample.start)} {sample.text}"[:300],
                    class_="chosen" if sample.key == chosen.key else None,
                    tabindex="-1",  # the list below has the same links in the order of the keyboard
                    aria_label=sample.text[:200],
                    data_key=sample.key,
                )
            )
        axis.append(tag("span", set_name, style=f"top:{top}px", class_="lane"))
        top += (max(lanes) + 1) * height + _GAP
    ends = [tag("span", clock(time)) for time in (begin, (begin + end) / 2, end)]
    return tag(
        "div",
        tag("div", parts, axis, class_="timeline tall", style=f"height:{top}px"),
        tag("div", ends, class_="ends mono"),
        class_="lanes",
    )


def _spans(site: Site, video: queries.Video, begin: float, end: float) -> Html | None:
    """Return the bar of what of the source is packed and what is lost."""
    spans = [each for each in queries.spans_of(site.catalog, video.id) if each[1] > begin and each[0] < end]
    if not spans or end <= begin:
        return None
    blocks = []
    for start, stop, status, reason in spans:
        left = max(0.0, (start - begin) / (end - begin)) * 100
        width = min(100.0, (stop - begin) / (end - begin) * 100) - left
        label = f"{clock(start)} to {clock(stop)}: {status}{f', {reason}' if reason else ''}"
        tone = "" if status == "packed" else "lost"
        blocks.append(tag("i", style=f"left:{left:.3f}%;width:{max(width, 0):.3f}%", title=label, class_=tone or None))
    lost = [
        f"{clock(start)} to {clock(stop)}: {reason or status}"
        for start, stop, status, reason in spans
        if status != "packed"
    ]
    note = f"Source: {'; '.join(lost[:5])}{' …' if len(lost) > 5 else ''}" if lost else "Source: all packed"
    return tag(
        "div", tag("div", blocks, class_="source", role="img", aria_label=note), tag("div", note, class_="quiet small")
    )


def _item(site: Site, sample: Found, chosen: Found) -> Html:
    """Return a row of the list: what the script needs to play it is in its attributes."""
    return tag(
        "li",
        tag(
            "a",
            thumbnail(sample.key, ""),
            tag("span", f"{clock(sample.start)}", class_="mono quiet"),
            tag("span", sample.text or "(no caption)", class_="words", dir="auto"),
            href=link("/video", uid=sample.video_uid, at=sample.key) + "#stage",
            class_="play",
            aria_current="true" if sample.key == chosen.key else None,
            data_key=sample.key,
            data_video=media(sample.key, "mp4"),
            data_poster=media(sample.key, "jpg"),
            data_begin=f"{sample.begin + 0.25 / sample.fps:.4f}",
            data_end=f"{sample.end - 0.25 / sample.fps:.4f}",
            data_rate=playback_rate(sample.fps),
            data_text=sample.text,
            data_where=f"{sample.set_name} · {when(sample)}",
        ),
        tag("span", site.badges(sample), class_="tags"),
        class_="long-sample" if is_long(sample) else None,
    )


def _losses(site: Site, uid: str) -> list[Html]:
    found = queries.losses_of(site.catalog, uid)
    rows = [(loss.item, loss.set_name, loss.status, loss.reason, loss.detail) for loss in found]
    if not rows:
        return []
    head = ("item", "set", "status", "reason", "detail")
    return [folded(f"Not packed: {len(rows):,} rows of the ledger", table(head, rows, align="lllll"))]


def _lanes(samples: Sequence[Found]) -> list[int]:
    """Return the row of each sample: the first free one, or else the one that is free soonest."""
    ends, lanes = [float("-inf")] * _LANES, []
    for sample in samples:
        free = [lane for lane, end in enumerate(ends) if end <= sample.start]
        lane = free[0] if free else ends.index(min(ends))
        ends[lane] = max(ends[lane], sample.stop)
        lanes.append(lane)
    return lanes


def _colour(sample: Found) -> str:
    """Return a colour for what is done: one per verb."""
    verbs = sample.classes.get("tag_verb") or sample.classes.get("verb_class")
    return f"hsl({verbs[0] * 47 % 360} 45% 45%)" if verbs else "hsl(30 5% 45%)"
