"""Search: by words in captions, and by meaning where there are embeddings."""

from __future__ import annotations

import numpy as np

from shards.browse.frame import Page, PageError, Query, Site, card, link, more, number_in, options
from shards.browse.overview import search_form
from shards.html.elements import Html, badge, heading, notice, tag
from shards.search.catalog import RANKED, Found
from shards.search.moments import Moment, join_passes
from shards.search.vectors import VectorError, VectorSet, nearest

_HITS = 24  # on a page
_PER_SET = 12  # by meaning
_FETCHED = 4  # as many hits are fetched for each that is shown, since some are joined or withdrawn


def search(site: Site, query: Query) -> Page:
    """Return the captions with the words of `q`, or what is similar to the text `q` or to the sample `like`."""
    text, like, name = query.get("q", "").strip(), query.get("like", ""), query.get("by", "")
    if like or name:
        return _by_meaning(site, text, like, name or next(iter(site.vectors), ""))
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


def near_samples(site: Site, name: str, key: str, *, count: int) -> list[Html]:
    """Return the samples most similar to another one, all sets together, as figures."""
    query_D = _vector_of(site, name, site.sample(key))
    if query_D is None:
        return []
    found = _moments(site, site.vectors[name], query_D, count, exclude=key)
    best = sorted((m for moments in found.values() for m in moments), key=lambda m: -m.score)[:count]
    return [_figure(site, moment) for moment in best]


def _by_meaning(site: Site, text: str, like: str, name: str) -> Page:
    sets = site.vectors.get(name)
    if not sets:
        known = ", ".join(site.vectors) or "none"
        raise PageError(404, f"There are no embeddings {name!r}: {known} (--vectors FOLDER).")
    body: list[object] = [tag("h1", "Search"), _form(site, text, name, "")]
    if like:
        own = site.sample(like)
        query_D = _vector_of(site, name, own)
        body.append(tag("div", card(site, own), class_="grid"))
        if query_D is None:
            body.append(notice(f"{name} has no vector of {like}."))
    elif site.encode is None:
        raise PageError(400, "Searching by a text needs the model that made the embeddings: --checkpoint RUN.")
    else:
        query_D = site.encode(text) if text else None
    if query_D is not None:
        try:
            found = _moments(site, sets, query_D, _PER_SET, exclude=like)
        except VectorError as error:
            raise PageError(400, f"{error}: was the model another one?") from None
        for set_name, moments in found.items():
            body.append(heading(f"Nearest in {set_name}", "by cosine similarity"))
            body.append(tag("div", [_figure(site, moment) for moment in moments], class_="grid"))
    return Page(title=text or f"Similar to {like}", body=body, place="/search")


def _moments(
    site: Site, sets: tuple[VectorSet, ...] | list[VectorSet] | object, query_D: np.ndarray, count: int, *, exclude: str
) -> dict[str, list[Moment]]:
    """Return set → its nearest moments; withdrawn videos and the sample `exclude` are left out."""
    denied = site.source.dataset.denylist
    moments = {}
    for set_name, near in nearest(query_D, sets, _FETCHED * count).items():  # type: ignore[arg-type]
        known = site.catalog.samples(each.key for each in near)
        hits = [
            (each.score, known[each.key])
            for each in near
            if each.key in known and each.key != exclude and known[each.key].video_uid not in denied
        ]
        moments[set_name] = join_passes(hits, count)
    return moments


def _vector_of(site: Site, name: str, sample: Found) -> np.ndarray | None:
    shard = site.catalog.shard_of(sample)
    for one in site.vectors[name]:
        if (one.set_name, one.split) == (sample.set_name, sample.split):
            return one.vector_of(sample.key, shard)
    return None


def _figure(site: Site, moment: Moment) -> Html:
    others = [tag("p", "also: ", other.text, class_="quiet words") for other in moment.others]
    return card(site, moment.sample, tag("div", badge(f"{moment.score:.3f}"), moment.sample.split), *others)


def _form(site: Site, text: str, name: str, split: str) -> Html:
    if not site.vectors and not site.catalog.splits:
        return search_form(text)
    field = tag("input", type="search", name="q", value=text, aria_label="What to search for")
    splits = [("", "all splits"), *((str(each.id), each.name) for each in site.catalog.splits)]
    parts = [field, tag("select", options(splits, split), name="split", aria_label="Split")]
    if site.vectors and site.encode is not None:
        ways = [("", "by words"), *((each, f"by meaning: {each}") for each in site.vectors)]
        parts.append(tag("select", options(ways, name), name="by", aria_label="How"))
    return tag("form", parts, tag("button", "Search"), action="/search", role="search", class_="filter")
