"""Search: by words in captions, and by meaning where there are embeddings."""

from __future__ import annotations

import numpy as np

from shards.browse.embeddings import UNUSABLE, EmbeddingSet
from shards.browse.frame import Page, PageError, Query, Site, card, is_long, link, more, number_in, options, read_record
from shards.html.elements import Html, badge, clock, folded, heading, notice, tag
from shards.search.catalog import RANKED, Found
from shards.search.moments import Moment, join_passes
from shards.search.vectors import VectorError, nearest

_HITS = 24  # on a page
_NARRATIONS = 40  # listed of a summary
_PER_SET = 12  # by meaning
_FETCHED = 4  # as many hits are fetched for each that is shown, since some are joined or withdrawn


def search(site: Site, query: Query) -> Page:
    """Return the captions with the words of `q`, or what is similar to the text `q` or to the sample `like`."""
    text, like, name = query.get("q", "").strip(), query.get("like", ""), query.get("by", "")
    if like or name:
        return _by_meaning(site, text, like, name or next(iter(site.embeddings.names), ""))
    split = next((s for s in site.catalog.splits if s.id == number_in(query, "split")), None)
    body: list[object] = [tag("h1", "Search"), _form(site, text, name, query.get("split", ""))]
    if text:
        found = site.catalog.search_captions(text, split=split, after=number_in(query, "after"), limit=_HITS)
        denied = site.source.dataset.denylist
        count = f"{found.total:,}" if found.total <= RANKED else f"more than {RANKED:,}"
        note = f"{count} caption{'' if found.total == 1 else 's'} with all of these words"
        if found.total > RANKED:
            note += f", the first {RANKED:,} ranked"
        body.append(tag("p", note, class_="quiet", role="status"))
        body.append(tag("div", [card(site, s) for s in found.samples if s.video_uid not in denied], class_="grid"))
        following = link("/search", q=text, split=query.get("split"), after=found.after) if found.after else None
        body.append(more(following))
    else:
        body.append(
            tag(
                "p",
                "A caption is found if it has all words. A word that ends in * stands for its beginnings.",
                class_="quiet",
            )
        )
    return Page(title=text or "Search", body=body, place="/search")


def near_samples(site: Site, name: str, found: Found, *, count: int) -> list[Html]:
    """Return the samples most similar to another one, all sets together, as figures."""
    embedded = _open(site, name)
    query_D = _vector_of(site, embedded, found)
    if query_D is None:
        return []
    by_set = _moments(site, embedded, query_D, count, exclude=found.key)
    best = sorted((m for moments in by_set.values() for m in moments), key=lambda m: -m.score)[:count]
    return [_figure(site, moment) for moment in best]


def _by_meaning(site: Site, text: str, like: str, name: str) -> Page:
    embedded = _open(site, name)
    body: list[object] = [tag("h1", "Search"), _form(site, text, name, "")]
    query_D = None
    if like:
        own = site.sample(like)
        query_D = _vector_of(site, embedded, own)
        body.append(tag("div", card(site, own), class_="grid"))
        if query_D is None:
            body.append(notice(f"{name} has no vector of {like}."))
    elif text:
        query_D = _encoded(site, embedded, name, text)
    if query_D is not None:
        for set_name, moments in _moments(site, embedded, query_D, _PER_SET, exclude=like).items():
            body.append(heading(f"Nearest in {set_name}", "by cosine similarity"))
            body.append(tag("div", [_figure(site, moment) for moment in moments], class_="grid"))
    return Page(title=text or f"Similar to {like}", body=body, place="/search")


def _open(site: Site, name: str) -> EmbeddingSet:
    if name not in site.embeddings.names:
        known = ", ".join(site.embeddings.names) or "none"
        raise PageError(404, f"There are no embeddings {name!r}; there are {known}.")
    try:
        return site.embeddings.get(name)
    except UNUSABLE as error:
        raise PageError(500, f"The embeddings {name} cannot be used: {error}") from None


def _encoded(site: Site, embedded: EmbeddingSet, name: str, text: str) -> np.ndarray:
    if site.encoder is None:
        raise PageError(400, "Searching by a text needs the model that made the embeddings: --checkpoint RUN.")
    if embedded.checkpoint and embedded.checkpoint != site.encoder.digest:
        raise PageError(400, f"The embeddings {name} are of another checkpoint than --checkpoint.")
    return site.encoder(text)


def _moments(
    site: Site, embedded: EmbeddingSet, query_D: np.ndarray, count: int, *, exclude: str
) -> dict[str, list[Moment]]:
    """Return set → its nearest moments; withdrawn videos and the sample `exclude` are left out."""
    denied = site.source.dataset.denylist
    moments = {}
    try:
        found = nearest(query_D, embedded.splits, _FETCHED * count)
    except VectorError as error:
        raise PageError(400, f"{error}: was the model another one?") from None
    for set_name, near in found.items():
        known = site.catalog.samples(each.key for each in near)
        hits = [
            (each.score, known[each.key])
            for each in near
            if each.key in known and each.key != exclude and known[each.key].video_uid not in denied
        ]
        moments[set_name] = join_passes(hits, count)
    return moments


def _vector_of(site: Site, embedded: EmbeddingSet, sample: Found) -> np.ndarray | None:
    shard = site.catalog.shard_of(sample)
    for one in embedded.splits:
        if (one.set_name, one.split) == (sample.set_name, sample.split):
            return one.vector_of(sample.key, shard)
    return None


def _figure(site: Site, moment: Moment) -> Html:
    others = [tag("p", "also: ", other.text, class_="quiet words") for other in moment.others]
    record = read_record(site, moment.sample) if is_long(moment.sample) else {}
    narrations = record.get("narrations") or [] if isinstance(record, dict) else []
    if narrations:
        lines = [
            tag("li", tag("span", clock(each["clip_start"]), class_="mono quiet"), " ", each["text"], dir="auto")
            for each in narrations[:_NARRATIONS]
        ]
        others.append(folded(f"{len(narrations):,} narrations", tag("ol", lines, class_="plain")))
    return card(site, moment.sample, tag("div", badge(f"{moment.score:.3f}"), moment.sample.split), *others)


def _form(site: Site, text: str, name: str, split: str) -> Html:
    field = tag("input", type="search", name="q", value=text, aria_label="What to search for")
    splits = [("", "all splits"), *((str(each.id), each.name) for each in site.catalog.splits)]
    parts = [field, tag("select", options(splits, split), name="split", aria_label="Split")]
    if site.embeddings.names and site.encoder is not None:
        ways = [("", "by words"), *((each, f"by meaning: {each}") for each in site.embeddings.names)]
        parts.append(tag("select", options(ways, name), name="by", aria_label="How"))
    return tag("form", parts, tag("button", "Search"), action="/search", role="search", class_="filter")
