"""The pages work in a real browser: players play, filters filter, keys move, nothing leaves this server."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.browser import Browser, PageReport
from tests.shards.browse.conftest import EVIL_VIDEO, Served

PAGES = (
    "/", "/videos", "/video?uid=video-a&at=video-a_c1_000001", "/video?uid=" + quote(EVIL_VIDEO), "/search?q=c",
    "/losses", "/distributions",    "/sample/video-a_s1_000001", "/nothing",
)  # fmt: skip
ORDER = "[...document.querySelectorAll('a.play')].map((item) => item.dataset.key)"


def stage_becomes(expected: str) -> str:
    """Return what waits, 10 s at most, until the stage shows `expected`, and returns what it shows."""
    return f"""new Promise((done) => {{
      const end = Date.now() + 10000;
      const look = setInterval(() => {{
        const video = document.querySelector("#stage video");
        const found = video.getAttribute("src").split("#")[0] + (video.paused ? " paused" : " plays");
        if (found === "{expected}" || Date.now() > end) {{ clearInterval(look); done(found); }}
      }}, 30);
    }})"""


def leaving(served: Served, report: PageReport) -> list[str]:
    """Return the requests of a page to anything but the server."""
    return [url for url in report.requests if not url.startswith(served.url + "/")]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("width", "is_dark"), [(1280, False), (390, True)])
def test_pages_fit_and_play_without_an_error_or_a_foreign_request(
    browser: Browser, served: Served, page: str, width: int, is_dark: bool
) -> None:
    report = browser.open_page(served.url + page, width=width, is_dark=is_dark, max_videos=3, play_seconds=10)
    errors = [error for error in report.console_errors if "404" not in error or page != "/nothing"]
    assert errors == [] and leaving(served, report) == []
    assert report.width <= width
    assert all(image.width > 0 for image in report.images)
    assert all(video.problem is None and video.advanced >= 0.15 for video in report.videos)
    if "uid" in page or "search" in page or "sample" in page:
        assert report.videos


def test_a_filter_is_used_like_a_form(browser: Browser, served: Served) -> None:
    fill = """(async () => {
      const form = document.querySelector("form.filter");
      form.elements.verb.value = "tag_verb:3";
      form.elements.min.value = "0.5";
      const loaded = new FormData(form);
      return `${form.action}?${new URLSearchParams(loaded)}`;
    })()"""
    address = browser.open_page(f"{served.url}/videos", max_videos=0, ask={"address": fill}).answers["address"]
    report = browser.open_page(address, max_videos=0)
    assert "2 videos" in report.text and "two-passes" in report.text and "val-video" not in report.text
    chosen = "document.querySelector('select[name=verb]').selectedOptions[0].textContent"
    assert browser.open_page(address, max_videos=0, ask={"verb": chosen}).answers["verb"] == "juggle"


def test_a_click_on_the_timeline_plays_that_sample(browser: Browser, served: Served) -> None:
    click = "document.querySelector('.timeline a[data-key=\"video-a_c1_000002\"]').click()"
    ask = {
        "click": click,
        "playing": stage_becomes("/media/video-a_c1_000002.mp4 plays"),
        "words": "document.querySelector('#stage .title').textContent",
        "at": "location.search",
    }
    report = browser.open_page(f"{served.url}/video?uid=video-a", max_videos=0, ask=ask)
    assert report.answers["playing"] == "/media/video-a_c1_000002.mp4 plays"
    assert report.answers["words"].startswith('#C C says "stop"')
    assert report.answers["at"].endswith("at=video-a_c1_000002"), "a reload shows it again"
    assert report.console_errors == [] and leaving(served, report) == []


def test_the_arrow_keys_and_the_space_bar_move_and_play(browser: Browser, served: Served) -> None:
    def press(key: str) -> str:
        return f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))"

    keys = ["val-video_c1_000001", "val-video_c1_000002"]
    expected = {
        "right": f"/media/{keys[1]}.mp4 plays",
        "space": f"/media/{keys[1]}.mp4 paused",
        "left": f"/media/{keys[0]}.mp4 plays",
    }
    ask = {}
    for name, key in (("right", "ArrowRight"), ("space", " "), ("left", "ArrowLeft")):
        ask |= {f"press {name}": press(key), name: stage_becomes(expected[name])}
    report = browser.open_page(f"{served.url}/video?uid=val-video&at={keys[0]}", max_videos=0, ask=ask)
    assert {name: report.answers[name] for name in expected} == expected


def test_play_on_goes_through_the_samples_in_the_order_of_time(browser: Browser, served: Served) -> None:
    go = """new Promise((done) => {
      const seen = [];
      document.querySelector("#stage .on").click();
      const look = setInterval(() => {
        const source = document.querySelector("#stage video").getAttribute("src").match(/media\\/(.*)\\.mp4/)[1];
        if (!seen.includes(source)) seen.push(source);
        if (seen.length === 3) { clearInterval(look); done(seen); }
      }, 30);
      setTimeout(() => done(seen), 15000);
    })"""
    report = browser.open_page(
        f"{served.url}/video?uid=val-video",
        max_videos=0,
        ask={"seen": go, "order": ORDER},
    )
    assert report.answers["seen"] == report.answers["order"][:3]


def test_without_scripts_the_links_lead_to_the_same(served: Served) -> None:
    text = served.get("/video?uid=video-a&at=video-a_c1_000003").text
    stage = text[text.index('id="stage"') : text.index('class="timeline')]
    assert "/media/video-a_c1_000003.mp4" in stage and "at=video-a_c1_000002#stage" in stage


def test_everything_is_reached_by_the_keyboard(browser: Browser, served: Served) -> None:
    def every(selector: str) -> str:
        return f"[...document.querySelectorAll('{selector}')]"

    ask = {
        "clickable": f"{every('[onclick], [role=button]')}.length",
        "focusable": f"{every('a.play, nav a, #stage button, #stage video')}.every(e => e.tabIndex >= 0)",
        "named": f"{every('input, select, video, [role=img]')}.every(e => e.ariaLabel || e.closest('label'))",
        "images": "[...document.images].every(e => e.hasAttribute('alt'))",
    }
    for page in ("/video?uid=video-a", "/videos", "/search", "/distributions"):
        answers = browser.open_page(served.url + page, max_videos=0, ask=ask).answers
        assert answers == {"clickable": 0, "focusable": True, "named": True, "images": True}, page


def test_long_videos_come_in_parts(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    from shards.browse import timeline
    from shards.browse.frame import Site
    from shards.config import SourceConfig
    from shards.search.catalog import open_catalog
    from shards.sources import open_source

    source = open_source(shutil.copytree(served.root, tmp_path / "shards"), SourceConfig())
    site = Site(source=source, catalog=open_catalog(source, tmp_path / "catalog.sqlite"), name="shards")
    monkeypatch.setattr(timeline, "WINDOW", 3)
    query, seen = {"uid": "video-a"}, []
    for _ in range(9):
        html = "".join(str(part) for part in timeline.video(site, query).body if part is not None)
        seen += re.findall(r'class="play"[^>]*data-key="([^"]*)"', html)
        later = re.search(r"from=([\d.]+)\"[^>]*>later", html)
        if later is None:
            break
        query = {"uid": "video-a", "from": later[1]}
    assert sorted(set(seen)) == sorted(s.key for s in site.catalog.of_video("video-a", begin=-1, end=1e9, limit=99))
    assert ">← earlier<" in html
