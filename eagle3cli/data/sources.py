"""Rows out of files: JSON lines, JSON arrays (also broken-off ones), parquet, folders of those, and hub data sets.

Knows nothing about conversations. A row that cannot be read is still a :class:`Line`, with its place and the problem.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from eagle3cli.errors import DataError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".jsonl.gz", ".json.gz", ".ndjson.gz")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE_TEXT = re.compile(_SURROGATE_ESCAPE.pattern.decode())
_BAD_BYTE = re.compile("[\udc80-\udcff]")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Line:
    """A row of a source, or why it could not be read."""

    number: int
    """Line of the file from 1 (for parquet and hub data sets the row, from 1)."""
    value: dict[str, Any] | None
    problem: str | None = None
    """Why ``value`` is None."""
    repairs: tuple[str, ...] = ()
    """What was set right to read the row."""
    path: str = ""

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{self.path}:{self.number}"


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if it is gzip (told by its first bytes); raises DataError."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path), fix="check the path") from error
    head = raw.read(2)
    raw.seek(0)
    if head in (b"\xff\xfe", b"\xfe\xff"):
        raw.close()
        raise DataError("the file is UTF-16 text", where=str(path), fix="save it as UTF-8")
    return cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if head == b"\x1f\x8b" else raw


def read_raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Physical lines with their numbers from 1, split at LF only; blank lines are left out.

    Raises DataError where a compressed file breaks off.
    """
    number = 0
    with open_bytes(path) as f:
        try:
            for number, raw in enumerate(f, 1):
                if raw.strip():
                    yield number, raw
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"the compressed file breaks off: {error}", where=f"{path}:{number + 1}") from error


def parse_line(number: int, raw: bytes, path: str = "") -> Line:
    """One physical line as a row: byte order mark, CR and lone surrogates are repaired, the rest is a problem."""
    repairs = []
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
        repairs.append("byte order mark removed")
    if raw.endswith((b"\r\n", b"\r")):
        repairs.append("CR before the line end removed")
    raw = raw.rstrip(b"\r\n")
    try:
        value = json.loads(raw)
    except UnicodeDecodeError as error:
        return Line(number, None, f"not UTF-8 (byte {error.start + 1} of the line)", path=path)
    except json.JSONDecodeError as error:
        return Line(number, None, f"not valid JSON: {error.msg} (column {error.pos + 1})", path=path)
    except (ValueError, RecursionError) as error:
        return Line(number, None, f"not valid JSON: {error}", path=path)
    if not isinstance(value, dict):
        return Line(number, None, f"a JSON {_kind(value)}, not an object", path=path)
    if _SURROGATE_ESCAPE.search(raw):
        value, changed = _without_lone_surrogates(value)
        if changed:
            repairs.append("lone surrogate replaced by U+FFFD")
    return Line(number, value, None, tuple(repairs), path)


def read_jsonl(path: Path) -> Iterator[Line]:
    """Rows of a JSON-lines file, plain or gzip."""
    try:
        for number, raw in read_raw_lines(path):
            yield parse_line(number, raw, str(path))
    except DataError as error:
        if error.where is None or not error.where.startswith(f"{path}:"):
            raise
        yield Line(int(error.where.rpartition(":")[2]), None, error.what, path=str(path))


def read_json(path: Path) -> Iterator[Line]:
    """Objects of a JSON array (or of objects one after the other), streamed; where it breaks, that is the last Line."""
    decoder = json.JSONDecoder()
    buffer, position, line = "", 0, 1
    with open_bytes(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as text:
        in_array = ended = False
        while True:
            buffer, position, start = _skip(buffer, position, text)
            line += start
            if position >= len(buffer):
                break
            character = buffer[position]
            if not in_array and character == "[":
                in_array, position = True, position + 1
                continue
            if character == "]" and in_array:
                ended, position = True, position + 1
                continue
            if ended:
                yield Line(line, None, "more text after the end of the array; it was not read", path=str(path))
                return
            try:
                value, end, buffer, position = _decode(decoder, buffer, position, text)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                what = (
                    f"the file breaks off or is damaged in the object that begins here ({reason}); the rest is unread"
                )
                yield Line(line, None, what, path=str(path))
                return
            yield _element(line, value, buffer[position:end], str(path))
            line += buffer.count("\n", position, end)
            position = end
        if in_array and not ended:
            yield Line(line, None, "the JSON array breaks off here", path=str(path))


def _skip(buffer: str, position: int, text: IO[str]) -> tuple[str, int, int]:
    """Move over white space and commas, reading on as needed; returns the number of line ends passed, too."""
    lines = 0
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n,":
            lines += buffer[position] == "\n"
            position += 1
        if position < len(buffer):
            return buffer, position, lines
        buffer, position = _read(text, _CHUNK), 0
        if not buffer:
            return "", 0, lines


def _read(text: IO[str], size: int) -> str:
    try:
        return text.read(size)
    except (EOFError, OSError, zlib.error):
        return ""  # a compressed file that breaks off ends here; what was unpacked is read


def _decode(decoder: json.JSONDecoder, buffer: str, position: int, text: IO[str]) -> tuple[Any, int, str, int]:
    """The value at ``position``, reading on (twice as much each time) until it is whole or cannot become so."""
    size = _CHUNK
    while True:
        try:
            value, end = decoder.raw_decode(buffer, position)
            if end < len(buffer) or buffer[end - 1] in "}]":
                return value, end, buffer, position
        except json.JSONDecodeError as error:
            unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 8
            if not unfinished:
                raise
            failure: Exception = error
        else:
            failure = ValueError("a number or word at the end of the file")
        more = _read(text, size)
        if not more:
            raise failure
        buffer, position, size = buffer[position:] + more, 0, size * 2


def _element(line: int, value: Any, source: str, path: str) -> Line:
    if not isinstance(value, dict):
        return Line(line, None, f"a JSON {_kind(value)}, not an object", path=path)
    if not source.isascii() and _BAD_BYTE.search(source):
        return Line(line, None, "not UTF-8", path=path)
    value, changed = _without_lone_surrogates(value) if _SURROGATE_TEXT.search(source) else (value, False)
    return Line(line, value, None, ("lone surrogate replaced by U+FFFD",) if changed else (), path)


def _without_lone_surrogates(value: Any) -> tuple[Any, bool]:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
            return value, False
        except UnicodeEncodeError:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), True
    if isinstance(value, list):
        items = [_without_lone_surrogates(item) for item in value]
        return [item for item, _ in items], any(changed for _, changed in items)
    if isinstance(value, dict):
        pairs = [(_without_lone_surrogates(key), _without_lone_surrogates(item)) for key, item in value.items()]
        return {key: item for (key, _), (item, _) in pairs}, any(a or b for (_, a), (_, b) in pairs)
    return value, False


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def read_parquet(path: Path) -> Iterator[Line]:
    """Rows of a parquet file, a batch at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=512):
                for value in batch.to_pylist():
                    number += 1
                    yield Line(number, value, path=str(path))
    except (pa.ArrowException, OSError) as error:
        if number == 0:
            raise DataError(f"not a readable parquet file: {error}", where=str(path)) from error
        yield Line(number + 1, None, f"the parquet file is damaged from here on: {error}", path=str(path))


def files_of(path: Path) -> list[Path]:
    """The data files that a path names: itself, or all below a folder in name order; raises DataError when none."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError("no such file or folder", where=str(path), fix="check the path")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name.endswith(SUFFIXES)
        and not file.name.startswith((".", "errors."))
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise DataError(f"no data files in the folder ({', '.join(SUFFIXES[:4])})", where=str(path))
    return found


def format_of(path: Path) -> Literal["lines", "array", "parquet"]:
    """How the rows of a file stand in it; the content decides, the name only helps. Raises DataError if it is empty."""
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))
    with open_bytes(path) as f:
        try:
            head = f.read(1 << 16)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"cannot unpack: {error}", where=str(path)) from error
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        return "array"
    if path.name.removesuffix(".gz").endswith(".json") and start.startswith(b"{"):
        first, found, _ = start.partition(b"\n")
        if found and parse_line(1, first).value is None:
            return "array"  # objects over several lines
    return "lines"


def read_file(path: Path) -> Iterator[Line]:
    """Rows of one file, whatever its format."""
    readers = {"lines": read_jsonl, "array": read_json, "parquet": read_parquet}
    return readers[format_of(path)](path)


def read_hub(name: str, split: str, *, shuffle_seed: int | None = None) -> Iterator[Line]:
    """Rows of a hub data set, streamed; raises DataError where it cannot be reached."""
    import datasets

    datasets.disable_progress_bars()
    fix = "check the name and the network (HF_HUB_OFFLINE, HF_TOKEN), or download a file and give its path instead"
    number = 0
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=10_000)
        for number, value in enumerate(rows, 1):
            yield Line(number, dict(value), path=f"{name}[{split}]")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"cannot read the hub data set: {reason}" if number == 0 else f"the download stopped: {reason}"
        raise DataError(what, where=f"{name}[{split}] row {number + 1}" if number else name, fix=fix) from error
