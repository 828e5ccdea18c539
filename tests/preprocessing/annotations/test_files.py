"""Annotation files in any compression and encoding: read alike, or refused with the file's name and a remedy."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocessing.annotations import AnnotationError, AnnotationsConfig, read_annotations
from preprocessing.annotations import files as files_module
from preprocessing.annotations.files import format_suffix, open_head, open_utf8
from preprocessing.annotations.metadata import read_uids
from tests.preprocessing.annotation_files import row, table, write
from tests.preprocessing.annotations.mutations import FORMATS_READ_ALIKE, formats

FORMATS = formats()
PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def read(name: str, folder: Path, change: Callable[[bytes], bytes]) -> Any:
    """Read a format's files, all changed; return the tables and what was rejected."""
    form = FORMATS[name]
    for file, content in form.files.items():
        (folder / file).write_bytes(change(content))
    annotations = read_annotations(form.settings(folder))
    tables = {**annotations.sets, "videos": annotations.videos, "rejects": annotations.rejects}
    return {key: str(value.to_pylist()) for key, value in tables.items()}, annotations.companions


@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_unpacks_and_converts_its_files(tmp_path: Path, name: str) -> None:
    plain = read(name, tmp_path, bytes)
    for change in [*PACKERS.values(), *(lambda data, e=e: data.decode().encode(e) for e in ENCODINGS)]:
        assert read(name, tmp_path, change) == plain
    assert read(name, tmp_path, lambda data: gzip.compress(data.decode().encode("utf-16"))) == plain
    if name in FORMATS_READ_ALIKE:
        assert read(name, tmp_path, lambda data: data.replace(b"\n", b"\r\n")) == plain


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_may_have_their_usual_names(tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[suffix]
    clips = write(tmp_path / f"egoclip.csv{suffix}", packed(table([row(1), row(2, tag_verb="x")]).encode()))
    manifest = write(tmp_path / f"m.tsv{suffix}", packed(b"video_uid\ta\tduration_sec\n0a1b-2c\tx\t99.5\n"))
    listing = write(tmp_path / f"exclude.json{suffix}", packed(b'["other"]'))
    assert read_uids(listing) == ["other"]
    annotations = read_annotations(AnnotationsConfig(egoclip=clips, metadata=manifest, exclude=(listing,)))
    assert annotations.videos["duration"].to_pylist() == [99.5]
    assert annotations.rejects["item"].to_pylist() == ["0a1b-2c_c1_000002"]
    assert annotations.rejects["detail"][0].as_py().startswith(f"egoclip.csv{suffix}:3: ")


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.95])
def test_a_compressed_file_that_ends_early_or_is_damaged_is_an_error(tmp_path: Path, suffix: str, keep: float) -> None:
    data = PACKERS[suffix](table(row(i) for i in range(500)).encode())
    path = write(tmp_path / f"egoclip.csv{suffix}", data[: int(len(data) * keep)])
    with pytest.raises(AnnotationError, match=rf"egoclip\.csv\{suffix}: the compressed file .*; download it again"):
        read_annotations(AnnotationsConfig(egoclip=path))
    damaged = bytearray(data)
    damaged[int(len(data) * keep) - 10] ^= 0xFF
    with pytest.raises(AnnotationError, match=r"egoclip"):
        read_annotations(AnnotationsConfig(egoclip=write(path, bytes(damaged))))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_that_expands_without_end_is_refused_before_it_fills_the_disk(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_FREE", 4 << 20)
    line = table([row(1)]).encode()
    path = write(tmp_path / "bomb.csv", PACKERS[suffix](line + bytes(40 << 20)))
    with pytest.raises(AnnotationError, match=r"bomb\.csv: its \d+ bytes expand by more than 100 times"):
        read_annotations(AnnotationsConfig(egoclip=path))


@pytest.mark.parametrize("name", ["zip", "twice", "7-zip", "folder", "unreadable"])
def test_what_cannot_be_unpacked_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    path = tmp_path / "egoclip.csv"
    message = {
        "zip": "a zip archive; unpack it",
        "twice": "compressed twice; unpack it",
        "7-zip": "a 7-zip archive",
    }
    if name == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("egoclip.csv", table([row(1)]))
    elif name == "twice":
        write(path, gzip.compress(gzip.compress(table([row(1)]).encode())))
    elif name == "7-zip":
        write(path, b"7z\xbc\xaf\x27\x1c" + bytes(100))
    elif name == "folder":
        path.mkdir()
    else:
        write(path, table([row(1)])).chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    with pytest.raises(AnnotationError, match=message.get(name, "there is no such file|cannot be read")):
        read_annotations(AnnotationsConfig(egoclip=path))


def test_latin_1_is_named_with_its_line_and_a_remedy(tmp_path: Path) -> None:
    clips = write(tmp_path / "egoclip.csv", table([row(1), row(2, clip_text="#C C öffnet"), row(3)]).encode("latin-1"))
    annotations = read_annotations(AnnotationsConfig(egoclip=clips))
    (reject,) = annotations.rejects.to_pylist()
    assert (reject["item"], reject["reason"]) == ("egoclip.csv:3", "invalid UTF-8")
    assert "iconv -f latin1 -t utf-8" in reject["detail"]
    text = json.dumps({"u": {"narrations": [{"time": 1.0, "text": "öffnet"}]}}, ensure_ascii=False, indent=1)
    path = write(tmp_path / "narration.json", text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"narration\.json line 6: not UTF-8 .*iconv -f latin1 -t utf-8"):
        read_annotations(AnnotationsConfig(narrations=path))


def test_a_head_has_the_beginning_and_an_opened_file_everything(tmp_path: Path) -> None:
    text = "é" * (3 << 20)
    for data in (text.encode(), gzip.compress(text.encode("utf-16"))):
        path = write(tmp_path / "long", data)
        assert (
            open_head(path).read() == text.encode()[: len(open_head(path).read())]
            and len(open_head(path).read()) >= 1 << 20
        )
        with open_utf8(path) as file:
            assert file.read() == text.encode() and file.seek(2) == 2 and file.read(2) == "é".encode()


def test_the_format_of_a_compressed_file_is_in_the_name_before_its_last_extension() -> None:
    names = ["a.csv", "A.CSV.GZ", "a.json.xz", "a.gz", "a", "b.tsv.bz2"]
    assert [format_suffix(Path(name)) for name in names] == [".csv", ".csv", ".json", "", "", ".tsv"]
