"""The list of videos with its filters."""

from __future__ import annotations

from shards.browse import queries
from shards.browse.frame import (
    Page,
    PageError,
    Query,
    Site,
    link,
    more,
    number_in,
    options,
    seconds_in,
    thumbnail,
    video_link,
)
from shards.browse.names import KINDS
from shards.browse.queries import SORTS, VideoFilter
from shards.html.elements import Html, absent, clock, notice, tag
from shards.schema import CLASSES

_VIDEOS = 24  # on a page


def videos(site: Site, query: Query) -> Page:
    """Return a page of the videos that the filters let through."""
    wanted = _wanted(query)
    after = [query[name] for name in ("after", "number") if query.get(name)]
    try:
        found, total = queries.find_videos(site.catalog, wanted, after=after, limit=_VIDEOS + 1)
    except ValueError:
        raise PageError(400, f"after = {query.get('after')}: not an address of a page.") from None
    shown = found[:_VIDEOS]
    following = None
    if len(found) > len(shown):
        last = queries.cursor(shown[-1], wanted.sort)
        given = {name: value for name, value in query.items() if name not in ("after", "number")}
        following = link("/videos", **given, **dict(zip(("after", "number"), last, strict=False)))
    denied = site.source.dataset.denylist
    body = [
        tag("h1", "Videos"),
        _form(site, query),
        tag("p", f"{total:,} video{'' if total == 1 else 's'}", class_="quiet", role="status"),
        tag("div", [_figure(site, video, is_denied=video.uid in denied) for video in shown], class_="grid"),
        None if shown else notice("No video passes these filters: ", tag("a", "show all", href="/videos")),
        more(following),
    ]
    return Page(title="Videos", body=body, place="/videos")


def _wanted(query: Query) -> VideoFilter:
    tags = []
    for name in ("tag", "verb", "noun"):
        kind, colon, number = query.get(name, "").partition(":")
        if kind and (kind not in CLASSES or not colon or not number.isdecimal() or len(number) > 9):
            raise PageError(400, f"{name} = {query[name]}: expected a field and a class, such as tag_verb:12.")
        if kind:
            tags.append((kind, int(number)))
    sort = query.get("sort") or "name"
    if sort not in SORTS:
        raise PageError(400, f"sort = {sort}: expected one of {', '.join(SORTS)}.")
    return VideoFilter(
        text=query.get("q", ""),
        tags=tuple(tags),
        scenario=query.get("scenario", ""),
        shortest=seconds_in(query, "min", unit=60),
        longest=seconds_in(query, "max", unit=60),
        split=number_in(query, "split"),
        sort=sort,
    )


def _form(site: Site, query: Query) -> Html:
    counts = queries.tag_counts(site.catalog)
    fields = [_labelled("Words", tag("input", type="search", name="q", value=query.get("q", "")))]
    for name, kinds in (("verb", ("tag_verb", "verb_class")), ("noun", ("tag_noun", "noun_classes"))):
        given = {query.get(name, ""), query.get("tag", "")}
        entries, chosen = [("", "any")], ""
        for kind in kinds:
            known = sorted((site.tag_name(kind, number), number) for each, number, *_ in counts if each == kind)
            entries += [(f"{kind}:{number}", label) for label, number in known]
        chosen = next((value for value, _ in entries if value and value in given), "")
        if len(entries) > 1:
            fields.append(_labelled(KINDS[kinds[0]].capitalize(), tag("select", options(entries, chosen), name=name)))
    if known_scenarios := queries.scenarios(site.catalog):
        entries = [("", "any"), *((name, f"{name} ({n:,})") for name, n in known_scenarios)]
        fields.append(
            _labelled("Scenario", tag("select", options(entries, query.get("scenario", "")), name="scenario"))
        )
    splits = [("", "any"), *((str(split.id), split.name) for split in site.catalog.splits)]
    for name, label in (("min", "From (min)"), ("max", "To (min)")):
        field = tag("input", type="number", min="0", step="any", name=name, value=query.get(name, ""), class_="short")
        fields.append(_labelled(label, field))
    fields += [
        _labelled("Split", tag("select", options(splits, query.get("split", "")), name="split")),
        _labelled("Order", tag("select", options(SORTS.items(), query.get("sort", "")), name="sort")),
        tag("button", "Filter"),
    ]
    return tag("form", fields, action="/videos", class_="filter", aria_label="Filter videos")


def _labelled(label: str, field: Html) -> Html:
    return tag("label", tag("span", label), field)


def _figure(site: Site, video: queries.Video, *, is_denied: bool) -> Html:
    key = "" if is_denied else queries.first_key(site.catalog, video.id)
    picture = thumbnail(key, video.uid) if key else absent("withdrawn" if is_denied else video.status or "no samples")
    lost = f" · {video.lost:,} not packed" if video.lost else ""
    caption = tag(
        "figcaption",
        tag("p", video_link(video.uid), class_="words", dir="auto"),
        tag("div", f"{clock(video.seconds)} · {video.samples:,} samples{lost}", class_="quiet small"),
    )
    return tag("figure", picture, caption)
