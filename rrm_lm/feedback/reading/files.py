"""Read rows of local JSON Lines, JSON, CSV, TSV and Parquet files, gzipped or not. Errors name the file and row.

Rows count from 1: the line of a JSON Lines file, the element of a JSON list, the row below the header of a CSV table
(a cell may span lines), the row of a Parquet table. Text is UTF-8 unless a byte order mark says otherwise.
"""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats.structure import parse_cell, parse_texts
from rrm_lm.feedback.reading.limits import ReadLimits, too_large

RowValues = dict[str, Any]
NumberedRows = Iterator[tuple[int, RowValues]]

GZIP_MAGIC = b"\x1f\x8b"
DELIMITERS = ",;\t|"
# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# First bytes of files that are not what their name says: what they are, and what to do.
MISTAKEN = {
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "fetch the data: git lfs pull"),
    b"<!doctype html": ("an HTML page", "download the file itself, not the page that shows it"),
    b"pk\x03\x04": ("a ZIP archive or an Excel workbook", "unpack it, or save the table as CSV"),
    b"par1": ("a Parquet file", "rename it to .parquet"),
}
_CHUNK = 1 << 20
_BATCH = 512  # rows of a Parquet file that are decoded at once


def read_rows(path: Path, limits: ReadLimits | None = None) -> NumberedRows:
    """Yield (row number, columns) of a local file. The first bytes give compression and encoding, the name the format.
    Raises DataError: no such file, an unknown extension, a broken, truncated or wrongly encoded file, or a file above
    the limits (None: the defaults).
    """
    limits = limits or ReadLimits()
    reader = READERS.get(data_suffix(path))
    if reader is None:
        what = f"the extension of {path.name} is not one of a data file"
        expected = ", ".join(READERS) + ", each also with .gz"
        raise DataError(what, where=str(path), expected=expected, remedy="rename or convert the file")
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == GZIP_MAGIC
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            source = _Source(stream, str(path), limits)  # pyright: ignore[reportArgumentType] (GzipFile reads as BinaryIO)
            source.check_kind(is_parquet=reader is _read_parquet)
            for number, row in reader(source if reader is _read_parquet else source.as_utf8()):
                limits.check_row(row, f"{path}, row {number}")
                yield number, row
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), remedy="check the path") from None
    except IsADirectoryError:
        raise DataError("this is a folder, not a file", where=str(path), remedy="name a file in it") from None
    except PermissionError:
        raise DataError("the file may not be read", where=str(path), remedy="change its permissions") from None


def data_suffix(path: Path) -> str:
    """The extension without .gz: ".jsonl" for train.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


class _Source:
    """The decompressed bytes of a file, up to its limits. `file` is its name in messages."""

    def __init__(self, stream: BinaryIO, file: str, limits: ReadLimits) -> None:
        self.stream, self.file, self.limits, self.most = stream, file, limits, limits.file_bytes()

    def first(self) -> bytes:
        """The first bytes, which stay unread."""
        try:
            return self.stream.peek(32)[:32]  # pyright: ignore[reportAttributeAccessIssue] (both kinds of stream have it)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _broken_gzip(error, self.file) from None

    def check_kind(self, *, is_parquet: bool) -> None:
        """Raise a DataError if the first bytes are those of another kind of file."""
        first = self.first().lstrip().lower()
        for begin, (what, remedy) in MISTAKEN.items():
            if first.startswith(begin) and not (is_parquet and begin == b"par1"):
                raise DataError(f"the file is {what}", where=self.file, expected="a data file", remedy=remedy)

    def as_utf8(self) -> _Source:
        """This source, or its text as UTF-8 if the file has another byte order mark. Raises DataError if the text does
        not match its mark, or the file is damaged or too large.
        """
        first = self.first()
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if first.startswith(mark)), None)
        if encoding is None:
            return self
        try:
            text = self.whole().decode(encoding)
        except UnicodeDecodeError as error:
            what = f"the file begins as {encoding.upper()} and is not ({error.reason} at byte {error.start:,})"
            raise DataError(what, where=self.file, remedy="save it again as UTF-8") from None
        return _Source(io.BytesIO(text.encode("utf-8", "surrogatepass")), self.file, self.limits)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each line and its number. Raises DataError if the file is damaged or too large, or a line is too long."""
        number, size, longest = 1, 0, 16 * max(self.limits.max_cell_chars, 1 << 20)  # its cells are not known yet
        try:
            while line := self.stream.readline(longest + 1):
                size += len(line)
                where = f"{self.file}, row {number}"
                if size > self.most:
                    raise too_large(self.most, where)
                if len(line) > longest:
                    raise self.limits.too_long(f"the row has more than {longest:,} bytes", where)
                yield number, line
                number += 1
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _broken_gzip(error, f"{self.file}, row {number}") from None

    def whole(self) -> bytearray:
        """All bytes. Raises DataError if the file is damaged or too large."""
        data = bytearray()
        try:
            while chunk := self.stream.read(_CHUNK):
                data += chunk
                if len(data) > self.most:
                    raise too_large(self.most, self.file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _broken_gzip(error, self.file) from None
        return data


def _read_jsonl(source: _Source) -> NumberedRows:
    file = source.file
    for number, line in source.lines():
        text = _decode(line, number, f"{file}, row {number}")
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            cut = not line.endswith(b"\n")
            raise DataError(
                f"the line is not valid JSON ({_why(error)})",
                where=f"{file}, row {number}",
                expected="one JSON object a line",
                remedy="it is the last line and has no end: copy the file again" if cut else "fix or remove the line",
            ) from None
        yield number, _object(value, file, number)


def _read_json(source: _Source) -> NumberedRows:
    data, file = source.whole(), source.file
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(error, f"{file}, row {line} (counted in lines)") from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text.strip():  # JSON Lines in a .json file is common on the Hub
            yield from _read_jsonl(_Source(io.BytesIO(data), file, source.limits))
            return
        where = f"{file}, row {error.lineno} (counted in lines)"
        remedy = "fix the file, or copy it again if it is cut short"
        raise DataError(f"the file is not valid JSON ({_why(error)})", where=where, remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the file is not valid JSON ({_why(error)})", where=file, remedy="fix the file") from None
    if isinstance(value, dict):  # {"data": [...]} or similar; any other object is the only row
        lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
        value = lists[0] if len(value) == 1 and lists else [value]
    if not isinstance(value, list):
        raise DataError(
            f"the file holds a {type(value).__name__}, not rows", where=file, expected="a JSON list of objects"
        )
    for number, item in enumerate(value, 1):
        yield number, _object(item, file, number)


def _read_csv(source: _Source, delimiter: str = "") -> NumberedRows:
    csv.field_size_limit(source.limits.max_cell_chars)  # the default of 128 KiB is too small for long documents
    lines = (  # with line ends, for the csv module; old Mac files have only carriage returns
        part
        for row, line in source.lines()
        for part in io.StringIO(_decode(line, row, f"{source.file}, row {row} (counted in lines)"), newline="")
    )
    file, number, first = source.file, 0, next(lines, "")
    if stated := re.fullmatch(r"sep=(.)\s*", first):  # Excel's, before the header
        delimiter, first = stated[1], next(lines, "")
    # the delimiter that splits the header into the most columns; a comma if none does
    delimiter = delimiter or max(DELIMITERS, key=re.sub(r'"[^"]*"', "", first).count)
    spaced = f"{delimiter} " in first and not first.startswith("{")
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    try:
        header = [name.strip() for name in next(reader, [])]
        while len(header) > 1 and not header[-1]:  # empty columns at the right, as Excel writes them
            header.pop()
        if header[:1] == [""]:  # index column from pandas
            header[0] = "index"
        if len(set(header)) != len(header) or "" in header:
            what = f"the header has a repeated or an empty column name: {', '.join(map(repr, header))}"
            where = f"{file}, header"
            raise DataError(what, where=where, expected="each column named once", remedy="rename the columns")
        for number, cells in enumerate((cells for cells in reader if cells), 1):
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(header):
                what = f"the row has {len(cells)} cells and the header {len(header)}"
                remedy = "quote cells that hold delimiters or line ends, or copy the file again if it is cut short"
                raise DataError(what, where=f"{file}, row {number}", expected="as many cells as columns", remedy=remedy)
            yield number, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        if "field limit" in str(error):
            raise source.limits.too_long("a cell is too long", f"{file}, row {number + 1}") from None
        raise DataError(
            f"the table is broken ({error})",
            where=f"{file}, row {number + 1}",
            expected='cells quoted as "..." with quotes inside doubled',
            remedy="fix the row, or copy the file again if it is cut short",
        ) from None


def _read_parquet(source: _Source) -> NumberedRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, number, size = source.file, 0, 0
    try:
        table = pq.ParquetFile(pa.BufferReader(source.whole()))
        for batch in _batches(table, source.most):
            size += batch.nbytes
            if size > source.most:
                raise too_large(source.most, f"{file}, row {number + 1}")
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                rows = [_parquet_row(batch.slice(i, 1), file, number + i + 1) for i in range(batch.num_rows)]
            yield from enumerate(rows, number + 1)
            number += len(rows)
    except (pa.ArrowException, OSError) as error:
        remedy = "copy the file again, or write it again with a current version of its tool"
        raise DataError(f"the file is not a complete Parquet file ({_why(error)})", where=file, remedy=remedy) from None


def _batches(table: Any, most: int) -> Iterator[Any]:
    """The rows of a Parquet file in batches of at most `most` bytes.

    With dictionary encoding, a single row may be as large as its row group, but not larger.
    """
    for group in range(table.num_row_groups):
        held = max(1, table.metadata.row_group(group).total_byte_size)
        yield from table.iter_batches(batch_size=max(1, min(_BATCH, most // held)), row_groups=[group])


def _parquet_row(one: Any, file: str, number: int) -> RowValues:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        raise _not_utf8(error, f"{file}, row {number}") from None


READERS: dict[str, Callable[[_Source], NumberedRows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": functools.partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}


def _broken_gzip(error: Exception, where: str) -> DataError:
    return DataError(
        f"the gzipped file is cut short or damaged ({_why(error)})",
        where=where,
        expected="a complete gzip file",
        remedy="copy or download the file again",
    )


def _decode(line: bytes, number: int, where: str) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, where) from None


def _not_utf8(error: UnicodeDecodeError, where: str) -> DataError:
    return DataError(
        f"byte {error.object[error.start]:#04x} is not UTF-8",
        where=where,
        expected="UTF-8 text",
        remedy="convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 old > new",
    )


def _object(value: Any, file: str, number: int) -> RowValues:
    if not isinstance(value, dict):
        raise DataError(
            f"the row is a {type(value).__name__}, not an object with named columns",
            where=f"{file}, row {number}",
            expected='for example {"prompt": ..., "chosen": ..., "rejected": ...}',
        )
    return value


def _cell(name: str, cell: str) -> Any:
    """A text cell. A list of messages or critiques that is written as text becomes a list."""
    if "critique" in name or "feedback" in name:
        return parse_texts(cell) or cell or None
    return parse_cell(cell) or None


def _why(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
