"""Opens annotation files as UTF-8 bytes: decompresses gzip, bzip2 and xz, and converts UTF-16 and UTF-32."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import itertools
import json
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from preprocessing.annotations.tables import AnnotationError

HEAD = 1 << 20  # bytes that `open_head` returns
_BLOCK = 1 << 20  # bytes
_MAX_RATIO = 100  # text shrinks by 4 to 30 times; what shrinks more is no annotation file
_FREE = 64 << 20  # unpacked bytes to which the ratio does not apply
_OPENERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_ARCHIVES = {b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7-zip", b"Rar!": "RAR"}
_SUFFIXES = (".gz", ".bz2", ".xz")
_UTF8 = ("utf-8", "utf-8-sig")


def format_suffix(path: PurePath) -> str:
    """Return the lower-case extension that names a file's format: `.csv` of both `a.csv` and `a.csv.gz`."""
    return PurePath(path.stem if path.suffix.lower() in _SUFFIXES else path.name).suffix.lower()


def open_head(path: Path) -> BinaryIO:
    """Return the beginning of a file, at least `HEAD` bytes where it has as many; raises as `open_utf8`."""
    with _reported(path), path.open("rb") as file:
        head = b""
        for block in _blocks(path, file):
            head += block
            if len(head) >= HEAD:
                break
    return io.BytesIO(head)


@contextmanager
def open_utf8(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, seekable; a compressed or UTF-16 one through an unnamed temporary file.

    Compression and encoding are recognised by content, not by name. A UTF-8 byte order mark is left in place. Raises
    `AnnotationError` where the file cannot be read, ends early, is damaged, is an archive, or expands by more than 100
    times.
    """
    with _reported(path), ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        if not _is_plain(file):
            unpacked = stack.enter_context(tempfile.TemporaryFile(prefix="hiervl-annotations-"))
            for block in _blocks(path, file):
                unpacked.write(block)
            unpacked.seek(0)
            yield cast(BinaryIO, unpacked)
        else:
            yield file


def read_text(path: Path) -> str:
    """Return a file's text without byte order mark; raises as `open_utf8`, and where it is not UTF-8."""
    with open_utf8(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{path} line {line}: not UTF-8 at byte {error.start} of the file ({_excerpt(data, error.start)}); "
            "if it is Latin-1, convert it with `iconv -f latin1 -t utf-8`, otherwise download it again"
        ) from None


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn errors of reading and unpacking into `AnnotationError`."""
    try:
        yield
    except EOFError:
        raise AnnotationError(f"{path}: the compressed file ends early; download it again") from None
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise AnnotationError(f"{path}: the compressed file is damaged: {error}; download it again") from None
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from None


def _is_plain(file: BinaryIO) -> bool:
    """Return whether a file needs neither unpacking nor conversion; the position is at its start afterwards."""
    head = file.read(8)
    file.seek(0)
    return not head.startswith((*_OPENERS, *_ARCHIVES)) and _encoding(head) in _UTF8


def _blocks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a file in blocks, unpacked and as UTF-8."""
    head = file.read(8)
    file.seek(0)
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            raise AnnotationError(f"{path}: a {name} archive; unpack it and give the file inside")
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    raw = _plain_blocks(file) if opener is None else _unpacked(path, file, cast(BinaryIO, opener(file)))
    first = next(raw, b"")
    encoding = _encoding(first[:4])
    if encoding in _UTF8:
        yield first
        yield from raw
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    done = 0
    try:
        for block in itertools.chain((first,), raw):
            yield decoder.decode(block).encode()
            done += len(block)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise AnnotationError(
            f"{path}: looks like {encoding.upper()}, but is not after byte {done}: {error}; save it as UTF-8"
        ) from None


def _plain_blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _unpacked(path: Path, file: BinaryIO, unpacker: BinaryIO) -> Iterator[bytes]:
    """Yield the unpacked blocks of a file; raise `AnnotationError` where it is packed twice or expands too much."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    total = 0
    for block in _plain_blocks(unpacker):
        if not total and block.startswith((*_OPENERS, *_ARCHIVES)):
            raise AnnotationError(f"{path}: compressed twice; unpack it once")
        total += len(block)
        if total > _FREE + _MAX_RATIO * size:
            raise AnnotationError(
                f"{path}: its {size} bytes expand by more than {_MAX_RATIO} times, which no annotation file does; "
                "unpack it yourself if it is to be used"
            )
        yield block


def _encoding(head: bytes) -> str:
    """Return the encoding that the first bytes of a text show, by a byte order mark or by zero bytes."""
    return json.detect_encoding(head[:4])


def _excerpt(data: bytes, at: int) -> str:
    """Return the bytes around a position, for a message."""
    return repr(data[max(0, at - 20) : at + 20])
