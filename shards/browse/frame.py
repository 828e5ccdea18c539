"""What all pages share: the dataset, its catalog, names and vectors, the page's frame, and small parts of pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlencode

import numpy as np

from shards import schema
from shards.browse.embeddings import Embeddings
from shards.browse.names import KINDS, Names
from shards.html.elements import Html, badge, clock, image, join, player, tag, text
from shards.schema import set_spec
from shards.search.catalog import Catalog, Found
from shards.sources import Source
from shards.stats import parse_json

MENU = (
    ("/", "Overview"),
    ("/videos", "Videos"),
    ("/search", "Search"),
    ("/losses", "Losses"),
    ("/distributions", "Distributions"),
)

Query = Mapping[str, str]  # the parameters of an address


class Encoder(Protocol):
    """Embeds texts with the model whose weights have a digest."""

    digest: str

    def __call__(self, text: str) -> np.ndarray:
        """Return the vector (D,) of a text."""
        ...


class PageError(Exception):
    """A page that does not exist, or an address that makes no sense."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Site:
    """The served dataset."""

    source: Source
    catalog: Catalog
    name: str  # of the dataset
    names: Names = field(default_factory=dict)
    embeddings: Embeddings = field(default_factory=lambda: Embeddings({}))
    encoder: Encoder | None = None  # of texts

    def sample(self, key: str) -> Found:
        """Return a sample; raise `PageError` for an unknown or withdrawn one."""
        found = self.catalog.sample(key)
        if found is None:
            near = self.catalog.closest_key(key)
            raise PageError(
                404, f"No sample has the key {key}." + (f" The most similar one is {near}." if near else "")
            )
        if found.video_uid in self.source.dataset.denylist:
            raise PageError(410, f"The video of {key} is withdrawn: denylist.txt lists it.")
        return found

    def tag_name(self, kind: str, number: int) -> str:
        """Return a class by name where its name is known, else as `verb 12`."""
        return self.names.get(kind, {}).get(number) or f"{KINDS.get(kind, kind)} {number}"

    def badges(self, sample: Found) -> list[Html]:
        """Return the classes of a sample as links to the videos that have them."""
        return [
            tag("a", badge(self.tag_name(kind, number)), href=link("/videos", tag=f"{kind}:{number}"))
            for kind, numbers in sample.classes.items()
            for number in numbers
        ]


@dataclass(frozen=True)
class Page:
    """A page to send."""

    title: str
    body: Iterable[object]
    place: str = ""  # address of its entry in the menu


def link(path: str, **parameters: object) -> str:
    """Return an address with the parameters that are not empty."""
    given = {name: value for name, value in parameters.items() if value not in (None, "", 0)}
    return f"{path}?{urlencode(given, errors='replace')}" if given else path


def number_in(query: Query, name: str, default: int = 0) -> int:
    """Return a whole number of an address; raise `PageError` for anything else."""
    value = query.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdecimal() or len(value) > 15:
        raise PageError(400, f"{name} = {value}: expected a whole number.")
    return int(value)


def seconds_in(query: Query, name: str, *, unit: float = 1.0) -> float | None:
    """Return a time of an address in seconds, given in units of `unit` seconds; None where it is empty."""
    value = query.get(name, "").strip()
    if not value:
        return None
    try:
        seconds = float(value) * unit
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise PageError(400, f"{name} = {value}: expected a number of at least 0.")
    return seconds


def render(site: Site, page: Page) -> bytes:
    """Return a page as HTML."""
    menu = [
        tag("a", label, href=address, aria_current="page" if page.place == address else None) for address, label in MENU
    ]
    html = join(
        [
            Html('<!doctype html><html lang="en"><head><meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'),
            Html('<link rel="stylesheet" href="/static/style.css"><link rel="stylesheet" href="/static/browse.css">'),
            tag("title", f"{page.title} · {site.name}"),
            Html("</head><body>"),
            tag("a", "Skip to the page", href="#main", class_="skip"),
            tag("nav", tag("a", site.name, href="/", class_="home"), menu, aria_label="Pages"),
            tag("main", page.body, id="main"),
            Html('<script src="/static/script.js"></script><script src="/static/browse.js"></script></body></html>\n'),
        ]
    )
    return html.encode(errors="replace")


def read_record(site: Site, found: Found) -> dict[str, Any] | str:
    """Return the record of a sample, or what is wrong with it."""
    shard = next(
        shard
        for shard in site.source.dataset.split(found.set_name, found.split).shards
        if shard.name == site.catalog.shard_of(found)
    )
    try:
        value = parse_json(site.source.read(shard, found.json_offset, found.json_size))
        return schema.to_json(schema.from_json(found.set_name, value))
    except (OSError, ValueError, RecursionError) as error:
        return f"The record cannot be read: {error}"


def media(key: str, kind: str) -> str:
    """Return the address of a sample's image (`jpg`) or video (`mp4`)."""
    return f"/media/{key}.{kind}"


def show(sample: Found) -> Html:
    """Return a player of a sample."""
    return player(
        media(sample.key, "mp4"),
        poster=media(sample.key, "jpg"),
        label=sample.text,
        begin=sample.begin,
        end=sample.end,
        fps=sample.fps,
    )


def thumbnail(key: str, alt: str) -> Html:
    """Return a sample's image."""
    return image(media(key, "jpg"), alt)


def when(sample: Found) -> str:
    """Return where in its source video a sample lies."""
    return f"{clock(sample.start)} to {clock(sample.stop)}"


def video_link(uid: str, *, at: str = "") -> Html:
    """Return a link to a video, at a sample."""
    return tag("a", uid, href=link("/video", uid=uid, at=at))


def card(site: Site, sample: Found, *notes: object) -> Html:
    """Return a sample as a figure: a player, its text, where it is, and its classes."""
    caption = tag(
        "figcaption",
        tag(
            "p",
            tag("a", text(sample.text, limit=400) or "(no caption)", href=f"/sample/{sample.key}"),
            class_="words clamp",
            dir="auto",
        ),
        notes or None,
        tag("div", site.badges(sample)) if sample.classes else None,
        tag("div", video_link(sample.video_uid, at=sample.key), " · ", when(sample), class_="quiet small"),
    )
    return tag("figure", show(sample), caption)


def more(address: str | None) -> Html | None:
    """Return the link to the next page."""
    return tag("p", tag("a", "Next page →", href=address, rel="next", class_="button")) if address else None


def is_long(sample: Found) -> bool:
    """Return whether a sample covers minutes."""
    return set_spec(sample.set_name).is_long


def options(entries: Iterable[tuple[str, str]], chosen: str) -> list[Html]:
    """Return the entries (value, label) of a `select`."""
    return [tag("option", label, value=value, selected="" if value == chosen else None) for value, label in entries]
