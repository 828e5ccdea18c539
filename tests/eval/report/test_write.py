"""A report's page opened in a real browser: clips play from their first frame, texts stay texts, nothing leaves."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from eval.report.comparison import load_results
from eval.report.page import choose, margin
from eval.report.write import markdown, write_overview, write_report
from eval.results import Confusion, Item, Missing, Option, Result, Score
from shards.config import SourceConfig
from shards.dataset import Dataset
from shards.html.page import library_name
from tests.browser import Browser, PageReport, outside, serve
from tests.shards.coded import coded_clip, coded_dataset, coded_summary

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload=document.title="owned">',
    "</title></style><h1>owned</h1>",
    "\u202e#C C puts the cup down\u202c اليد تفتح الدرج",
    "'quotes' \"and\" `ticks` & &amp; &lt;b&gt; | pipes | \\ \0 \ud800",
    "one " * 3000,
    "word" * 1500,
)
KEYS = [coded_clip(number, video=f"video-{number // 4:03d}").key for number in range(12)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return coded_dataset(tmp_path_factory.mktemp("report") / "shards", (7, 5), per_video=4)


def question(number: int, *, predicted: int, margin: float = 0.5, asked: str = "", texts: str = "") -> Item:
    """Return an MCQ question over four clips whose right option is the first."""
    keys = [KEYS[(number + i) % len(KEYS)] for i in range(4)]
    scores = [0.1, 0.0, -0.05, -0.1]
    scores[predicted] += margin
    options = [Option(key=k, text=texts or f"#C C does {k}", score=s) for k, s in zip(keys, scores, strict=True)]
    return Item(
        id=str(number),
        group="inter" if number % 2 else "intra",
        text=asked or f"#C C asks {number}",
        score=100.0 * (predicted == 0),
        answer=keys[0],
        predicted=keys[predicted],
        options=options,
    )


def result_of(dataset: Dataset, items: list[Item], **changes: object) -> Result:
    inter = Score(
        name="inter accuracy",
        value=62.5,
        low=50.1,
        high=75.0,
        chance=20.0,
        items=len(items),
        of=len(items) + 2,
        tied=1,
        published={"HierVL-SA": 90.5, "HierVL-Avg": 90.3},
    )
    intra = Score(name="intra accuracy", value=41.0, low=None, high=None, items=1, of=1, published={"EgoVLP": 57.2})
    fields = {
        "benchmark": "egomcq",
        "set_name": "clips",
        "split": "train",
        "root": str(dataset.root),
        "checkpoint": "runs/a/checkpoints/step-00001000",
        "checkpoint_digest": "ab" * 32,
        "fingerprint": dataset.split("clips", "train").fingerprint,
        "settings": {"video": {"frames": 4, "size": 224}, "seed": 0},
        "scores": [inter, intra],
        "items": items,
        "missing": [Missing(item="17", reason="clip not packed: decode_error")] * 2,
        "curves": {"recall over rank": [(1, 20.0), (5, 61.0), (10, float("nan")), (50, 93.0)]},
        "confusion": None,
        "seconds": 12.5,
        "machine": "one core",
        "made_at": "2026-01-01T00:00:00+00:00",
    }
    return Result(**{**fields, **changes})


def assert_sound(report: PageReport) -> None:
    assert report.console_errors == []
    assert outside(report) == []
    assert report.images and all(image.width > 0 for image in report.images)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_thumbnails_are_there_and_every_clip_plays_without_what_is_stored_before_it(
    dataset: Dataset, browser: Browser, tmp_path: Path, scheme: str
) -> None:
    items = [question(0, predicted=0), question(1, predicted=2), question(2, predicted=0, margin=0.01)]
    page = write_report(result_of(dataset, items), tmp_path, root=dataset.root)
    with serve(tmp_path) as url:
        report = browser.open_page(f"{url}/index.html" if scheme == "http" else page.as_uri())
    assert_sound(report)
    assert len(report.videos) == 12
    for video in report.videos:
        assert video.problem is None and video.width == 128, video
        assert 2 / 30 - 0.01 < video.first < 0.5, "two frames are stored before each clip"
        assert video.advanced >= 0.15
    assert "egomcq" in report.title


def test_a_clip_is_shown_over_and_over_within_its_bounds(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    page = write_report(result_of(dataset, [question(1, predicted=1)]), tmp_path, root=dataset.root)
    watched = """(async () => {
      const video = document.querySelector("video"), times = [];
      const look = (_, frame) => { times.push(frame.mediaTime); video.requestVideoFrameCallback(look); };
      video.requestVideoFrameCallback(look);
      await video.play();
      const turns = () => times.filter((time, index) => time < times[index - 1]).length;
      for (let waited = 0; waited < 15000 && turns() < 2; waited += 100) {
        await new Promise((done) => setTimeout(done, 100));
      }
      return { times, turns: turns() };
    })()"""
    seen = browser.open_page(page.as_uri(), max_videos=0, ask={"seen": watched}).answers["seen"]
    assert seen["turns"] >= 2
    # A browser may show the film's own first frame while it goes to where it is told to begin.
    assert min(seen["times"][1:]) > 2 / 30 - 0.01
    assert max(seen["times"]) < 22 / 30 + 0.1


def test_options_say_which_is_right_and_which_was_chosen(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    page = write_report(result_of(dataset, [question(1, predicted=2, margin=0.75)]), tmp_path, root=dataset.root)
    ask = {
        "right": "[...document.querySelectorAll('.right')].map((e) => e.innerText)",
        "chosen": "[...document.querySelectorAll('.chosen')].map((e) => e.innerText)",
    }
    report = browser.open_page(page.as_uri(), max_videos=0, ask=ask)
    (right,), (chosen,) = report.answers["right"], report.answers["chosen"]
    assert KEYS[1] in right and "0.100" in right and "#C C does" in right
    assert KEYS[3] in chosen and "0.700" in chosen
    assert "margin -0.600" in report.text


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_hostile_texts_come_out_as_texts(dataset: Dataset, browser: Browser, tmp_path: Path, is_dark: bool) -> None:
    items = [question(i, predicted=i % 3, asked=t, texts=t) for i, t in enumerate(HOSTILE)]
    nasty = " ".join(HOSTILE[:5])
    result = result_of(
        dataset,
        items,
        benchmark=nasty,
        checkpoint=nasty,
        settings={nasty: {nasty: nasty}},
        missing=[Missing(item=nasty, reason=nasty)],
        curves={nasty: [(0, 1), (1, 2)]},
        confusion=Confusion(labels=[nasty, HOSTILE[6]], counts=[[1, 2], [3, 4]]),
        scores=[Score(name=nasty, value=1.0, low=0.0, high=2.0, items=1, of=1, published={nasty: 3.0})],
    )
    page = write_report(result, tmp_path, root=dataset.root)
    ask = {
        "foreign": "document.querySelectorAll('script:not(.plot > script), h1, [onerror], [onload]').length",
        "ground": "getComputedStyle(document.body).backgroundColor",
        "asked": "[...document.querySelectorAll('.title')].map((e) => e.textContent)",
    }
    report = browser.open_page(page.as_uri(), max_videos=3, is_dark=is_dark, ask=ask)
    assert_sound(report)
    assert report.title.startswith(nasty[:40])
    assert report.answers["foreign"] == 3, "our heading, our script and the chart library"
    asked = set(report.answers["asked"])
    for hostile in HOSTILE[:5]:
        assert hostile in asked
    assert any(t.startswith("one one") and "(12,000 characters)" in t for t in asked), "cut where it is endless"
    assert report.answers["ground"] == ("rgb(22, 23, 26)" if is_dark else "rgb(246, 245, 242)")
    assert report.width <= 1280


def test_a_phone_need_not_scroll_sideways(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    labels = [f"class {i} with a long name of its own" for i in range(60)]
    counts = [[(i * j) % 7 for j in range(60)] for i in range(60)]
    items = [question(i, predicted=i % 2, asked=HOSTILE[-1]) for i in range(4)]
    result = result_of(dataset, items, confusion=Confusion(labels=labels, counts=counts))
    page = write_report(result, tmp_path, root=dataset.root)
    report = browser.open_page(page.as_uri(), width=390, height=844, max_videos=1)
    assert_sound(report)
    assert report.width == 390
    assert "The 40 of 60 classes that are confused most" in report.text


def test_all_options_play_at_one_press(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    page = write_report(result_of(dataset, [question(1, predicted=2)]), tmp_path, root=dataset.root)
    playing = "[...document.querySelectorAll('.options video')].filter((v) => !v.paused).length"
    ask = {"press": "document.querySelector('.item button').click()", "playing": playing}
    assert browser.open_page(page.as_uri(), max_videos=0, ask=ask).answers["playing"] == 4


def test_low_rate_films_are_shown_faster_and_say_so(browser: Browser, tmp_path: Path) -> None:
    summary = coded_summary(0, seconds=6, narrations=2)
    dataset = coded_dataset(tmp_path / "shards", (2,), summaries=[summary])
    option = Option(key=summary.key, text="", score=1.0)
    item = Item(id="0", group="", text="q", score=100.0, answer=summary.key, predicted=summary.key, options=[option])
    fingerprint = dataset.split("summaries", "train").fingerprint
    result = result_of(dataset, [item], set_name="summaries", fingerprint=fingerprint)
    page = write_report(result, tmp_path / "page", root=dataset.root)
    report = browser.open_page(page.as_uri(), ask={"rate": "document.querySelector('video').playbackRate"})
    assert_sound(report)
    assert report.answers["rate"] == 8 and "played 8× as fast" in report.text
    assert report.videos[0].advanced > 0.15


def test_a_page_without_its_shards_says_so_and_keeps_the_scores(
    dataset: Dataset, browser: Browser, tmp_path: Path
) -> None:
    page = write_report(result_of(dataset, [question(1, predicted=2)]), tmp_path, root=tmp_path / "absent")
    report = browser.open_page(page.as_uri())
    assert report.console_errors == [] and outside(report) == []
    assert "could not be read" in report.text and "62.5" in report.text
    assert report.videos == []


def test_shards_that_changed_since_are_pointed_out(dataset: Dataset, tmp_path: Path) -> None:
    result = result_of(dataset, [question(1, predicted=2)], fingerprint="cd" * 32)
    assert "shards have changed" in write_report(result, tmp_path, root=dataset.root).read_text()


def test_withdrawn_videos_are_not_shown(tmp_path: Path) -> None:
    dataset = coded_dataset(tmp_path / "shards", (7, 5), per_video=4)
    (dataset.root / "denylist.txt").write_text("video-000\n")
    write_report(result_of(dataset, [question(1, predicted=2)]), tmp_path / "page", root=dataset.root)
    shown = {path.stem for path in (tmp_path / "page" / "media").iterdir()}
    assert shown == {KEYS[4]}, "the question's other three are of the withdrawn video"


def test_films_past_the_bound_are_pictures_only(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    page = write_report(result_of(dataset, [question(1, predicted=2)]), tmp_path, root=dataset.root, max_bytes=2 * 5000)
    report = browser.open_page(page.as_uri())
    assert_sound(report)
    assert len(list((tmp_path / "media").glob("*.jpg"))) == 4
    films = list((tmp_path / "media").glob("*.mp4"))
    assert len(films) == len(report.videos) < 4


def test_media_come_from_a_url_too(dataset: Dataset, tmp_path: Path) -> None:
    with serve(dataset.root) as url:
        source = SourceConfig(cache=tmp_path / "cache")
        result = result_of(dataset, [question(1, predicted=2)])
        page = write_report(result, tmp_path / "page", root=url, source=source)
    assert "could not be read" not in page.read_text()
    assert len(list((tmp_path / "page" / "media").glob("*.mp4"))) == 4


def test_keys_that_are_paths_write_nothing_anywhere(dataset: Dataset, tmp_path: Path) -> None:
    evil = "../../evil"
    options = [Option(key=evil, text="t", score=1.0), Option(key=KEYS[0], text="t", score=0.0)]
    item = Item(id=evil, group="", text="q", score=0.0, answer=KEYS[0], predicted=evil, options=options)
    write_report(result_of(dataset, [item]), tmp_path / "a" / "b", root=dataset.root)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"report.md", "index.html", library_name(), f"{KEYS[0]}.jpg", f"{KEYS[0]}.mp4"}


def test_the_surest_come_first_and_groups_share_the_page() -> None:
    items = [question(i, predicted=i % 4 // 2, margin=0.1 + 0.05 * i) for i in range(200)]
    for shown in choose(items):
        assert len(shown.best) == len(shown.worst) == 12
        assert all(item.score == 100 for item in shown.best) and all(item.score == 0 for item in shown.worst)
        best, worst = [margin(item) for item in shown.best], [margin(item) for item in shown.worst]
        assert best == sorted(best, reverse=True) and worst == sorted(worst)
        mine = [item for item in items if item.group == shown.group]
        assert best[0] == max(margin(item) for item in mine) and worst[0] == min(margin(item) for item in mine)
    assert {shown.group for shown in choose(items)} == {"inter", "intra"}


def test_no_question_is_shown_twice() -> None:
    half = Option(key="a", text="", score=0.0)
    items = [
        Item(id=str(i), group="g", text="", score=10.0 * i, answer="a", predicted="a", options=[half]) for i in range(7)
    ]
    (shown,) = choose(items)
    ids = [item.id for item in (*shown.best, *shown.worst)]
    assert len(ids) == len(set(ids))
    assert shown.worst[0].id == "0"


def test_the_markdown_table_stands_beside_the_published_figures(dataset: Dataset, tmp_path: Path) -> None:
    write_report(result_of(dataset, [question(1, predicted=2)]), tmp_path, root=None)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| score | percent | 95 % | chance | scored | tied | HierVL-SA | HierVL-Avg | EgoVLP |" in lines
    assert "| inter accuracy | 62.5 | 50.1 to 75.0 | 20.0 | 1 of 3 | 1 | 90.5 | 90.3 | – |" in lines
    assert "| intra accuracy | 41.0 | – | – | 1 of 1 | 0 | – | – | 57.2 |" in lines
    assert "- 2: clip not packed: decode\\_error" in lines
    assert "| video.frames | 4 |" in lines


@pytest.mark.parametrize("hostile", HOSTILE)
def test_markdown_shows_hostile_texts(dataset: Dataset, hostile: str) -> None:
    from markdown_it import MarkdownIt

    result = result_of(
        dataset, [], scores=[Score(name=hostile, value=1.0, low=None, high=None, items=1, of=1, published={})]
    )
    rendered = MarkdownIt("commonmark").enable("table").render(markdown(result))
    (row,) = [line for line in rendered.split("<tr>") if "<td>" in line and "1 of 1" in line]
    shown = html.unescape(row.split("</td>")[0].removeprefix("\n<td>"))
    assert shown == " ".join(hostile[:500].split()).replace("\0", "\ufffd")
    assert "<script" not in rendered and "<img" not in rendered


def test_an_empty_result_still_has_a_page(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    page = write_report(result_of(dataset, [], scores=[], curves={}, missing=[]), tmp_path, root=dataset.root)
    report = browser.open_page(page.as_uri())
    assert report.console_errors == []
    assert "Nothing was scored" in report.text


def test_figures_that_are_not_numbers_are_drawn_as_absent(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    options = [Option(key=KEYS[0], text="", score=nan), Option(key=KEYS[1], text="", score=inf)]
    item = Item(id="0", group="g", text="q", score=nan, answer=KEYS[0], predicted=KEYS[1], options=options)
    result = result_of(
        dataset,
        [item],
        scores=[Score(name="s", value=nan, low=nan, high=inf, items=1, of=1, published={"x": nan})],
        curves={"c": [(nan, 1.0)], "d": [(0.0, 1e300), (1.0, -1e300)]},
    )
    report = browser.open_page(write_report(result, tmp_path, root=dataset.root).as_uri())
    assert_sound(report)


def test_the_overview_links_each_benchmark_that_has_a_page(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    first, second = result_of(dataset, [question(1, predicted=0)]), result_of(dataset, [], benchmark="epic_mir")
    write_report(first, tmp_path / "egomcq", root=dataset.root)
    page = write_overview([first, second], tmp_path)
    ask = {"links": "[...document.links].map((link) => link.getAttribute('href'))"}
    report = browser.open_page(page.as_uri(), width=390, ask=ask)
    assert report.console_errors == [] and outside(report) == []
    assert report.answers["links"] == ["egomcq/index.html"] * 2, "one for each score"
    assert "epic_mir" in report.text and report.width == 390
    assert "## [egomcq](egomcq/report.md)" in (tmp_path / "report.md").read_text()


def test_the_overview_keeps_the_scores_of_all_benchmarks_in_one_list(dataset: Dataset, tmp_path: Path) -> None:
    first, second = result_of(dataset, [question(1, predicted=0)]), result_of(dataset, [], benchmark="epic_mir")
    for result in (first, second):
        result.save(tmp_path / result.benchmark)
    write_overview([first, second], tmp_path)
    every = json.loads((tmp_path / "scores.json").read_text())
    assert every == [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("egomcq", "epic_mir")]
    assert {"name", "value", "low", "high", "chance", "items", "of"} <= every[0]["scores"][0].keys()
    assert [score["chance"] for score in every[0]["scores"]] == [20.0, None]
    assert [result.benchmark for result in load_results(tmp_path)] == ["egomcq", "epic_mir"]


def test_all_scores_can_be_read_at_phone_width(dataset: Dataset, browser: Browser, tmp_path: Path) -> None:
    page = write_report(result_of(dataset, [question(1, predicted=0)]), tmp_path, root=dataset.root)
    visible = """[...document.querySelectorAll("table")[0].querySelectorAll("td")].map((cell) => {
      cell.scrollIntoView({ block: "center" });
      const range = document.createRange();
      range.selectNodeContents(cell);
      const box = range.getBoundingClientRect(), label = getComputedStyle(cell, "::before").content;
      return [label, cell.textContent, box.left >= 0 && box.right <= 390 && box.width > 0];
    })"""
    report = browser.open_page(page.as_uri(), width=390, height=844, max_videos=0, ask={"cells": visible})
    cells = report.answers["cells"]
    assert all(is_visible for _, _, is_visible in cells)
    for label, value in (("percent", "62.5"), ("95 %", "50.1 to 75.0"), ("chance", "20.0"), ("HierVL-SA", "90.5")):
        assert [f'"{label}"', value, True] in cells
