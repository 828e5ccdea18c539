"""The server shows a dataset and nothing else: ranges from the tars, no other host, no path, no markup of others."""

from __future__ import annotations

import re
import socket
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from shards.browse.__main__ import main
from shards.dataset import open_dataset, read_member
from tests.shards.browse.conftest import EVIL, EVIL_VIDEO, Served, serve

pytestmark = pytest.mark.medium
PAGES = (
    "/",
    "/videos",
    "/search?q=c",
    "/losses",
    "/distributions",
    "/video?uid=video-a",
    "/video?uid=" + quote(EVIL_VIDEO),
)


def rows_of(root: Path) -> dict[str, tuple[Path, dict]]:
    dataset = open_dataset(root)
    return {
        row["key"]: (shard.path, row)
        for _, _, split in dataset.splits()
        for shard in split.shards
        for row in shard.rows().to_pylist()
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere_on_this_server(served: Served, page: str) -> None:
    answer = served.get(page)
    assert answer.status_code == 200
    links = {
        unescape(found) for found in re.findall(r'(?:href|src|poster|data-video|data-poster)="([^"]*)"', answer.text)
    }
    assert len(links) > 6
    for link in links - {"data:,", "#main"}:
        assert link.startswith("/") and not link.startswith("//"), link
        assert served.get(link).status_code == 200, link


def test_hostile_texts_are_shown_as_texts(served: Served) -> None:
    for page in (*PAGES, "/search?q=" + quote("<script>alert(9)</script> c"), "/videos?q=" + quote('"><script>')):
        text = served.get(page).text
        assert not re.search(r"<script(?! src=\"/static/)", text) and "<img src=x" not in text and "<b>cut" not in text
    assert "&lt;script&gt;alert(1)" in served.get("/search?q=quoted").text


def test_a_page_of_another_host_is_refused(served: Served) -> None:
    port = urlsplit(served.url).port
    for host in (f"evil.example:{port}", "evil.example", "127.0.0.1.evil.example", "localhost.evil", ""):
        assert served.get("/", headers={"Host": host}).status_code == 400, host
    for host in (f"localhost:{port}", "127.0.0.1:9999", f"127.0.0.1:{port}"):  # 9999: through an SSH tunnel
        assert served.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/media/../../dataset.json.mp4", "/media/..%2f..%2fdataset.jpg", "/media/%2e%2e/dataset.jpg",
        "/static/../app.py", "/static/..%2fapp.py", "/static/app.py", "/media/x.txt", "/media/nobody_c1_000000.mp4",
        "/../../etc/passwd", "//etc/passwd", "/sample/..%2f..", "/sample/nobody", "/nothing", "/media/a%00b.mp4",
        "/video?uid=..%2f..%2fetc%2fpasswd",
    ],
)  # fmt: skip
def test_no_path_leads_out(served: Served, path: str) -> None:
    assert served.get(path).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/videos?split=x", "/videos?tag=nothing", "/videos?verb=tag_verb:x", "/videos?sort=none", "/videos?min=-1",
        "/videos?max=nan", "/videos?sort=longest&after=x&number=y", "/search?q=c&after=-1", 
        "/losses?reason=x&after=%2b",
        "/video?uid=video-a&from=later", "/search?q=c&split=99999999999999999999",
    ],
)  # fmt: skip
def test_addresses_without_sense_are_refused_with_the_reason(served: Served, path: str) -> None:
    answer = served.get(path)
    assert answer.status_code in (400, 404) and "<h1>" in answer.text


def test_answers_may_be_read_by_this_server_only(served: Served) -> None:
    key = next(iter(rows_of(served.root)))
    for path in ("/", f"/media/{key}.mp4", "/static/browse.js", "/nothing"):
        headers = served.get(path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"].split("script-src")[1].split(";")[0]


def test_nothing_can_be_written(served: Served) -> None:
    import requests

    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert requests.request(method, served.url + "/", timeout=30).status_code == 405


def test_it_listens_on_loopback_only(served: Served) -> None:
    port = urlsplit(served.url).port
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:
        with socket.socket() as probe, pytest.raises(OSError):
            probe.settimeout(5)
            probe.connect((str(address), port))


def test_images_are_the_bytes_of_the_tar(served: Served) -> None:
    for key, (tar, row) in rows_of(served.root).items():
        answer = served.get(f"/media/{key}.jpg")
        assert answer.content == read_member(tar, row["jpg_offset"], row["jpg_size"])
        assert answer.headers["content-type"] == "image/jpeg"


def test_ranges_are_those_of_the_whole(served: Served) -> None:
    key, (_, row) = next(iter(rows_of(served.root).items()))
    path, size = f"/media/{key}.mp4", row["mp4_size"]
    whole = served.get(path)
    assert whole.status_code == 200 and len(whole.content) == size and whole.headers["accept-ranges"] == "bytes"
    for wanted, begin, end in (
        ("bytes=0-", 0, size),
        ("bytes=0-0", 0, 1),
        (f"bytes={size - 1}-", size - 1, size),
        ("bytes=100-299", 100, 300),
        (f"bytes=10-{size * 9}", 10, size),
        ("bytes=-50", size - 50, size),
        (f"bytes=-{size * 9}", 0, size),
    ):
        part = served.get(path, headers={"Range": wanted})
        assert part.status_code == 206 and part.content == whole.content[begin:end], wanted
        assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
    for wanted in (f"bytes={size}-", "bytes=5-2", "bytes=-0"):
        refused = served.get(path, headers={"Range": wanted})
        assert refused.status_code == 416 and refused.headers["content-range"] == f"bytes */{size}"
    for wanted in ("bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=a-b"):
        assert served.get(path, headers={"Range": wanted}).content == whole.content, "what is not one range is ignored"
    tag = whole.headers["etag"]
    assert served.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert served.get(path, headers={"If-Range": '"other"', "Range": "bytes=0-1"}).status_code == 200


def test_filters_narrow_the_videos(served: Served) -> None:
    def shown(query: str) -> list[str]:
        text = served.get(f"/videos{query}").text
        return re.findall(r'href="/video\?uid=([^"&]*)', text)

    assert len(shown("")) == 7  # two of them have losses only
    assert shown("?q=juggle") == [] and len(shown("?q=drawer")) >= 3
    assert shown("?verb=tag_verb:3") == ["two-passes", "video-a"]
    assert shown("?verb=tag_verb:3&noun=tag_noun:2") == ["video-a"]
    assert shown("?min=0.9") == ["video-a", "two-passes"] or set(shown("?min=0.8")) == {"video-a", "two-passes"}
    assert shown("?split=2") == ["val-video"]
    assert shown("?sort=longest")[0] == "video-a"
    assert shown("?q=two-passes") == ["two-passes"]


def test_classes_have_names_where_they_are_known(served: Served) -> None:
    text = served.get("/video?uid=two-passes").text
    assert ">juggle<" in text and ">noun 3<" in text


def test_losses_lead_to_their_items(served: Served) -> None:
    overview = served.get("/losses").text
    address = unescape(re.search(r'href="(/losses\?[^"]*decode_error[^"]*)"', overview)[1])  # type: ignore[index]
    assert "no frame could be decoded" in served.get(address).text
    assert "damaged" in served.get("/video?uid=video-a").text, "the spans of the source"


def test_a_sample_shows_its_record_and_its_narrations(served: Served) -> None:
    page = served.get("/sample/video-a_s1_000001").text
    assert page.count('href="/sample/video-a_c1_') == 3 and "#Summary C made tea" in page
    page = served.get("/sample/video-a_c1_000001").text
    assert "narration_pass_1" in page and "Within" in page and 'href="/sample/video-a_s1_000001"' in page


def test_withdrawn_videos_are_not_shown(tmp_path: Path, served: Served) -> None:
    import shutil

    root = shutil.copytree(served.root, tmp_path / "shards")
    with serve(root, tmp_path) as other:
        assert other.get("/media/video-a_c1_000001.mp4").status_code == 200
        (root / "denylist.txt").write_text("video-a\n")
        for path in ("/media/video-a_c1_000001.mp4", "/media/video-a_c1_000001.jpg", "/sample/video-a_c1_000001"):
            assert other.get(path).status_code == 410
        assert "video-a_c1" not in other.get("/search?q=drawer").text
        assert "withdrawn" in other.get("/video?uid=video-a").text


def test_a_damaged_tar_is_an_error_page(tmp_path: Path, served: Served) -> None:
    import shutil

    root = shutil.copytree(served.root, tmp_path / "shards")
    with serve(root, tmp_path) as other:
        (root / "clips" / "train" / "00000.tar").write_bytes(b"short")
        assert other.get("/media/video-a_c1_000001.mp4").status_code == 500
        assert "cannot be read" in other.get("/sample/video-a_c1_000001").text
        assert other.get("/").status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vectors", "absent"], "no embeddings there"),
        (["--taxonomy", "verbs.csv"], "expected FIELD=FILE"),
        (["--taxonomy", "tag_verb=absent.csv"], "absent.csv"),
        (["--metadata", "absent.json"], "absent.json"),
    ],
)
def test_wrong_options_are_reported(
    served: Served, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(served.root), "--catalog", str(tmp_path / "c.sqlite"), "--port", "0", *options]
    assert main(arguments) == 2 and message in capsys.readouterr().err


def test_a_port_in_use_is_reported_with_the_remedy(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(urlsplit(served.url).port)
    assert main([str(served.root), "--catalog", str(tmp_path / "c.sqlite"), "--port", port]) == 2
    assert "--port 0 takes any free one" in capsys.readouterr().err


def test_the_hostile_caption_is_in_the_page_of_its_video(served: Served) -> None:
    assert EVIL in unescape(served.get("/video?uid=" + quote(EVIL_VIDEO)).text)
