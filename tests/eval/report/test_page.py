"""The body of a result's page: which questions it shows, which confusions it names, and that texts stay texts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.report.media import Clip
from eval.report.page import choose, flatten, keys_shown, margin, render
from eval.results import Confusion, Item, Option, Result, Score
from shards.html import charts
from shards.html.page import document


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
        scores=[Score(name=caption, value=1.0, low=0.5, high=1.5, items=1, of=1, chance=0.7, published={caption: 2.0})],
        items=items,
        missing=[],
        curves={caption: [(0.0, 1.0), (1.0, 2.0)]},
        confusion=confusion,
        seconds=1.0,
        machine="m",
        made_at="t",
    )


class Reader(HTMLParser):
    """Keeps the tags and classes of a document, and the tags left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.classes: list[str | None] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes.append(dict(attrs).get("class"))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(result: Result, clips: Mapping[str, Clip] | None = None, notes: Sequence[str] = ()) -> str:
    return document("title", render(result, choose(result.items), clips or {}, notes)).decode()


def rows_of(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(<td.*?)</tr>", page)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


@pytest.fixture(scope="module")
def plain() -> Reader:
    """The page of a result whose texts are harmless."""
    return Reader(page_of(result([item(0, 1, "a b", "c d"), item(0, 0, "e", "f")])))


@given(st.text(max_size=60))
@example("</script><script>alert(1)</script>")
@example('"><img src=x onerror=alert(1)>')
@example("<!--<h1>&lt;")
@settings(max_examples=12, deadline=None)  # each draws a dozen charts
def test_no_text_opens_a_tag_or_leaves_one_open(plain: Reader, caption: str) -> None:
    items = [item(0, 1, caption, caption + "x"), item(0, 0, caption, "y")]
    confusion = Confusion(labels=[caption, "b"], counts=[[1, 2], [3, 4]])
    for case in (None, confusion):
        page = Reader(page_of(result(items, caption, case), notes=[caption]))
        assert page.open == plain.open == []
        charts_shown = page.classes.count("plot")
        assert page.tags.count("script") == charts_shown + 2, "each chart's data, the library and our script"
        assert page.tags.count("h1") == 1 and set(page.tags) <= set(plain.tags)


def test_confusions_in_words_pair_what_differs_in_order() -> None:
    items = [
        item(0, 1, "#C C opens the drawer", "#C C closes the fridge"),
        item(0, 1, "#C C opens a drawer", "#C C closes the drawer"),
        item(0, 0, "#C C washes a cup", "#C C breaks a cup"),
        item(0, 1, "#C C cuts", "#C C walks around in the garden with a dog"),
    ]
    page = page_of(result(items))
    assert ["opens", "closes", "2"] in rows_of(page)
    assert ["drawer", "fridge", "1"] in rows_of(page)
    assert not any("washes" in row or "cuts" in row for row in rows_of(page))


def test_choices_by_place_show_a_preference_for_a_place() -> None:
    items = [item(i % 3, 1, "a", "b", "c") for i in range(9)]
    page = page_of(result(items))
    assert "1 → 2: 3 (100 %)" in page and "3 → 2: 3 (100 %)" in page and "1 → 1: 0 (0 %)" in page


def test_questions_of_unlike_sizes_have_no_places_to_compare() -> None:
    items = [item(0, 1, "a", "b"), item(0, 1, "a", "b", "c")]
    assert "Choices by place" not in page_of(result(items))


def test_a_heat_map_of_many_classes_keeps_those_that_are_confused() -> None:
    size = charts.MAX_CELLS + 20
    counts = [[5 * (i == j) for j in range(size)] for i in range(size)]
    counts[57][3] = 4
    labels = [f"class {i}" for i in range(size)]
    page = page_of(result([], confusion=Confusion(labels=labels, counts=counts)))
    assert rows_of(page).count(["class 57", "class 3", "4"]) == 1
    assert "class 57 → class 3: 4 (44 %)" in page
    assert f"The {charts.MAX_CELLS} of {size} classes that are confused most." in page


def test_margins_need_the_right_option_and_another_one() -> None:
    assert margin(item(0, 1, "a", "b", "c", scores=(0.5, 0.7, 0.1))) == pytest.approx(-0.2)
    assert margin(item(0, 0, "a")) is None
    lone = Item(id="q", group="", text="", score=1.0, answer="class", predicted="", options=[])
    assert margin(lone) is None
    assert margin(item(0, 1, "a", "b", scores=(float("nan"), 0.0))) is None


def test_of_many_options_the_right_and_the_chosen_one_are_always_shown() -> None:
    scores = tuple(1.0 - 0.01 * i for i in range(50))
    shown = item(49, 0, *[f"caption {i}" for i in range(50)], scores=scores)
    page = page_of(result([shown]))
    assert "caption 49" in page and "caption 0<" in page and "and 40 more options" in page
    assert len(set(keys_shown(choose([shown])))) == 11, "ten options and the question itself"


def test_settings_are_named_by_their_path() -> None:
    assert list(flatten({"a": {"b": 1, "c": {}}, "d": [1]})) == [("a.b", "1"), ("a.c", "{}"), ("d", "[1]")]


def test_the_chance_level_stands_beside_each_score() -> None:
    page = page_of(result([], "egomcq"))
    (row,) = [row for row in rows_of(page) if row[0] == "egomcq"]
    assert row[:4] == ["egomcq", "1.0", "0.5 to 1.5", "0.7"]
    assert "<span>chance 0.7 %</span>" in page and "egomcq: 1 (0.5 to 1.5), chance 0.7" in page


def test_curves_have_axis_titles() -> None:
    shown = result([], "recall")
    shown = dataclasses.replace(shown, curve_axes={"recall": ("rank k", "recall (%)")})
    assert 'aria-label="recall: recall (%) over rank k, last:' in page_of(shown)
