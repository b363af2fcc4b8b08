"""A file's bytes as lines of text: compressed or not, in whatever encoding, one line at a time."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.problems import Problems
from tunesmith.errors import InputError
from tunesmith.records import Origin
from tunesmith.terminal import describe_bytes

# Ending -> how pyarrow calls the compression.
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
# A file of some kilobytes may unpack to more than any disk holds. Text shrinks to a fifth, at best a hundredth.
MOST_UNPACKED = 300
UNPACKED_FREELY = 100_000_000

BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def kind_of(path: Path) -> str:
    """The ending that says what is in a file: ".jsonl" for rows.jsonl and rows.jsonl.gz."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSED:
        endings.pop()
    return endings[-1] if endings else ""


def open_bytes(path: Path) -> BinaryIO:
    """A file to read from, unpacked on the way when its ending says that it is compressed."""
    try:
        handle = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    kind = COMPRESSED.get(path.suffix.lower())
    return io.BufferedReader(_Unpacked(handle, path, kind), 2**18) if kind else handle


class _Unpacked(io.RawIOBase):
    """Unpacked bytes, counted: an error names the file, and a bomb is given up in time."""

    def __init__(self, handle: BinaryIO, path: Path, kind: str) -> None:
        import pyarrow as pa  # slow to import, and most files are not compressed

        self._handle, self._path = handle, path
        self._stream: Any = pa.CompressedInputStream(pa.PythonFile(handle, "r"), kind)
        self._size = path.stat().st_size
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            part = self._stream.read(len(buffer))
        except (OSError, EOFError) as error:
            raise InputError(
                f"{self._path}: damaged after {describe_bytes(self._unpacked)} were unpacked "
                f"(the file has {self._size:,} bytes). Fetch or pack it again"
            ) from error
        self._unpacked += len(part)
        if self._unpacked > max(UNPACKED_FREELY, MOST_UNPACKED * self._size):
            raise InputError(
                f"{self._path}: {self._size:,} bytes unpack to more than {describe_bytes(self._unpacked)}, which no "
                "text does. Unpack it yourself if you trust it"
            )
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._handle.close()
        super().close()


def read_lines(path: Path, problems: Problems, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    r"""(physical line from 1, text with its line end) one by one; lines end with \n alone.

    Without `encoding` it is UTF-8, or what a byte-order mark says. A line that cannot be decoded is a problem
    of its own, and the others come all the same.
    """
    with open_bytes(path) as handle:
        found, skipped = _find_encoding(handle, path, encoding)
        if codecs.lookup(found).name == "utf-8":
            yield from _decode_lines(handle, path, problems, skipped)
            return
        text = io.TextIOWrapper(handle, encoding=found, newline="\n")
        number = 0
        try:
            for line in text:
                number += 1
                yield number, line
        except UnicodeError as error:
            problems.add(Origin(str(path), number + 1), f"not {found}: {error}. Name another with --encoding")


def _find_encoding(handle: BinaryIO, path: Path, encoding: str | None) -> tuple[str, int]:
    """Its name, and how many bytes of a mark were passed over."""
    start = handle.peek(4)[:4] if isinstance(handle, io.BufferedReader) else b""
    mark = next((mark for mark in BYTE_ORDER_MARKS if start.startswith(mark)), b"")
    if encoding is not None:
        try:
            named = codecs.lookup(encoding).name
        except LookupError as error:
            raise InputError(f"encoding: unknown '{encoding}'. Usual ones: utf-8, utf-16, cp1252, latin-1") from error
    else:
        named = BYTE_ORDER_MARKS.get(mark, "utf-8")
    if named == "utf-8" and mark == codecs.BOM_UTF8:
        handle.read(len(mark))
        return named, len(mark)
    return named, 0


def _decode_lines(handle: BinaryIO, path: Path, problems: Problems, offset: int) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(handle, 1):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            place = offset + error.start
            guess = "utf-16" if b"\x00" in raw else "cp1252"
            problems.add(
                Origin(str(path), number),
                f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {place:,}. It may be {guess}: --encoding {guess}",
                raw.decode("latin-1"),
            )
        else:
            yield number, text
        offset += len(raw)
