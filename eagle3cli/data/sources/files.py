"""Files by their format: JSON lines (plain, gzip, zstd), JSON arrays, parquet, and folders of those."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from eagle3cli.data.sources.json_array import read_array
from eagle3cli.data.sources.lines import BOM, SourceRow, break_of, open_bytes, parse_line, read_jsonl, read_raw_lines
from eagle3cli.data.sources.parquet import read_parquet
from eagle3cli.errors import DataError

PACKED = ("", ".gz", ".zst")
SUFFIXES = (".parquet", *(name + packed for name in (".jsonl", ".json", ".ndjson") for packed in PACKED))
SIDE_FILES = (
    *("prepare.json", "merge.json", "manifest.json"),
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
)
"""What stands beside data in a folder and is none."""
_TABLES = re.compile(r"\.[ct]sv(\.gz|\.zst)?$")


def files_of(path: Path) -> list[Path]:
    """The data files that a path names: itself, or all below a folder in name order; raises DataError when none."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError("no-such-path", "no such file or folder", where=str(path), fix="check the path")
    named = sorted(
        file
        for file in _below(path)
        if file.name.endswith(SUFFIXES)
        and file.name not in SIDE_FILES
        and not file.name.startswith((".", "errors.", "error_"))
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = [file for file in named if file.is_file()]
    lost = next((file for file in named if file.is_symlink() and not file.exists()), None)
    if lost is not None:
        raise DataError(
            "no-such-path", "the link leads nowhere", where=str(lost), fix="fetch what it names, or delete the link"
        )
    if not files:
        raise DataError("no-data-files", f"no data files in the folder ({', '.join(SUFFIXES)})", where=str(path))
    return files


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder, those of folders that links lead to among them; each folder once, so that links which
    lead in a circle end."""
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if Path(parent).resolve() in seen:
            folders.clear()
            continue
        seen.add(Path(parent).resolve())
        folders.sort()
        yield from (Path(parent) / name for name in names)


def format_of(path: Path) -> Literal["lines", "array", "parquet"]:
    """How the rows of a file stand in it; the content decides, the name only helps. Raises DataError if it is empty."""
    if path.stat().st_size == 0:
        raise DataError("no-rows", "the file is empty", where=str(path))
    if _TABLES.search(path.name):
        separator = ", sep='\\t'" if ".tsv" in path.name else ""
        convert = f"import datasets as d; d.Dataset.from_csv('FILE'{separator}).to_json('rows.jsonl')"
        raise DataError(
            "unreadable-file", "a table of text (CSV, TSV) is not read", where=str(path), fix=f'python -c "{convert}"'
        )
    with open_bytes(path) as f:
        head = f.read(1 << 16)
        if not head and break_of(f):
            raise DataError("damaged-file", f"cannot unpack: {break_of(f)}", where=str(path))
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(BOM).lstrip()
    if start.startswith(b"["):
        return "array"
    first, line_end, _ = start.partition(b"\n")
    if line_end and first.strip() == b"{":
        return "array"  # objects over several lines
    named_json = re.search(r"\.json(\.gz|\.zst)?$", path.name) is not None
    if named_json and start.startswith(b"{") and line_end and parse_line(1, first).value is None:
        return "array"
    return "lines"


def read_file(path: Path) -> Iterator[SourceRow]:
    """Rows of one file, whatever its format; raises DataError where none of it can be read."""
    readers = {"lines": read_jsonl, "array": read_array, "parquet": read_parquet}
    yield from readers[format_of(path)](path)


def lines_in(path: Path) -> int | None:
    """Rows of a file with one row a line; None for any other."""
    try:
        return sum(1 for _ in read_raw_lines(path)) if format_of(path) == "lines" else None
    except DataError:
        return None
