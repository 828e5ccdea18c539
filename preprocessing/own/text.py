"""Decides the encoding of a text file: UTF-8 with or without byte order mark, UTF-16, UTF-32 or Windows-1252."""

from __future__ import annotations

import codecs
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from preprocessing.annotations.files import open_head, open_utf8
from preprocessing.annotations.tables import AnnotationError

_BLOCK = 1 << 20  # bytes
_ESCAPED = ("\udc80", "\udcff")  # what `surrogateescape` makes of bytes that are not UTF-8


@dataclass(frozen=True, kw_only=True)
class Utf8Copy:
    """A file whose text is UTF-8: the original one, or a temporary copy of it."""

    path: Path
    decided: str  # a sentence that says which encoding was taken; empty for UTF-8


@contextmanager
def as_utf8(path: Path) -> Iterator[Utf8Copy]:
    """Provide a file as UTF-8 for as long as the block runs.

    Compressed, UTF-16 and UTF-32 files are read as `open_utf8` does. What is not UTF-8 is taken for Windows-1252 unless
    it has more valid characters of several bytes than invalid bytes: then it is UTF-8 with damage, and stays as it is.
    Raises `AnnotationError` where the file cannot be read, or has bytes that Windows-1252 has no character for.
    """
    wide = _wide_encoding(path)
    with ExitStack() as stack:
        file = stack.enter_context(open_utf8(path))
        valid, invalid = _count(file)
        if not invalid or valid > invalid:
            damage = f"{path.name}: read as UTF-8, of which {invalid} bytes are damaged" if invalid else ""
            yield Utf8Copy(path=path, decided=damage or (f"{path.name}: read as {wide.upper()}" if wide else ""))
            return
        file.seek(0)
        copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="hiervl-captions-"))
        for text in _decoded(path, file):
            copy.write(text.encode())
        copy.flush()
        yield Utf8Copy(path=Path(copy.name), decided=f"{path.name}: not UTF-8, so it is read as Windows-1252")


def _wide_encoding(path: Path) -> str:
    """Return the name of a file's encoding where that is UTF-16 or UTF-32; otherwise nothing."""
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    return "" if encoding in ("utf-8", "utf-8-sig") else encoding


def _count(file: BinaryIO) -> tuple[int, int]:
    """Return the number of characters of several bytes, and of bytes that are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    valid = invalid = 0
    is_last = False
    while not is_last:
        block = file.read(_BLOCK)
        is_last = not block
        text = decoder.decode(block, final=is_last)
        wide = len(text) - len(text.encode("ascii", "ignore"))
        bad = sum(_ESCAPED[0] <= char <= _ESCAPED[1] for char in text) if wide and not _is_text(text) else 0
        valid, invalid = valid + wide - bad, invalid + bad
    return valid, invalid


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(path: Path, file: BinaryIO) -> Iterator[str]:
    line = 1
    while block := file.read(_BLOCK):
        try:
            yield block.decode("cp1252")
        except UnicodeDecodeError as error:
            line += block.count(b"\n", 0, error.start)
            raise AnnotationError(
                f"{path} line {line}: the byte {block[error.start]:#04x} is neither UTF-8 nor Windows-1252; save the "
                "file as UTF-8"
            ) from None
        line += block.count(b"\n")


def first_line(path: Path) -> str:
    """Return the first line of a UTF-8 file, without byte order mark and line end; damage is replaced."""
    return open_head(path).readline().decode("utf-8-sig", "replace").rstrip("\r\n")
