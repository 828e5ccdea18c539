"""The HTML page of a search: the query, and per set the nearest samples with players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.nearest import Query, Result
from eval.report.media import Clip, show, when
from shards.html.elements import Html, badge, clock, heading, notice, tag
from shards.search.moments import Moment

_NARRATIONS = 40  # listed of a summary

Narrations = Sequence[tuple[float, str]]  # s in the source, text


def render(
    query: Query,
    result: Result,
    clips: Mapping[str, Clip],
    narrations: Mapping[str, Narrations],
    *,
    checkpoint: str,
) -> list[object]:
    """Return the body of a search's page: `clips` and the summaries' `narrations` by key."""
    own = clips.get(query.key)
    lead = tag("div", show(own), tag("p", own.text, class_="words", dir="auto"), class_="lead") if own else None
    sections = [
        [
            heading(f"Nearest in {set_name}", "by cosine similarity"),
            tag(
                "section",
                tag("header"),
                tag("div", _figures(found, clips, narrations), class_="options"),
                class_="item",
            ),
        ]
        for set_name, found in result.moments.items()
    ]
    return [
        tag("h1", title(query), dir="auto"),
        tag("div", f"{checkpoint}, {result.samples:,} samples searched", class_="quiet"),
        lead,
        sections or notice("Nothing was searched: the dataset has no samples in these sets."),
    ]


def title(query: Query) -> str:
    """Return a query as the title of its page."""
    return query.text or f"Similar to {query.key}"


def _figures(moments: Sequence[Moment], clips: Mapping[str, Clip], narrations: Mapping[str, Narrations]) -> list[Html]:
    figures = []
    for rank, moment in enumerate(moments, 1):
        sample = moment.sample
        clip = clips.get(sample.key)
        caption = tag(
            "figcaption",
            tag("div", badge(rank), f"{moment.score:.3f} ", tag("span", sample.split, class_="quiet")),
            tag("p", sample.text, class_="words clamp", dir="auto"),
            [tag("p", "also: ", other.text, class_="words quiet", dir="auto") for other in moment.others],
            _listed(narrations.get(sample.key, ())),
            tag("div", sample.video_uid, dir="auto"),
            tag("div", [when(clip), tag("br")] if clip else None, sample.key, class_="mono"),
        )
        figures.append(tag("figure", show(clip), caption))
    return figures


def _listed(narrations: Narrations) -> Html | None:
    """Return a summary's narrations behind a line that unfolds them."""
    if not narrations:
        return None
    lines = [
        tag("li", tag("span", clock(start), class_="mono quiet"), " ", text, dir="auto")
        for start, text in narrations[:_NARRATIONS]
    ]
    more = tag("li", f"and {len(narrations) - _NARRATIONS:,} more") if len(narrations) > _NARRATIONS else None
    count = f"{len(narrations):,} narration{'' if len(narrations) == 1 else 's'}"
    return tag("details", tag("summary", count), tag("ol", lines, more, class_="plain"))
