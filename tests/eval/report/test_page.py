"""What a report's page is made of: charts that count right, confusions that name what was mixed up, safe texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.report import charts
from eval.report.document import clock, text
from eval.report.page import choose, flatten, keys_shown, margin, render
from eval.results import Confusion, Item, Option, Result, Score


def item(answer: int, predicted: int, *texts: str, scores: tuple[float, ...] = (), name: str = "0") -> Item:
    options = [
        Option(key=f"k{i}", text=caption, score=scores[i] if scores else float(i == predicted))
        for i, caption in enumerate(texts)
    ]
    score = 100.0 * (answer == predicted)
    return Item(
        id=name, group="g", text=texts[answer], score=score, answer=f"k{answer}", predicted=f"k{predicted}",
        options=options,
    )  # fmt: skip


def result(items: list[Item], caption: str = "egomcq", confusion: Confusion | None = None) -> Result:
    return Result(
        benchmark=caption,
        set_name="clips",
        split="train",
        root="r",
        checkpoint=caption,
        checkpoint_digest="d",
        fingerprint="f",
        settings={caption: caption},
        scores=[Score(name=caption, value=1.0, low=0.5, high=1.5, items=1, of=1, published={caption: 2.0})],
        items=items,
        missing=[],
        curves={caption: [(0.0, 1.0), (1.0, 2.0)]},
        confusion=confusion,
        seconds=1.0,
        machine="m",
        made_at="t",
    )


class Reader(HTMLParser):
    """Keeps the tags that stand in a document, those left open, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def rows_of(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


@given(st.text(max_size=200).filter(lambda s: "\r" not in s))
@settings(max_examples=150)
def test_any_text_comes_back_as_it_was(caption: str) -> None:
    shown = "".join(Reader(f"<p>{text(caption)}</p>").texts)
    assert shown == caption.replace("\0", "\N{REPLACEMENT CHARACTER}")


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_text_opens_a_tag_or_leaves_one_open(caption: str) -> None:
    items = [item(0, 1, caption, caption + "x"), item(0, 0, caption, "y")]
    harmless = [item(0, 1, "a b", "c d"), item(0, 0, "e", "f")]
    plain = Reader(render(result(harmless), choose(harmless), {}).decode())
    confusion = Confusion(labels=[caption, "b"], counts=[[1, 2], [3, 4]])
    for case in (None, confusion):
        page = Reader(render(result(items, caption, case), choose(items), {}, [caption]).decode())
        assert page.open == plain.open == []
        assert page.tags.count("script") == 1 and page.tags.count("h1") == 1
        assert set(page.tags) <= set(plain.tags) | {"figure", "svg", "rect", "text", "title", "line", "h3"}


def test_endless_texts_are_cut_and_say_how_long_they_were() -> None:
    assert text("x" * 3000) == "x" * 2000 + "… (3,000 characters)"
    assert text("x" * 2000) == "x" * 2000


def test_confusions_in_words_pair_what_differs_in_order() -> None:
    items = [
        item(0, 1, "#C C opens the drawer", "#C C closes the fridge"),
        item(0, 1, "#C C opens a drawer", "#C C closes the drawer"),
        item(0, 0, "#C C washes a cup", "#C C breaks a cup"),
        item(0, 1, "#C C cuts", "#C C walks around in the garden with a dog"),
    ]
    page = render(result(items), choose(items), {}).decode()
    assert ["opens", "closes", "2"] in rows_of(page)
    assert ["drawer", "fridge", "1"] in rows_of(page)
    assert not any("washes" in row or "cuts" in row for row in rows_of(page))


def test_choices_by_place_show_a_preference_for_a_place() -> None:
    items = [item(i % 3, 1, "a", "b", "c") for i in range(9)]
    page = render(result(items), choose(items), {}).decode()
    assert "1 → 2: 3 (100 %)" in page and "3 → 2: 3 (100 %)" in page and "1 → 1: 0 (0 %)" in page


def test_questions_of_unlike_sizes_have_no_places_to_compare() -> None:
    items = [item(0, 1, "a", "b"), item(0, 1, "a", "b", "c")]
    assert "where the right option stood" not in render(result(items), choose(items), {}).decode()


def test_a_heat_map_of_many_classes_keeps_those_that_are_confused() -> None:
    size = charts.MAX_CELLS + 20
    counts = [[5 * (i == j) for j in range(size)] for i in range(size)]
    counts[57][3] = 4
    labels = [f"class {i}" for i in range(size)]
    page = render(result([], confusion=Confusion(labels=labels, counts=counts)), [], {}).decode()
    assert rows_of(page).count(["class 57", "class 3", "4"]) == 1
    assert "class 57 → class 3: 4 (44 %)" in page
    assert f"The {charts.MAX_CELLS} of {size} that are confused most." in page


@given(
    st.lists(st.floats(0.001, 2), max_size=50),
    st.lists(st.floats(-2, 0), max_size=50),
)
def test_a_histogram_counts_every_margin_once_and_right_ones_lie_right_of_zero(
    right: list[float], wrong: list[float]
) -> None:
    chart = charts.histogram("m", right, wrong)
    counted = re.findall(r"<title>([\d,]+) (right|wrong), margin (\S+) to (\S+)</title>", chart)
    assert sum(int(n) for n, kind, _, _ in counted if kind == "right") == len(right)
    assert sum(int(n) for n, kind, _, _ in counted if kind == "wrong") == len(wrong)
    zero = float(match[1]) if (match := re.search(r'class="zero" x1="([\d.]+)"', chart)) else 0.0
    for kind, x in re.findall(r'<rect class="(good|bad)" x="([\d.]+)"', chart):
        if kind == "good" and right and min(right) > 0.01:
            assert float(x) >= zero - 0.11


def test_margins_need_the_right_option_and_another_one() -> None:
    assert margin(item(0, 1, "a", "b", "c", scores=(0.5, 0.7, 0.1))) == pytest.approx(-0.2)
    assert margin(item(0, 0, "a")) is None
    lone = Item(id="q", group="", text="", score=1.0, answer="class", predicted="", options=[])
    assert margin(lone) is None
    assert margin(item(0, 1, "a", "b", scores=(float("nan"), 0.0))) is None


def test_of_many_options_the_right_and_the_chosen_one_are_always_shown() -> None:
    scores = tuple(1.0 - 0.01 * i for i in range(50))
    shown = item(49, 0, *[f"caption {i}" for i in range(50)], scores=scores)
    page = render(result([shown]), choose([shown]), {}).decode()
    assert "caption 49" in page and "caption 0<" in page and "and 40 more options" in page
    assert len(set(keys_shown(choose([shown])))) == 11, "ten options and the question itself"


def test_settings_are_named_by_their_path() -> None:
    assert list(flatten({"a": {"b": 1, "c": {}}, "d": [1]})) == [("a.b", "1"), ("a.c", "{}"), ("d", "[1]")]


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0:00.0"), (59.96, "1:00.0"), (3725.25, "1:02:05.2")])
def test_times_carry_over(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
