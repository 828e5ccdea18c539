"""The HTML page of a search: the query, and per set the nearest samples with players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.nearest import Hit, Query
from eval.report.media import Clip, show, when
from shards.html.elements import Html, badge, heading, notice, tag


def render(
    query: Query, hits: Mapping[str, Sequence[Hit]], clips: Mapping[str, Clip], *, checkpoint: str, searched: int
) -> list[object]:
    """Return the body of a search's page: `hits` by set, `clips` by key, `searched` the number of samples."""
    own = clips.get(query.key)
    lead = tag("div", show(own), tag("p", own.text, class_="words", dir="auto"), class_="lead") if own else None
    sections = [
        [
            heading(f"Nearest in {set_name}", "by cosine similarity"),
            tag("section", tag("header"), tag("div", _figures(found, clips), class_="options"), class_="item"),
        ]
        for set_name, found in hits.items()
    ]
    return [
        tag("h1", title(query), dir="auto"),
        tag("div", f"{checkpoint}, {searched:,} samples searched", class_="quiet"),
        lead,
        sections or notice("Nothing was searched: the dataset has no samples in these sets."),
    ]


def title(query: Query) -> str:
    """Return a query as the title of its page."""
    return query.text or f"Similar to {query.key}"


def _figures(hits: Sequence[Hit], clips: Mapping[str, Clip]) -> list[Html]:
    figures = []
    for rank, hit in enumerate(hits, 1):
        clip = clips.get(hit.key)
        caption = tag(
            "figcaption",
            tag("div", badge(rank), f"{hit.score:.3f} ", tag("span", hit.split, class_="quiet")),
            tag("p", clip.text if clip else "", class_="words clamp", dir="auto"),
            tag("div", [when(clip), tag("br")] if clip else None, hit.key, class_="mono"),
        )
        figures.append(tag("figure", show(clip), caption))
    return figures
