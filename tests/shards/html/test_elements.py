"""Elements of a page: strings are shown as they are, whatever they hold, and tables keep their labels on a phone."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.html import elements
from shards.html.elements import (
    Html,
    clock,
    facts,
    folded,
    image,
    join,
    notice,
    player,
    short,
    table,
    tag,
    text,
    tile,
    tiles,
)


class Reader(HTMLParser):
    """Keeps a document's tags, those left open, its attributes and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


ANY_TEXT = st.text(max_size=200).filter(lambda s: "\r" not in s)


@given(ANY_TEXT)
@settings(max_examples=150)
def test_any_text_reads_back_unchanged(caption: str) -> None:
    shown = "".join(Reader(f"<p>{text(caption)}</p>").texts)
    assert shown == caption.replace("\0", "\N{REPLACEMENT CHARACTER}")


@given(ANY_TEXT)
@settings(max_examples=100)
def test_no_string_adds_a_tag_or_an_attribute_to_any_element(caption: str) -> None:
    def page(value: str) -> Reader:
        parts = [
            tag("p", value, title=value),
            tiles([tile(value, value)]),
            table([value, "b"], [[value, 1]]),
            facts([(value, value)]),
            folded(value, notice(value)),
            image(value, value),
            player(value, poster=value, label=value, begin=0.0, end=1.0, fps=30.0),
        ]
        return Reader(join(parts))

    hostile, harmless = page(caption), page("x")
    assert hostile.tags == harmless.tags and hostile.open == []
    assert [name for name, _ in hostile.attributes] == [name for name, _ in harmless.attributes]


def test_endless_texts_are_cut_and_say_how_long_they_were() -> None:
    assert text("x" * 3000) == "x" * 2000 + "… (3,000 characters)"
    assert text("x" * 2000) == "x" * 2000


def test_markup_is_escaped_once_and_only_where_it_is_not_ours() -> None:
    bold = tag("b", "a & b")
    assert isinstance(bold, Html) and bold == "<b>a &amp; b</b>"
    assert tag("p", bold, [" <i>", None, 3], class_="quiet", title=None) == (
        '<p class="quiet"><b>a &amp; b</b> &lt;i&gt;3</p>'
    )
    assert tag("td", 5, data_label='"items"') == '<td data-label="&quot;items&quot;">5</td>'


def test_each_cell_carries_the_name_of_its_column() -> None:
    page = table(["score", "percent", "note"], [["inter", 62.5, "x"]], align="lrl")
    assert '<td class="number" data-label="percent">62.5</td>' in page
    with pytest.raises(ValueError, match="zip"):
        table(["score", "percent"], [["inter"]])


def test_the_bytes_of_an_image_go_into_the_page_whole() -> None:
    data = bytes(range(256)) * 100
    assert len(image(data, "x")) > 4 / 3 * len(data)


def test_a_player_stays_inside_its_frames_and_plays_low_rate_videos_faster() -> None:
    page = player("media/a.mp4", poster="media/a.jpg", label="a", begin=1.0, end=2.0, fps=10.0)
    assert 'src="media/a.mp4#t=1.0250,1.9750"' in page and 'data-rate="1"' in page
    assert 'data-rate="8"' in player("a", poster="b", label="c", begin=0.0, end=60.0, fps=1.0)
    assert elements.playback_rate(5.0) == 1


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0:00.0"), (59.96, "1:00.0"), (3725.25, "1:02:05.2")])
def test_times_carry_over(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (3.0, "3"), (1234567, "1,234,567"), (12.3456, "12.35"), (3e-5, "3e-05"), (1234.6, "1,235"),
     (2e12, "2e+12"), (float("nan"), "–"), (float("inf"), "–"), (-1e300, "-1e+300")],
)  # fmt: skip
def test_numbers_are_short(value: float, shown: str) -> None:
    assert short(value) == shown
