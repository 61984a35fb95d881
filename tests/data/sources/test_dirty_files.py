"""Files as people have them: every row of every one is in the result or in errors.jsonl, with its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagle3cli.data.prepare.prepare import prepare
from eagle3cli.data.sources import lines as sources
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.data import PrepareSettings


def talk(number: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]
    return {"id": f"row{number}", "conversations": messages, **more}


def line(number: int, **more: Any) -> bytes:
    return json.dumps(talk(number, **more)).encode() + b"\n"


GOOD = b"".join(line(i) for i in range(3))
MARK = b"\xef\xbb\xbf"


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


def array(*rows: bytes) -> bytes:
    return b"[\n" + b",\n".join(row.strip() for row in rows) + b"\n]\n"


# name of the file, its bytes, ids of the result, {line: (kind, part of the reason)}
CASES: dict[str, tuple[str, bytes, list[int], dict[int, tuple[str, str]]]] = {
    "byte order marks where files were joined": (
        "a.jsonl",
        MARK + line(0) + MARK + line(1),
        [0, 1],
        {1: ("repaired", "byte order mark"), 2: ("repaired", "byte order mark")},
    ),
    "line ends of Windows": (
        "a.jsonl",
        GOOD.replace(b"\n", b"\r\n"),
        [0, 1, 2],
        dict.fromkeys((1, 2, 3), ("repaired", "CR before")),
    ),
    "a comma after each row": (
        "a.jsonl",
        line(0).strip() + b",\n" + line(1).strip() + b" , \n" + line(2),
        [0, 1, 2],
        {1: ("repaired", "comma after"), 2: ("repaired", "comma after")},
    ),
    "NUL bytes of a crash": (
        "a.jsonl",
        line(0) + b"\0" * 500 + b"\n" + line(1),
        [0, 1],
        {2: ("rejected", "NUL bytes (byte 1 of the line)")},
    ),
    "UTF-16": (
        "a.jsonl",
        GOOD.decode().encode("utf-16") + b"",
        [],
        {1: ("rejected", "UTF-16 text (save it as UTF-8)")},
    ),
    "UTF-16 without a mark": (
        "a.jsonl",
        GOOD + GOOD.decode().encode("utf-16-le").replace(b"\n\0", b"\n"),
        [0, 1, 2],
        dict.fromkeys((4, 5, 6), ("rejected", "NUL bytes")),
    ),
    "another encoding": (
        "a.jsonl",
        line(0) + json.dumps(talk(1, note="ü"), ensure_ascii=False).encode("latin-1") + b"\n",
        [0],
        {2: ("rejected", "not UTF-8")},
    ),
    "a key that is there twice": (
        "a.jsonl",
        line(0) + b'{"id": "row1", "conversations": [{"role": "user", "role": "assistant", "content": "x"}]}\n',
        [0],
        {2: ("rejected", "has the key 'role' twice")},
    ),
    "a key that is there twice with one value": (
        "a.jsonl",
        line(0) + b'{"id": "row1", "id": "row1", "prompt": "x"}\n',
        [0, 1],
        {},
    ),
    "nested too deeply": (
        "a.jsonl",
        line(0) + b'{"id": "row1", "conversations": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
        [0],
        {2: ("rejected", "nested too deeply")},
    ),
    "lone surrogates": (
        "a.jsonl",
        line(0) + b'{"id": "row1", "conversations": [{"role": "user", "content": "x\\ud83d"}]}\n',
        [0, 1],
        {2: ("repaired", "lone surrogate")},
    ),
    "a raw tab in a string": (
        "a.jsonl",
        line(0) + b'{"id": "row1", "prompt": "a\tb"}\n',
        [0, 1],
        {2: ("repaired", "control character")},
    ),
    "a number that JSON has not": (
        "a.jsonl",
        line(0, score=float("nan"))
        + b'{"id": "row1", "messages": [{"role": "user", "content": "q"}], "tools": [{"x": NaN}]}\n',
        [0],
        {2: ("rejected", "holds what JSON cannot")},
    ),
    "values that are no rows": (
        "a.jsonl",
        line(0) + b'3\nnull\n"x"\n[]\n{}\n\n' + line(1),
        [0, 1],
        {i: ("rejected", why) for i, why in enumerate(("number", "null", "string", "list", "no conversation"), 2)},
    ),
    "an empty file": ("a.jsonl", b"", [], {1: ("rejected", "the file is empty")}),
    "only blank lines": ("a.jsonl", b"\n \n\t\n", [], {}),
    "a gzip file that was cut": (
        "a.jsonl.gz",
        gzip.compress(b"".join(line(i) for i in range(4000)))[:-30],
        list(range(3900)),
        {-1: ("rejected", "breaks off")},
    ),
    "a zstd file that was cut": (
        "a.jsonl.zst",
        zstd(b"".join(line(i) for i in range(4000)))[:-30],
        list(range(1000)),
        {-1: ("rejected", "breaks off")},
    ),
    "no gzip after all": ("a.jsonl.gz", b"\x1f\x8bnothing", [], {1: ("rejected", "cannot unpack")}),
    "an array": ("a.json", array(line(0), line(1)), [0, 1], {}),
    "an array with a comma too many": ("a.json", array(line(0), line(1))[:-3] + b",\n]", [0, 1], {}),
    "an array named jsonl": ("a.jsonl", MARK + array(line(0), line(1)), [0, 1], {}),
    "arrays one after the other": ("a.json", array(line(0)) + array(line(1)), [0, 1], {}),
    "an array on one line": ("a.json", array(line(0), line(1)).replace(b"\n", b""), [0, 1], {}),
    "a damaged row of an array": (
        "a.json",
        array(line(0), line(1)[:60], line(2)),
        [0, 2],
        {3: ("rejected", "reading goes on at line 4")},
    ),
    "an array with a key twice": (
        "a.json",
        array(line(0), b'{"id": "x", "prompt": "q", "prompt": "r"}', line(2)),
        [0, 2],
        {3: ("rejected", "has the key 'prompt' twice")},
    ),
    "an array with a deep row": (
        "a.json",
        array(line(0), b'{"id": ' + b"[" * 50_000, line(2)),
        [0, 2],
        {3: ("rejected", "nested too deeply")},
    ),
    "an array that breaks off": ("a.json", array(line(0), line(1))[:-30], [0], {3: ("rejected", "breaks off")}),
    "text after an array": ("a.json", array(line(0)) + b"the end", [0], {4: ("rejected", "more text after the end")}),
    "objects over several lines": (
        "a.jsonl",
        json.dumps(talk(0), indent=1).encode() + b"\n" + json.dumps(talk(1), indent=1).encode(),
        [0, 1],
        {},
    ),
    "no data at all": ("a.jsonl", b"<html>not found</html>\n", [], {1: ("rejected", "not valid JSON")}),
}


def run(tmp_path: Path, folder: Path) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """Counts, ids of the result and errors of a folder with one more good file, so that there is a result."""
    (folder / "z.jsonl").write_bytes(line(9999))
    out = tmp_path / "out"
    counts = prepare(PrepareSettings(source=(str(folder),), output_path=out), Silent()).summary
    dispositions = ("written", "rejected", "duplicates", "filtered", "left_out")
    assert counts["read"] == sum(counts[name] for name in dispositions)
    names = [json.loads(raw)["id"] for raw in (out / "train.jsonl").read_bytes().splitlines()]
    errors = [json.loads(raw) for raw in (out / "errors.jsonl").read_bytes().split(b"\n") if raw]
    assert counts["rejected"] == sum(error["kind"] == "rejected" for error in errors)
    assert names.pop() == "row9999"
    return counts, names, errors


@pytest.mark.parametrize("case", CASES)
def test_dirty_files(tmp_path: Path, case: str) -> None:
    name, data, ids, expected = CASES[case]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(data)
    _, names, errors = run(tmp_path, folder)
    found = {int(error["place"].rpartition(":")[2]): error for error in errors}
    if -1 in expected:  # a compressed file that was cut: all rows before the cut, and the place of the cut
        assert names[: len(ids)] == [f"row{i}" for i in ids]
        expected = {len(names) + 1: expected[-1]}
    else:
        assert names == [f"row{i}" for i in ids]
    assert {number: error["kind"] for number, error in found.items()} == {n: kind for n, (kind, _) in expected.items()}
    for number, (_, reason) in expected.items():
        assert reason in found[number]["reason"]
        assert found[number]["place"] == f"{folder / name}:{number}"


@pytest.mark.parametrize("form", [lambda *rows: b"".join(rows), array], ids=["lines", "array"])
def test_a_row_too_long_for_the_memory_is_named_and_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Callable[..., bytes]
) -> None:
    from eagle3cli.data.sources import json_array

    monkeypatch.setattr(sources, "LONGEST", 1000)
    monkeypatch.setattr(json_array, "LONGEST", 1000)
    monkeypatch.setattr(json_array, "_CHUNK", 64)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_bytes(form(line(0), line(1, more="x" * 100_000), line(2)))
    _, names, errors = run(tmp_path, folder)
    assert names == ["row0", "row2"]
    assert len(errors) == 1
    assert "longer than" in errors[0]["reason"]
    assert errors[0]["place"].endswith(":2" if form is not array else ":3")


def test_parquet_with_odd_columns(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(pa.string()))])
    rows = [
        [{"role": "user", "content": f"q{i}", "tool_calls": None}, {"role": "assistant", "content": "a"}]
        for i in range(4)
    ]
    table = pa.table(
        {
            "conversations": pa.array(rows, pa.large_list(message)),
            "id": pa.array(["row0", "row1", "row2", "row3"]).dictionary_encode(),
            "picture": pa.array([b"\xff\xd8", None, b"", b"x"], pa.binary()),
            "when": pa.array([1, 2, 2**62 + 1, 4], pa.timestamp("ns")),
            "scores": pa.array([[("a", 1)], [], None, []], pa.map_(pa.string(), pa.int32())),
            "nothing": pa.nulls(4),
        }
    )
    pq.write_table(table, folder / "a.parquet")
    _, names, errors = run(tmp_path, folder)
    assert names == ["row0", "row1", "row2", "row3"]
    assert all("column 'when' left out" in error["reason"] for error in errors)


def test_parquet_text_that_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    prompts = pa.array([b"good", b"\xff\xfe bad", b"fine"], pa.binary())
    table = pa.table({"id": ["row0", "row1", "row2"], "prompt": prompts.view(pa.string())})
    pq.write_table(table, folder / "a.parquet")
    columns = {"prompt": prompts, "id": pa.array(["row3", "row4", "row5"])}
    pq.write_table(pa.table(columns), folder / "b.parquet")
    _, names, errors = run(tmp_path, folder)
    assert names == ["row0", "row2"]
    told = [(Path(error["place"]).name, error["reason"]) for error in errors]
    assert told[0][0] == "a.parquet:2"
    assert "no conversation in the row" in told[0][1]
    assert [place for place, reason in told[1:] if "content is bytes" in reason] == [
        f"b.parquet:{i}" for i in (1, 2, 3)
    ]


def test_lists_as_columns_and_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    columns = {"from": ["human", "gpt"], "value": ["q", "a"]}
    table = pa.table({"id": ["row0"], "conversations": [columns]})
    pq.write_table(table, folder / "a.parquet")
    text = json.dumps([{"role": "user", "content": "q2"}])
    pq.write_table(pa.table({"id": ["row1"], "messages": [text]}), folder / "b.parquet")
    _, names, errors = run(tmp_path, folder)
    assert (names, errors) == (["row0", "row1"], [])


def test_a_folder_of_an_earlier_result_and_a_damaged_parquet_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    prepare(PrepareSettings(source=(str(_file(tmp_path, GOOD)),), output_path=folder, split_eval=True), Silent())
    (folder / "b.parquet").write_bytes(b"PAR1 and no more")
    counts, names, errors = run(tmp_path, folder)
    assert sorted(names) == ["row0", "row1", "row2"]
    assert [error["reason"].partition(":")[0] for error in errors] == ["not a readable parquet file"]
    assert counts["read"] == 5


def _file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_bytes(data)
    return path
