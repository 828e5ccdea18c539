"""The overview of a dataset, its losses by reason, and its distributions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shards.browse import queries
from shards.browse.frame import Page, PageError, Query, Site, link, more, number_in, video_link
from shards.browse.names import KINDS
from shards.html.elements import Html, clock, facts, heading, notice, short, table, tag, tile, tiles
from shards.summary import human_bytes, human_hours

_REASONS = 8  # on the overview
_ITEMS = 50  # losses on a page
_TAGS = 40  # of a kind


def overview(site: Site, query: Query) -> Page:
    """Return what is in the dataset, in numbers, with ways into it."""
    catalog, dataset = site.catalog, site.source.dataset
    videos, lost = queries.totals(catalog)
    rows = []
    for part in catalog.splits:
        split = dataset.split(part.set_name, part.split)
        ((watched,),) = catalog.rows("SELECT count(*) FROM video_splits WHERE split = ?", (part.id,))
        rows.append(
            (
                tag("a", part.name, href=link("/videos", split=part.id)),
                f"{part.samples:,}",
                f"{watched:,}",
                human_hours(part.seconds / 3600),
                f"{len(split.shards):,}",
                human_bytes(split.bytes),
                tag("span", split.fingerprint[:12], class_="mono"),
            )
        )
    reasons = queries.loss_reasons(catalog)
    programs = ", ".join(f"{name} {version}" for name, version in dataset.toolchain.items() if "." not in name)
    body = [
        tag("h1", site.name),
        tag("div", f"Built with {programs}", class_="quiet"),
        search_form(""),
        tiles(
            [
                tile(f"{sum(part.samples for part in catalog.splits):,}", "samples"),
                tile(f"{videos:,}", "videos"),
                tile(human_hours(sum(part.seconds for part in catalog.splits) / 3600), "of clips"),
                tile(human_bytes(sum(split.bytes for _, _, split in dataset.splits())), "in tars"),
                tile(f"{lost:,}", "items not packed", tone="bad" if lost else ""),
            ]
        ),
        table(("split", "samples", "videos", "clips", "shards", "size", "fingerprint"), rows),
        heading("Losses", f"{len(reasons):,} reasons") if reasons else None,
        _reasons(reasons[:_REASONS]) if reasons else None,
        tag("p", tag("a", "All reasons", href="/losses")) if len(reasons) > _REASONS else None,
        heading("Embeddings"),
        _embeddings(site),
    ]
    denied = len(dataset.denylist)
    if denied:
        body.append(notice(f"{denied:,} videos are withdrawn (denylist.txt) and not shown."))
    return Page(title="Overview", body=body, place="/")


def _embeddings(site: Site) -> Html:
    if not site.embeddings.names:
        return tag("p", "None: to search by meaning, extract features, or give --vectors FOLDER.", class_="quiet")
    rows = []
    for name in site.embeddings.names:
        splits = site.embeddings.get(name).splits if site.embeddings.is_open(name) else []
        of = ", ".join(f"{one.set_name}/{one.split}" for one in splits) or "opened by the first search"
        rows.append((name, of, f"{sum(map(len, splits)):,}" if splits else "–"))
    return table(("name", "of", "vectors"), rows, align="llr")


def search_form(text: str) -> Html:
    """Return the form that searches captions."""
    field = tag(
        "input", type="search", name="q", value=text, aria_label="Words in captions", placeholder="Words in captions"
    )
    return tag("form", field, tag("button", "Search"), action="/search", role="search", class_="filter")


def losses(site: Site, query: Query) -> Page:
    """Return the reasons of what is not packed, or the items with one of them."""
    reasons = queries.loss_reasons(site.catalog)
    if "reason" not in query:
        body = [
            tag("h1", "Losses"),
            tag("p", "What annotations list and the shards do not have, by set and reason.", class_="quiet"),
            _reasons(reasons) if reasons else notice("The ledger lists nothing that is not packed, or there is none."),
        ]
        return Page(title="Losses", body=body, place="/losses")
    chosen = (query.get("set", ""), query.get("status", ""), query["reason"])
    count = next((items for *place, items in reasons if tuple(place) == chosen), None)
    if count is None:
        raise PageError(404, f"No item of {chosen[0]} is {chosen[1]} for the reason {chosen[2]!r}.")
    found = queries.losses(site.catalog, *chosen, after=number_in(query, "after"), limit=_ITEMS)
    rows = [(loss.item, video_link(loss.video_uid) if loss.video_uid else "", loss.detail) for loss in found]
    following = None
    if len(found) == _ITEMS:
        place = {"set": chosen[0], "status": chosen[1], "reason": chosen[2]}
        following = link("/losses", **place, after=found[-1].id)
    items: list[object] = [
        tag("p", tag("a", "← all reasons", href="/losses")),
        tag("h1", chosen[2] or "(no reason)"),
        tag("div", f"{chosen[0]}, {chosen[1]}: {count:,} items", class_="quiet"),
        table(("item", "video", "detail"), rows, align="lll"),
        more(following),
    ]
    return Page(title=f"Losses: {chosen[2]}", body=items, place="/losses")


def _reasons(reasons: Sequence[tuple[str, str, str, int]]) -> Html:
    most = max((items for *_, items in reasons), default=1)
    rows = [
        (
            tag("a", reason or "(no reason)", href=_reason_link(set_name, status, reason)),
            set_name,
            status,
            meter(items, most),
            f"{items:,}",
        )
        for set_name, status, reason, items in reasons
    ]
    return table(("reason", "set", "status", "share", "items"), rows, align="llllr")


def _reason_link(set_name: str, status: str, reason: str) -> str:
    # An empty reason stays in the address: its presence is what asks for items.
    return f"{link('/losses', set=set_name, status=status)}&{link('', reason=reason)[1:] or 'reason='}"


def distributions(site: Site, query: Query) -> Page:
    """Return distributions of lengths, words and samples a video, and the commonest words and classes."""
    body: list[object] = [tag("h1", "Distributions")]
    for name, title, unit in (
        ("seconds", "Length of clips", "s"),
        ("words", "Words a caption", "words"),
        ("samples", "Samples a video", "samples"),
    ):
        body.append(heading(title, "by split; the last interval holds the longest 1 %"))
        bars = [_histogram(split, bins, unit) for split, bins in queries.histograms(site.catalog, name).items()]
        body.append(tag("div", bars, class_="charts"))
    counts = queries.tag_counts(site.catalog)
    for kind in dict.fromkeys(kind for kind, *_ in counts):
        entries = [
            (site.tag_name(kind, t), n, link("/videos", tag=f"{kind}:{t}")) for k, t, n, _ in counts if k == kind
        ]
        body.append(
            heading(f"Commonest {KINDS.get(kind, kind)}s", f"{min(_TAGS, len(entries))} of {len(entries):,}, samples")
        )
        body.append(_bars(entries[:_TAGS]))
    common = queries.words(site.catalog)
    if common:
        body.append(heading("Commonest words", "captions that have them"))
        body.append(_bars([(word, n, link("/search", q=word)) for word, n in common]))
    return Page(title="Distributions", body=body, place="/distributions")


def _histogram(split: str, bins: Sequence[tuple[float, float, int]], unit: str) -> Html:
    most = max((count for *_, count in bins), default=1) or 1
    total = sum(count for *_, count in bins)
    columns = [
        tag("i", style=f"height:{100 * count / most:.2f}%", title=f"{short(low)} to {short(high)} {unit}: {count:,}")
        for low, high, count in bins
    ]
    ends = [tag("span", f"{short(bins[0][0])}"), tag("span", f"{short(bins[-1][1])} {unit}")]
    spoken = f"{split}: {total:,}, most between {_mode(bins)} {unit}"
    rows = [(f"{short(low)} to {short(high)}", f"{count:,}") for low, high, count in bins if count]
    return tag(
        "figure",
        tag("figcaption", tag("b", split), tag("small", f"{total:,}")),
        tag("div", columns, class_="bars", role="img", aria_label=spoken),
        tag("div", ends, class_="ends mono"),
        tag("details", tag("summary", "Values"), table((unit, "count"), rows)),
        class_="chart",
    )


def _mode(bins: Sequence[tuple[float, float, int]]) -> str:
    low, high, _ = max(bins, key=lambda each: each[2])
    return f"{short(low)} and {short(high)}"


def _bars(entries: Iterable[tuple[str, int, str]]) -> Html:
    entries = list(entries)
    most = max((count for _, count, _ in entries), default=1)
    rows = [
        tag("li", tag("a", label, href=address), meter(count, most), tag("span", f"{count:,}", class_="quiet"))
        for label, count, address in entries
    ]
    return tag("ol", rows, class_="ranking")


def meter(value: float, most: float) -> Html:
    """Return a bar as long as a value's share of the greatest one."""
    return tag("div", tag("i", style=f"width:{100 * value / max(most, 1e-9):.1f}%"), class_="meter", aria_hidden="true")


def video_facts(site: Site, video: queries.Video) -> Html:
    """Return what is known of a video as names with values."""
    entries: list[tuple[object, object]] = [("identifier", video.uid), ("length", clock(video.seconds))]
    samples = ", ".join(f"{n:,} in {name}" for name, n in queries.splits_of(site.catalog, video.id))
    entries.append(("samples", samples or "none"))
    if found := queries.scenarios_of(site.catalog, video.uid):
        entries.append(("scenarios", ", ".join(found)))
    if video.status:
        entries.append(("ledger", ": ".join(part for part in (video.status, video.reason, video.detail) if part)))
    return facts(entries)
