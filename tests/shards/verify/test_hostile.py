"""Files that are something else than they seem: each is named by verify, and nothing hangs, crashes or fills memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards import files
from shards.dataset import hash_json
from tests.shards.verify import forgery
from tests.shards.verify.boundary import found_by_verify, inspected, load
from tests.shards.verify.forgery import CLIPS, QUESTIONS, SECOND

KEY = "video-a_c1_000001"
NAMES = (
    "dataset.json", "README.md", "ledger.parquet", "spans.parquet", "denylist.txt", QUESTIONS, "clips", "clips/train",
    f"{CLIPS}.tar", f"{CLIPS}.parquet", f"{CLIPS}_stats.json", "clips/train/sizes.json", "clips/train/shardindex.json",
)  # fmt: skip
Forge = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "shards"
    forgery.make(root)
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "shards")


def text_of(root: Path) -> str:
    return "\n".join(f"{found.file} [{found.key}] {found.problem}" for found in found_by_verify(root))


def as_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def as_sparse_terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def as_link_outside(path: Path) -> None:
    other = path.parents[len(path.parts) - 1 - path.parts.index("shards")] / f"outside-{path.name}"
    if (kept := path.with_name(f"kept-{path.name}")).exists():
        kept.rename(other)
    path.symlink_to(other)


REPLACEMENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, ""),
    "an empty file": (lambda path: path.write_bytes(b""), ""),
    "a folder": (lambda path: path.mkdir(), "folder"),
    "a FIFO": (os.mkfifo, "FIFO"),
    "a socket": (as_socket, "socket"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), ""),
    "a link to itself": (lambda path: path.symlink_to(path.name), ""),
    "a sparse terabyte": (as_sparse_terabyte, ""),
    "random bytes": (lambda path: path.write_bytes(bytes(range(256)) * 40), ""),
}


def some(values: Iterable[str], fast: Collection[str]) -> list[Any]:
    """Return parameters of a test, all but `fast` marked as slow."""
    return [pytest.param(value, marks=[] if value in fast else [pytest.mark.slow]) for value in values]


@pytest.mark.parametrize("name", some(NAMES, ("dataset.json", f"{CLIPS}.tar", f"{CLIPS}.parquet", "clips/train")))
@pytest.mark.parametrize("kind", some(REPLACEMENTS, ("a FIFO", "a folder", "a device", "a sparse terabyte")))
def test_something_else_in_place_of_a_file(root: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = root / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    REPLACEMENTS[kind][0](path)
    findings = found_by_verify(root)
    folder = name.startswith("clips") and "." not in name and kind in ("nothing", "a folder")
    named = {finding.file for finding in findings}
    if name == "denylist.txt" and kind in ("a dangling link", "nothing", "an empty file"):
        assert named <= {name}
    elif folder:
        assert any("clips/train" in finding.problem or "clips/train" in finding.file for finding in findings)
    else:
        shard = name.removesuffix("_stats.json")
        assert any(finding.file.startswith(shard) or name in finding.problem for finding in findings), findings
    load(root)
    inspected(root, tmp_path / "page.html")


def test_links_that_leave_the_dataset_are_named_and_those_within_are_not(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere.tar"
    (root / f"{CLIPS}.tar").rename(other)
    (root / f"{CLIPS}.tar").symlink_to(other)
    (root / "clips/val").rename(tmp_path / "val")
    (root / "clips/val").symlink_to(tmp_path / "val")
    (root / "README.md").rename(root / "card.md")
    (root / "README.md").symlink_to("card.md")
    findings = found_by_verify(root)
    assert {finding.file for finding in findings} == {f"{CLIPS}.tar", "clips/val"}
    assert all(
        "a symbolic link to" in finding.problem and "outside the dataset" in finding.problem for finding in findings
    )
    link = tmp_path / "link"
    link.symlink_to(root)
    assert found_by_verify(link) == findings  # the root itself may be a link


def test_names_that_are_not_text(root: Path, tmp_path: Path) -> None:
    for name in (b"caf\xe9.tar", b"a\nb", b"\x1b[31mred", "\u202egpj.tar".encode(), b"-rf"):
        (root / "clips/train" / os.fsdecode(name)).write_bytes(b"x")
    assert len(found_by_verify(root)) == 5
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "shards.verify", str(root), "--workers", "0", "--json", str(report)]
    for encoding in ("utf-8", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 1 and b"Traceback" not in done.stderr, done
        assert b"\x1b[31m" not in done.stdout and b"caf" in done.stdout
    assert len(json.loads(report.read_text())["findings"]) == 5


def test_the_index_of_energon_is_noted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from shards.verify.__main__ import main

    (root / "clips/.nv-meta").mkdir()
    (root / "clips/.nv-meta/dataset.yaml").write_text("{}")
    (root / f"{CLIPS}.tar.idx").write_bytes(bytes(8))
    assert main([str(root), "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "note: clips/.nv-meta: Megatron-Energon's index" in printed and "00000.tar.idx" in printed


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"video-a\n\xff\xfe\n", "denylist.txt [] denylist.txt: cannot be read"),
        ("video-a\n".encode("utf-16"), "denylist.txt [] denylist.txt: "),
        (b"video-a\0\n", "denylist.txt [] denylist.txt: not a denylist"),
        (b"video-a, val-video\n", "the line 'video-a, val-video' is no video"),
        (b"video-a val-video\n", "the line 'video-a val-video' is no video"),
    ],
)
def test_a_denylist_that_withdraws_nothing(root: Path, tmp_path: Path, data: bytes, problem: str) -> None:
    (root / "denylist.txt").write_bytes(data)
    assert problem in text_of(root)
    load(root)
    inspected(root, tmp_path / "page.html")


def test_a_denylist_with_a_byte_order_mark_withdraws(root: Path) -> None:
    (root / "denylist.txt").write_bytes(b"\xef\xbb\xbfvideo-a\r\nP01_01.take.2")
    assert found_by_verify(root) == ()
    assert load(root)["samples"] == 2 + 2 + 0 + 3 - 2  # val, egomcq; no clips or summaries of the withdrawn videos


def jpg_of(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims a size."""
    sink = io.BytesIO()
    Image.new("RGB", (64, 48)).save(sink, "JPEG")
    data = sink.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def many_scans() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (64, 48)).save(sink, "JPEG", progressive=True)
    return sink.getvalue()


def mp4_with(mp4: bytes, find: bytes, at: int, value: bytes) -> bytes:
    place = mp4.index(find) + at
    return mp4[:place] + value + mp4[place + len(value) :]


MEMBERS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "65500 × 65500 pixels": ("jpg", lambda jpg: jpg_of(65500, 65500), "jpg: the image cannot be decoded"),
    "9000 × 9000 pixels": ("jpg", lambda jpg: jpg_of(9000, 9000), "jpg: the image "),
    "no pixels": ("jpg", lambda jpg: jpg_of(0, 0), "jpg: "),
    "a progressive image": ("jpg", lambda jpg: many_scans(), "jpg: the image is a RGB JPEG, perhaps progressive"),
    "a PNG": ("jpg", lambda jpg: b"\x89PNG\r\n\x1a\n" + bytes(100), "jpg: the image cannot be decoded"),
    "a page": ("jpg", lambda jpg: b"<script>alert(1)</script>", "jpg: the image cannot be decoded"),
    "a video of 65535 × 65535": ("mp4", lambda mp4: mp4_with(mp4, b"avc1\0\0\0\0", 28, b"\xff\xff\xff\xff"), "mp4: "),
    "four billion packets": ("mp4", lambda mp4: mp4_with(mp4, b"stsz", 12, b"\xff\xff\xff\xff"), "mp4: "),
    "four billion repeats": ("mp4", lambda mp4: mp4_with(mp4, b"stts", 12, b"\xff\xff\xff\xff"), "mp4: "),
    "an endless box": ("mp4", lambda mp4: mp4_with(mp4, b"moov", -4, b"\xff\xff\xff\xff"), "mp4: "),
    "half a video": ("mp4", lambda mp4: mp4[: len(mp4) // 2], "mp4: "),
    "a list of files": ("mp4", lambda mp4: b"ffconcat version 1.0\nfile /etc/passwd\n", "mp4: "),
    "a playlist": ("mp4", lambda mp4: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "mp4: "),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_hostile_member(root: Path, tmp_path: Path, name: str) -> None:
    ext, make, problem = MEMBERS[name]
    forgery.records(root, CLIPS, lambda made: made[1].update({ext: make(made[1][ext])}))
    assert f"{CLIPS}.tar [{KEY}] {problem}" in text_of(root)
    load(root)
    inspected(root, tmp_path / "page.html")


JSONS = {
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep but closed": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "a huge number": b'{"schema_version":' + b"9" * 100_000 + b"}",
    "an exponent": b'{"schema_version":1e999}',
    "no UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a lone surrogate": b'{"a":"\\ud800"}',
    "NUL": b'{"a":1}\0',
    "a name twice": b'{"a":1,"a":2}',
    "a list": b"[1]",
    "null": b"null",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", some(JSONS, ("deep but closed", "no UTF-8", "a lone surrogate", "a name twice")))
def test_hostile_json(root: Path, tmp_path: Path, kind: str) -> None:
    for name in ("dataset.json", f"{CLIPS}_stats.json", QUESTIONS, "clips/train/sizes.json"):
        kept = (root / name).read_bytes()
        (root / name).write_bytes(JSONS[kind])
        assert any(finding.file == name for finding in found_by_verify(root)), name
        load(root)
        inspected(root, tmp_path / "page.html")
        (root / name).write_bytes(kept)
    forgery.records(root, CLIPS, lambda made: None)
    data = (root / f"{CLIPS}.tar").read_bytes()
    at = data.index(b'{"video_uid"')
    raw = JSONS[kind][: data.index(b"\0", at) - at]
    (root / f"{CLIPS}.tar").write_bytes(
        data[:at] + raw.ljust(data.index(b"\0", at) - at) + data[data.index(b"\0", at) :]
    )
    forgery.resign(root)
    assert f"{CLIPS}.tar [video-a_c1_000000] json: " in text_of(root)
    assert load(root)["substituted"] > 0
    inspected(root, tmp_path / "page.html")


def test_a_signed_manifest_with_a_lone_surrogate_or_deep_values(root: Path, tmp_path: Path) -> None:
    value = json.loads((root / "dataset.json").read_text())
    value["provenance"]["note"] = ["x"]
    for _ in range(500):
        value["provenance"]["note"] = [value["provenance"]["note"]]
    value.pop("sha256")
    files.write_json(root / "dataset.json", {**value, "sha256": hash_json(value)})
    assert "dataset.json [] dataset.json: not JSON: more than 64 levels" in text_of(root)
    assert "more than 64 levels" in inspected(root, tmp_path / "page.html")


def bomb(name: str, rows: int, value: str) -> Forge:
    def forge(root: Path) -> None:
        columns = {}
        for field in pq.read_schema(root / name):  # stored once, and repeated by a few bytes
            repeated = value if field.type == pa.string() else 0
            index = pa.array(np.zeros(rows, np.int32))
            columns[field.name] = pa.DictionaryArray.from_arrays(index, pa.array([repeated], field.type))
        pq.write_table(pa.table(columns), root / name, compression="zstd", store_schema=False)

    return forge


def changed(name: str, change: Callable[[pa.Table], pa.Table]) -> Forge:
    return lambda root: pq.write_table(change(pq.read_table(root / name)), root / name)


def each(change: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    """Return the change of a table that changes each of its columns."""
    return lambda table: pa.table({name: change(table[name]) for name in table.column_names})


TABLES: dict[str, Callable[[str], Forge]] = {
    "ten million rows": lambda name: bomb(name, 10_000_000, "x"),
    "rows of a megabyte": lambda name: bomb(name, 1000, "x" * (8 << 20)),
    **{
        kind: partial(changed, change=change)
        for kind, change in {
            "no rows": lambda table: table.slice(0, 0),
            "half of the rows": lambda table: table.slice(0, len(table) // 2),
            "no columns": lambda table: table.select([]),
            "another column": lambda table: table.append_column("x", pa.nulls(len(table))),
            "a column twice": lambda table: table.append_column(table.column_names[0], table[0]),
            "numbers as text": each(lambda column: column.cast(pa.string())),
            "nulls": each(lambda column: pa.nulls(len(column), column.type)),
            "lists": each(lambda column: pa.array([[1]] * len(column))),
            "binary": each(lambda column: pa.array([b"\xff"] * len(column))),
            "dictionaries": each(lambda c: c.dictionary_encode() if c.type == pa.string() else c),
        }.items()
    },
}


@pytest.mark.parametrize("name", some((f"{CLIPS}.parquet", "ledger.parquet", "spans.parquet"), (f"{CLIPS}.parquet",)))
@pytest.mark.parametrize("kind", some(TABLES, [kind for kind in TABLES if not kind.startswith("ten million")]))
def test_hostile_tables(root: Path, tmp_path: Path, name: str, kind: str) -> None:
    TABLES[kind](name)(root)
    forgery.resign(root)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    findings = found_by_verify(root)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 3 << 20, f"{grown >> 10} MiB more"
    is_ledger = name == "ledger.parquet"
    harmless = kind == "dictionaries" or (kind == "another column" and not name.startswith("clips"))
    harmless |= kind == "numbers as text" and is_ledger  # it has none
    assert harmless or any(finding.file == name for finding in findings), findings
    load(root)
    inspected(root, tmp_path / "page.html")


def header(name: str, size: int, *, kind: bytes = tarfile.REGTYPE, format: int = tarfile.USTAR_FORMAT) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, 0o644
    return info.tobuf(format)


def with_size(block: bytes, field: bytes) -> bytes:
    block = block[:124] + field + block[136:]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


TARS: dict[str, Callable[[bytes], bytes]] = {
    "an absolute name": lambda data: header("/etc/x.jpg", 0) + data,
    "a name that leaves": lambda data: header("../x.jpg", 0) + data,
    "a PAX header": lambda data: header("PaxHeaders/x", 0, kind=tarfile.XHDTYPE) + data,
    "a long GNU name": lambda data: header("a" * 200 + ".jpg", 0, format=tarfile.GNU_FORMAT) + data,
    "a long PAX name": lambda data: header("ä" * 120 + ".jpg", 0, format=tarfile.PAX_FORMAT) + data,
    "a sparse member": lambda data: header(f"{KEY}.jpg", 0, kind=tarfile.GNUTYPE_SPARSE) + data,
    "a negative size": lambda data: with_size(data[:512], b"\xff" * 12) + data[512:],
    "a size in base 256": lambda data: with_size(data[:512], b"\x80" + bytes(7) + b"\1\0\0\0") + data[512:],
    "a size of 8 GiB": lambda data: with_size(data[:512], b"77777777777\0") + data[512:],
    "a size with spaces": lambda data: with_size(data[:512], b"        100 ") + data[512:],
    "a wrong checksum": lambda data: data[:148] + b"000000\0 " + data[156:],
    "a member twice": lambda data: data[: 512 + 1024] + data,
    "a tar after the end": lambda data: data + data,
    "the first half": lambda data: data[: len(data) // 2],
    "no end": lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
    "zeros in the middle": lambda data: data[:10240] + bytes(1024) + data[11264:],
    "compressed": lambda data: gzip.compress(data),
    "only zeros": lambda data: bytes(10240),
}


@pytest.mark.parametrize(
    "kind", some(TARS, ("a name that leaves", "a PAX header", "a negative size", "the first half"))
)
def test_hostile_tars(root: Path, tmp_path: Path, kind: str) -> None:
    path = root / f"{SECOND}.tar"
    path.write_bytes(TARS[kind](path.read_bytes()))
    forgery.resign(root)
    assert any(finding.file == f"{SECOND}.tar" for finding in found_by_verify(root))
    load(root)
    inspected(root, tmp_path / "page.html")


def test_files_that_may_not_be_read(root: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    for name in NAMES:
        if (root / name).exists():
            mode = (root / name).stat().st_mode
            (root / name).chmod(0)
            assert found_by_verify(root), name
            load(root)
            inspected(root, tmp_path / "page.html")
            (root / name).chmod(mode)


def test_hostile_text_stays_text(root: Path, tmp_path: Path) -> None:
    evil = "</p><script>alert(1)</script>\x1b[2J\x9b31m\0\u202e<img src=x onerror=alert(2)>[bold]"
    forgery.record(root, SECOND, 0, text=evil)
    assert found_by_verify(root) == ()  # odd, but consistent
    printed = inspected(root, tmp_path / "page.html")
    assert "\x1b[2J" not in printed and "\x9b" not in printed and "\u202e" not in printed
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and "&lt;script&gt;alert(1)" in page


def test_the_command_ends_with_the_documented_codes(root: Path, tmp_path: Path) -> None:
    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shards.verify", *map(str, arguments), "--workers", "1"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    (root / "dataset.json").unlink()
    os.mkfifo(root / "dataset.json")
    done = run(root)
    assert done.returncode == 1 and "dataset.json: a FIFO in place of a file" in done.stdout, done
    for usage in ((tmp_path / "nowhere",), (root / "README.md",), ("--workers",)):
        done = run(*usage)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done
    done = run(root, "--json", tmp_path / "nowhere" / "report.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done
