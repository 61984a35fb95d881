"""Lines of files as rows: what every format shares. Unpacking, JSON as strict as it must be, and the row class.

Knows nothing about conversations. A row that cannot be read is still a :class:`SourceRow`, with its place and the
problem.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from eagle3cli.data.conversations.messages import kind_of
from eagle3cli.errors import DataError

LONGEST = 32 << 20
"""Bytes of the longest row that is read; a longer one would not fit a context, but might not fit the memory either."""
TOO_DEEP = "not valid JSON: nested too deeply"
BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 20
_STEP = 1 << 13
"""Bytes unpacked at once: what comes before a damaged place is wanted."""
UNTRUSTED = 1 << 16
"""Bytes before the place where a damaged file is noticed that are not trusted: a wrong letter is still a letter, and
packed text repeats what came up to 32 KiB before."""
_NO_NUMBER = re.compile(rb"NaN|Infinity|[eE]\+?\d{3}|\d{309}")
_BREAKS_OFF = re.compile("end-of-stream marker|Truncated|Not a gzipped file")
"""What is said of a file that breaks off, or goes on with something else: what came before is sound."""
_BY_CHECKSUM = re.compile("CRC|Incorrect length|checksum")
MENDED = "NaN, infinity or a number too large made null"
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class SourceRow:
    """A row of a source, or why it could not be read."""

    number: int
    """SourceRow of the file from 1 (for parquet and hub data sets the row, from 1)."""
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

    @property
    def id(self) -> str:
        """What the row's ``id`` says, whatever its layout; empty where it has none."""
        return str((self.value or {}).get("id") or "")

    def parsed(self) -> dict[str, Any]:
        """The value; raises DataError with the problem where there is none."""
        if self.value is None:
            raise DataError("row-text", self.problem or "unreadable")
        return self.value


class _Unpacked(io.RawIOBase):
    """What could be unpacked of a compressed stream; ``problem`` says why that is not all of it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.problem = ""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; where the stream is damaged is its end, whatever could be unpacked behind that place."""
        if self.problem:
            return 0
        try:
            data = self.stream.read1(min(len(buffer), _STEP))
        except (EOFError, OSError, zlib.error) as error:
            self.problem = str(error) or "damaged"
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the stream, too."""
        self.stream.close()
        super().close()


def break_of(stream: IO[bytes]) -> str:
    """Why a stream of :func:`open_bytes` ended early; empty where it did not."""
    return str(getattr(getattr(stream, "raw", None), "problem", ""))


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if it is gzip or zstd (told by its first bytes); raises DataError."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(
            "unreadable-file", f"cannot read: {error.strerror}", where=str(path), fix="check the path"
        ) from error
    head = raw.read(4)
    raw.seek(0)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raw.close()
        raise DataError("unreadable-file", "the file is UTF-16 text", where=str(path), fix="save it as UTF-8")
    if head[:2] == b"\x1f\x8b":
        return io.BufferedReader(_Unpacked(gzip.GzipFile(fileobj=raw)), _BUFFER)
    if head == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return io.BufferedReader(_Unpacked(pa.CompressedInputStream(raw, "zstd")), _BUFFER)
    return raw


@dataclass(frozen=True)
class Damage:
    """Why not all that a compressed file holds is what was packed."""

    problem: str
    reached: int
    """Bytes that could be unpacked."""
    by_checksum: bool
    """Only a checksum behind the data tells, so that the damage may be anywhere."""
    is_whole: bool
    """All was unpacked; of zstd the last block is held back where the checksum is wrong."""


def damage_of(path: Path) -> Damage | None:
    """The damage of a compressed file; None for a sound one, one that only breaks off, and other files.

    The checksum stands behind the data, so the file is unpacked once for it.
    """
    with open_bytes(path) as stream:
        if not isinstance(getattr(stream, "raw", None), _Unpacked):
            return None
        reached = 0
        while data := stream.read(_BUFFER):
            reached += len(data)
        problem = break_of(stream)
    if not problem or _BREAKS_OFF.search(problem):
        return None
    by_checksum = _BY_CHECKSUM.search(problem) is not None
    return Damage(problem, reached, by_checksum, is_whole=by_checksum and "ZSTD" not in problem)


def _trusted_bytes(path: Path, damage: Damage) -> int:
    """How much of a damaged file of lines is read: up to some way before its first unreadable row."""
    reached = 0
    with open_bytes(path) as stream:
        while raw := stream.readline():
            if not raw.endswith(b"\n") and break_of(stream):
                break
            if raw.strip() and parse_line(1, raw).value is None:
                return max(0, reached - UNTRUSTED)
            reached += len(raw)
    return 0 if damage.by_checksum else max(0, damage.reached - UNTRUSTED)


def read_raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Physical lines with their numbers from 1, split at LF only; blank lines are left out.

    A line that is longer than :data:`LONGEST` comes cut, one byte too long. Raises DataError where a compressed file
    breaks off, and some way before the first unreadable row of a damaged one (at its start, where no row tells the
    place): what follows is not what was packed.
    """
    number = 0
    damage = damage_of(path) if path.is_file() else None
    left = _trusted_bytes(path, damage) if damage else 0
    with open_bytes(path) as f:
        while raw := f.readline(LONGEST + 1):
            number += 1
            rest = raw
            left -= len(raw)
            while len(rest) == LONGEST + 1 and not rest.endswith(b"\n"):
                rest = f.readline(LONGEST + 1)
                left -= len(rest)
            if damage and left < 0:
                what = f"the compressed file is damaged ({damage.problem}); from here on nothing is read"
                raise DataError("unreadable-file", what, where=f"{path}:{number}")
            if not rest.endswith(b"\n") and break_of(f):
                number -= 1
                break
            if raw.strip():
                yield number, raw
        if problem := break_of(f):
            raise DataError("damaged-file", f"the compressed file breaks off: {problem}", where=f"{path}:{number + 1}")


def parse_line(number: int, raw: bytes, path: str = "") -> SourceRow:
    """One physical line as a row: byte order mark, CR, a comma after it, lone surrogates and raw control characters
    are repaired, the rest is a problem."""
    repairs = []
    if raw.startswith(BOM):
        raw = raw[3:]
        repairs.append("byte order mark removed")
    if raw.endswith((b"\r\n", b"\r")):
        repairs.append("CR before the line end removed")
    raw = raw.rstrip(b"\r\n")
    if len(raw) > LONGEST:
        return SourceRow(number, None, f"longer than {LONGEST >> 20} MB", path=path)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return SourceRow(number, None, f"not UTF-8 (byte {error.start + 1} of the line)", path=path)
    if "\0" in text:
        first = raw.index(0) + 1
        what = f"holds NUL bytes (byte {first} of the line): UTF-16 text, or a file not written to its end"
        return SourceRow(number, None, what, path=path)
    if (trimmed := text.rstrip()).endswith(",") and trimmed.startswith("{"):
        text = trimmed[:-1]
        repairs.append("comma after the row removed")
    try:
        value, more = _decode(text)
    except json.JSONDecodeError as error:
        return SourceRow(number, None, f"not valid JSON: {error.msg} (column {error.pos + 1})", path=path)
    except RecursionError:
        return SourceRow(number, None, TOO_DEEP, path=path)
    except ValueError as error:
        return SourceRow(number, None, complaint(error), path=path)
    row = row_of(number, value, path, surrogates=_SURROGATE_ESCAPE.search(raw) is not None)
    if row.value is None or not (repairs or more):
        return row
    return replace(row, repairs=(*repairs, *row.repairs, *more))


def row_of(number: int, value: Any, path: str, *, surrogates: bool) -> SourceRow:
    """The row that a JSON value makes, which must be an object; ``surrogates``: lone ones may be in its texts."""
    if not isinstance(value, dict):
        return SourceRow(number, None, f"a JSON {kind_of(value).removeprefix('a ')}, not an object", path=path)
    if not surrogates:
        return SourceRow(number, value, path=path)
    try:
        sound = _without_lone_surrogates(value)
        repairs = () if sound == value else ("lone surrogate replaced by U+FFFD",)
    except RecursionError:
        return SourceRow(number, None, TOO_DEEP, path=path)
    return SourceRow(number, sound, None, repairs, path)


def complaint(error: ValueError) -> str:
    """What the JSON decoder says against a value that is well-formed."""
    long_number = "integer string conversion" in str(error)
    return f"not valid JSON: {'a number of thousands of digits' if long_number else error}"


def _decode(text: str) -> tuple[Any, tuple[str, ...]]:
    """The value and what was repaired; raises ValueError (JSONDecodeError) or RecursionError."""
    try:
        return STRICT.decode(text), ()
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Invalid control character"):
            raise
        return LENIENT.decode(text), ("raw control character in a string kept",)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ; one that says a key twice may mean either value."""
    value = dict(pairs)
    if len(value) != len(pairs):
        for key, entry in pairs:
            if value[key] != entry:
                raise ValueError(f"an object has the key {key[:40]!r} twice, with different values")
    return value


STRICT = json.JSONDecoder(object_pairs_hook=_object)
LENIENT = json.JSONDecoder(object_pairs_hook=_object, strict=False)


def with_json_numbers(row: SourceRow, raw: bytes) -> SourceRow:
    """The row with null for every NaN, infinity and number too large to hold, which Python reads and JSON has not."""
    if row.value is None or not _NO_NUMBER.search(raw):
        return row
    value = _with_json_numbers(row.value)
    return replace(row, value=value, repairs=(*row.repairs, MENDED)) if value != row.value else row


def _with_json_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_with_json_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_json_numbers(item) for key, item in value.items()}
    return value


def _without_lone_surrogates(value: Any) -> Any:
    """The value with U+FFFD for every half of a surrogate pair in its texts."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_lone_surrogates(key): _without_lone_surrogates(item) for key, item in value.items()}
    return value


def read_jsonl(path: Path) -> Iterator[SourceRow]:
    """Rows of a JSON-lines file, plain or compressed."""
    try:
        for number, raw in read_raw_lines(path):
            yield parse_line(number, raw, str(path))
    except DataError as error:
        if error.where is None or not error.where.startswith(f"{path}:"):
            raise
        yield SourceRow(int(error.where.rpartition(":")[2]), None, error.message, path=str(path))
