"""Makes the parts of the project's HTML pages: text, tables, tiles, images and video players.

Strings are escaped wherever they enter; only `Html`, which these functions return, is put into a page as it is:

    body = [tag("h1", "EgoMCQ"), table(["score", "percent"], [["inter", 62.5]])]
    write_page(folder / "index.html", "EgoMCQ", body)       # of shards.html.page
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

_VOID = frozenset({"br", "img", "input", "link", "meta"})
_MAX_SECONDS = 1e9  # 30 years
_SLOW_FPS, _SPEED_UP = 5.0, 8  # videos of fewer frames per second are played that many times as fast


class Html(str):
    """Markup that is put into a page as it is; any other string is escaped first."""

    __slots__ = ()


def text(value: object, *, limit: int = 2000) -> Html:
    """Return any value as HTML that shows it, cut after `limit` characters; `Html` is returned as it is.

    Strings come from anywhere and may be megabytes long.
    """
    if isinstance(value, Html):
        return value
    whole = str(value)
    shown = whole if len(whole) <= limit else f"{whole[:limit]}… ({len(whole):,} characters)"
    if not shown.isascii():
        shown = shown.encode("utf-8", "replace").decode()  # a lone surrogate, as of a file name, has no UTF-8
    return Html(escape(shown.replace("\0", "\N{REPLACEMENT CHARACTER}"), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element. Children may be nested lists; None stands for nothing, in attributes too.

    `tag("td", 5, class_="number", data_label="items")` is `<td class="number" data-label="items">5</td>`.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{pairs}>" if name in _VOID else f"<{name}{pairs}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Return nested lists of children as one piece of HTML."""
    parts = []
    for child in children:
        if isinstance(child, Iterable) and not isinstance(child, str | bytes):
            parts.append(join(child))
        elif child is not None:
            parts.append(text(child))
    return Html("".join(parts))


def heading(title: object, note: object = None) -> Html:
    """Return a section's heading, with a quiet note beside it."""
    return tag("h2", title, tag("small", note) if note else None)


def notice(*children: object) -> Html:
    """Return a paragraph that warns."""
    return tag("div", *children, class_="notice")


def tile(value: object, *labels: object, tone: str = "") -> Html:
    """Return a large value with lines of labels below; `tone` is "bad" or empty."""
    return tag("div", tag("b", value), [tag("span", label) for label in labels], class_=f"tile {tone}".strip())


def tiles(entries: Iterable[Html]) -> Html:
    """Return tiles side by side."""
    return tag("div", entries, class_="tiles")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, align: str = "") -> Html:
    """Return a table; on a phone each row of more than three cells becomes a card, labelled with the names in `head`.

    `align` has a letter per column: l(eft) text, r(ight) numbers. By default the first is l and the others r.
    """
    align = align or "l" + "r" * (len(head) - 1)
    kinds = [{"r": "number", "l": "long"}[letter] for letter in align]
    top = tag("tr", [tag("th", name, class_=kind) for name, kind in zip(head, kinds, strict=True)])
    body = [
        tag("tr", [tag("td", c, class_=k, data_label=n) for c, k, n in zip(row, kinds, head, strict=True)])
        for row in rows
    ]
    return tag(
        "div",
        tag("table", tag("thead", top), tag("tbody", body), class_="stack" if len(head) > 3 else None),
        class_="scroll",
    )


def facts(entries: Iterable[tuple[object, object]]) -> Html:
    """Return names with values, such as settings."""
    rows = [tag("tr", tag("th", name), tag("td", value, class_="mono")) for name, value in entries]
    return tag("div", tag("table", tag("tbody", rows), class_="facts"), class_="scroll")


def folded(title: object, *children: object) -> Html:
    """Return content behind a line that unfolds it."""
    return tag("details", tag("summary", title), *children)


def badge(label: object, tone: str = "") -> Html:
    """Return a small label; `tone` is "good", "bad" or empty."""
    return tag("span", label, class_=f"badge {tone}".strip())


def image(source: str | bytes, alt: object) -> Html:
    """Return an image: a path relative to the page, or the bytes of a JPEG, which go into the page."""
    if isinstance(source, bytes):
        source = Html(f"data:image/jpeg;base64,{base64.b64encode(source).decode()}")
    return tag("img", loading="lazy", alt=alt, src=source)


def player(video: str, *, poster: str, label: object, begin: float, end: float, fps: float) -> Html:
    """Return a muted player that loops over `begin` to `end` (seconds) of a video file of `fps` frames per second.

    `video` and `poster` are paths relative to the page. Videos of few frames per second are played faster.
    """
    # A quarter of a frame inside, so that rounding shows no frame of before or after.
    begin, end = begin + 0.25 / fps, end - 0.25 / fps
    media = tag(
        "video", controls="", muted="", playsinline="", preload="none", poster=poster, aria_label=label,
        src=f"{video}#t={begin:.4f},{end:.4f}", data_begin=f"{begin:.4f}", data_end=f"{end:.4f}",
        data_rate=playback_rate(fps),
    )  # fmt: skip
    return tag("span", media, class_="player")


def playback_rate(fps: float) -> int:
    """Return how many times as fast a video of `fps` frames per second is played."""
    return _SPEED_UP if fps < _SLOW_FPS else 1


def absent(reason: object) -> Html:
    """Return a placeholder of an image's size that says why there is none."""
    return tag("span", reason, class_="absent")


def clock(seconds: float) -> str:
    """Return a time in a video as h:mm:ss.s or m:ss.s; − before a negative one, – for one that no video has."""
    if not abs(seconds) < _MAX_SECONDS:
        return "–"
    if seconds < 0:
        return f"\N{MINUS SIGN}{clock(-seconds)}"
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"


def short(value: float) -> str:
    """Return a number in at most four significant digits where it is not whole: 1,234, 12.34, 3e-05."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 1e9 and (abs(value) >= 1000 or float(value).is_integer()):
        return f"{value:,.0f}"
    return f"{value:.4g}"
