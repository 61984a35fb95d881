from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.sources import json_array
from eagle3cli.data.sources.files import files_of, read_file
from eagle3cli.data.sources.hub import read_hub
from eagle3cli.data.sources.lines import SourceRow, parse_line, read_jsonl
from eagle3cli.errors import DataError
from tests.failing import fails

ROWS = [{"id": str(i), "text": f"line {i} \u2028 \u0085 😀"} for i in range(5)]


def read_path(path: Path) -> Iterator[SourceRow]:
    for file in files_of(path):
        yield from read_file(file)


def lines_of(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def values(lines: list[SourceRow]) -> list[Any]:
    return [line.value for line in lines]


def test_lines_are_split_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines_of(ROWS).replace(b"\n", b"\r\n").rstrip())
    lines = list(read_jsonl(path))
    assert values(lines) == ROWS
    assert [line.number for line in lines] == [1, 2, 3, 4, 5]
    assert "byte order mark removed" in lines[0].repairs
    assert not lines[-1].repairs


def test_bad_lines_are_told_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n"\xff"\n{"s": "\\ud83d"}\n' + b"[" * 100_000 + b"\n")
    lines = list(read_jsonl(path))
    assert [line.number for line in lines] == [1, 3, 4, 5, 6, 7]
    assert [line.value is None for line in lines] == [False, True, True, True, False, True]
    assert "not valid JSON" in (lines[1].problem or "")
    assert lines[2].problem == "a JSON list, not an object"
    assert "not UTF-8" in (lines[3].problem or "")
    assert lines[4].value == {"s": "\ufffd"}
    assert lines[1].place == f"{path}:3"


DEEP = b'{"a": ' + b"[" * 900 + b'"\\ud800"' + b"]" * 900 + b"}"
LONG_NUMBER = b'{"a": ' + b"1" * 5000 + b"}"


@pytest.mark.parametrize("array", [False, True])
def test_rows_that_python_gives_up_on_cost_only_themselves(tmp_path: Path, array: bool) -> None:
    rows = [b'{"a": 1}', DEEP, LONG_NUMBER, b'{"a": 2}']
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b",\n".join(rows) + b"]" if array else b"\n".join(rows))
    lines = list(read_file(path))
    assert values(lines) == [{"a": 1}, None, None, {"a": 2}]
    problems = [line.problem for line in lines if line.problem]
    assert problems == ["not valid JSON: nested too deeply", "not valid JSON: a number of thousands of digits"]
    assert [line.number for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "misnamed.jsonl"])
def test_gzip_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(lines_of(ROWS)))
    assert values(list(read_file(path))) == ROWS


def test_a_gzip_file_that_breaks_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(ROWS * 1000))[:-20])
    lines = list(read_file(path))
    assert lines[0].value == ROWS[0]
    assert "breaks off" in (lines[-1].problem or "")


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_arrays_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None) -> None:
    monkeypatch.setattr(json_array, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert values(list(read_file(path))) == ROWS


def ends_of(text: str) -> list[int]:
    """Where each object of an array ends."""
    ends, at = [], 1
    while (at := text.find("{", at)) >= 0:
        at = json.JSONDecoder().raw_decode(text, at)[1]
        ends.append(at)
    return ends


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_array_that_breaks_off_gives_every_whole_object(tmp_path: Path, data: st.DataObject) -> None:
    row = st.dictionaries(st.text(max_size=3), st.text(max_size=8), max_size=3)
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    text = json.dumps(rows, indent=data.draw(st.sampled_from([None, 2])))
    cut = data.draw(st.integers(1, len(text) - 1))
    path = tmp_path / "a.json"
    path.write_text(text[:cut], encoding="utf-8")
    *read, last = list(read_file(path))
    assert "breaks off" in (last.problem or "")
    assert values(read) == rows[: sum(end <= cut for end in ends_of(text))]


def test_the_place_of_a_broken_array_is_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n {"a": 1},\n {"a": 2},\n {"a": "brok', encoding="utf-8")
    lines = list(read_file(path))
    assert [(line.number, line.value) for line in lines] == [(2, {"a": 1}), (3, {"a": 2}), (4, None)]


def test_one_object_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[0], indent=2), encoding="utf-8")
    assert values(list(read_file(path))) == ROWS[:1]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert values(list(read_file(path))) == ROWS
    path.write_bytes(path.read_bytes()[:-10])
    with fails("damaged-file"):
        list(read_file(path))


def test_a_folder_is_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.jsonl").write_bytes(lines_of(ROWS[3:]))
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:3]))
    (tmp_path / "errors.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("x")
    assert values(list(read_path(tmp_path))) == ROWS


def test_links_to_folders_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jsonl").write_bytes(lines_of(ROWS))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "data")
    assert values(list(read_path(tmp_path / "data"))) == ROWS


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_bytes(lines_of(ROWS))
    (tmp_path / "2.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with fails("no-such-path") as caught:
        list(read_path(tmp_path))
    assert caught.value.where == str(tmp_path / "2.jsonl")


@pytest.mark.parametrize("array", [False, True])
def test_what_follows_damage_in_a_gzip_file_is_not_accepted(tmp_path: Path, array: bool) -> None:
    """A byte that is another one is noticed by the checksum only, which stands at the end."""
    rows = [{"id": f"r{i}", "x": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(3000)]
    raw = json.dumps(rows, indent=0).encode() if array else lines_of(rows)
    packed = bytearray(gzip.compress(raw))
    packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / "rows.json"
    path.write_bytes(bytes(packed))
    *good, last = read_path(path)
    assert 100 < len(good) < 2000
    assert values(good) == rows[: len(good)]
    assert "from here on nothing is read" in str(last.problem)


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_damage_that_no_row_shows_is_not_accepted(tmp_path: Path, packer: str, array: bool) -> None:
    """A letter that is another one leaves every row readable, and may be in any of them; without the checksum's word it
    would be trained on."""
    rows = [{"id": f"r{i}", "x": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(3000)]
    raw = json.dumps(rows, indent=0).encode() if array else lines_of(rows)
    packed = with_checksum(raw, packer)
    altered = with_checksum(raw.replace(b"r5", b"r6", 1), packer)
    checksum = 8 if packer == "gzip" else 4
    path = tmp_path / "rows.json"
    path.write_bytes(altered[:-checksum] + packed[-checksum:])
    (last,) = read_path(path)
    assert "from here on nothing is read" in str(last.problem)
    path.write_bytes(packed)
    assert values(list(read_path(path))) == rows


def with_checksum(raw: bytes, packer: str) -> bytes:
    """The text packed, with a checksum at the end; zstd's as blocks that hold it as it is (RFC 8878)."""
    if packer == "gzip":
        return gzip.compress(raw)
    blocks = [raw[at : at + (1 << 16)] for at in range(0, len(raw), 1 << 16)]
    frame = b"\x28\xb5\x2f\xfd\x04\x48"
    for number, block in enumerate(blocks):
        frame += (len(block) << 3 | (number == len(blocks) - 1)).to_bytes(3, "little") + block
    return frame + (xxhash.xxh64_intdigest(raw) & 0xFFFFFFFF).to_bytes(4, "little")


def test_what_follows_a_damaged_member_of_a_gzip_file_is_not_accepted(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(lines_of(ROWS)))
    packed[-8] ^= 0xFF
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(bytes(packed) + gzip.compress(lines_of(ROWS)))
    *good, last = read_path(path)
    assert len(good) <= len(ROWS)
    assert "CRC" in str(last.problem)


def test_a_zstd_file_that_breaks_off_gives_what_it_holds(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "x": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(6000)]
    packed = bytes(pa.compress(lines_of(rows), "zstd", asbytes=True))
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(packed[:-10])
    *good, last = read_path(path)
    assert len(good) > 4000
    assert values(good) == rows[: len(good)]
    assert "breaks off" in str(last.problem)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with fails("no-such-path"):
        list(read_path(tmp_path / "none"))
    with fails("no-data-files"):
        list(read_path(tmp_path))
    (tmp_path / "empty.jsonl").touch()
    with fails("no-rows", "empty"):
        list(read_path(tmp_path))
    (tmp_path / "empty.jsonl").write_bytes("{}".encode("utf-16"))
    with fails("unreadable-file", "UTF-16"):
        list(read_path(tmp_path))


def test_a_hub_data_set_out_of_reach_is_an_error_with_a_fix() -> None:
    with pytest.raises(DataError) as error:
        next(read_hub("nobody/nothing-at-all", "train"))
    assert "nobody/nothing-at-all" in str(error.value)
    assert error.value.fix


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_raise(raw: bytes) -> None:
    line = parse_line(1, raw)
    assert (line.value is None) == (line.problem is not None)


PIECES = st.sampled_from(
    [b'{"id": 1, "prompt": "q"}', b"[", b"]", b",", b"\n", b"{", b"}", b'"', b"\\", b"\xff", b"\0", b"\xef\xbb\xbf"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(PIECES | st.binary(max_size=5), max_size=12),
    st.sampled_from(["a.json", "a.jsonl", "a.parquet"]),
    st.sampled_from([b"", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xff\xfe"]),
    st.booleans(),
)
def test_no_file_raises_anything_but_a_reason(
    tmp_path: Path, pieces: list[bytes], name: str, head: bytes, packed: bool
) -> None:
    data = head + b"".join(pieces)
    (tmp_path / name).write_bytes(gzip.compress(data)[: -1 if len(pieces) % 2 else None] if packed else data)
    lines: list[SourceRow] = []
    with suppress(DataError):
        lines += read_file(tmp_path / name)
    assert all((line.value is None) == bool(line.problem) for line in lines)
    assert [line.number for line in lines] == sorted(line.number for line in lines)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv.gz"])
def test_a_table_of_text_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("id,prompt\n1,hello\n")
    with pytest.raises(DataError) as error:
        list(read_path(path))
    assert "CSV" in error.value.message
    assert "to_json('rows.jsonl')" in (error.value.fix or "")
