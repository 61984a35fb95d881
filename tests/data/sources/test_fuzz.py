"""Damaged files of every kind: reading ends, tells each row or why it is none, and never fails in another way."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.conversations.conversation import Conversation, join_runs, to_conversation
from eagle3cli.data.prepare.prepare import prepare
from eagle3cli.data.sources.files import read_file
from eagle3cli.errors import DataError
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.data import PrepareSettings

CHUNKS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\ud800",
        b"\\udc00",
        b"null",
        b"true",
        b"NaN",
        b"1e999",
        b"-",
    ),
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\r\n",
        b" ",
        b"\xe2\x80\xa8",
        b"PAR1",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
    ),
    *(b"1" * 4400, b"[" * 600, b'{"a":' * 400, b'"\\ud800"' + b"]" * 600, b"\xff\xfe"),
    *(
        b'"id"',
        b'"conversations":[',
        b'{"role":"user","content":"x"}',
        b'{"from":"gpt","value":"y"}',
        b'"finish":["stop"]',
    ),
]
ROWS = [
    {"id": i, "conversations": [{"role": "user", "content": f"héllo 😀 {i}"}, {"role": "assistant", "content": "yes"}]}
    for i in range(3)
]


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
FILES = {
    "lines": LINES,
    "array": json.dumps(ROWS).encode(),
    "indented": json.dumps(ROWS, indent=2).encode(),
    "gzip": gzip.compress(LINES),
    "zstd": bytes(pa.compress(LINES, "zstd", asbytes=True)),
    "parquet": parquet(),
    "nothing": b"",
}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some put in, taken out or changed."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["insert", "remove", "replace", "cut"]))
        if how == "cut":
            del data[at:]
        else:
            gone = 0 if how == "insert" else draw(st.integers(1, 20))
            data[at : at + gone] = b"" if how == "remove" else draw(st.sampled_from(CHUNKS) | st.binary(max_size=5))
    return bytes(data)


many = settings(max_examples=150, deadline=60_000, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", FILES)
@many
@given(data=st.data())
def test_reading_ends_and_tells_every_row(kind: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / data.draw(st.sampled_from(["a.json", "a.jsonl"]))
        path.write_bytes(data.draw(damaged(FILES[kind])))
        try:
            lines = list(read_file(path))
        except DataError:
            return
        assert all((line.value is None) == (line.problem is not None) for line in lines)
        assert all(line.number >= 1 for line in lines)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "text", "function", "name", "x"]), inner)
    ),
    max_leaves=12,
)
KEYS = (
    *("id", "conversations", "messages", "turns", "reference", "data", "prompt", "instruction", "input", "output"),
    *("history", "system", "tools", "finish", "tool_calls"),
)


@pytest.mark.slow
@many
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), st.lists(VALUES, max_size=3))
def test_any_row_is_a_conversation_or_told_why_not(row: dict[str, Any], messages: list[Any]) -> None:
    for raw in (row, {**row, "conversations": messages}):
        conversation: Conversation | None = None
        with suppress(DataError):
            conversation = join_runs(to_conversation(raw))
        if conversation is None:
            continue
        assert all(isinstance(message["content"], str) for message in conversation.messages)
        assert conversation.user_turns


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_prepare_accounts_for_every_row_of_a_damaged_file(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.jsonl").write_bytes(data.draw(damaged(FILES["lines"])))
        out = folder / "out"
        counts: dict[str, Any] = {}
        with suppress(DataError):  # no row is usable
            counts = prepare(PrepareSettings(source=(str(folder / "a.jsonl"),), output_path=out), Silent()).summary
        if not counts:
            return
        errors = [json.loads(line) for line in (out / "errors.jsonl").read_bytes().splitlines()]
        gone = [entry for entry in errors if entry["kind"] in ("rejected", "duplicate")]
        written = (out / "train.jsonl").read_bytes().splitlines()
        assert counts["read"] == len(written) + len(gone)
        assert sum(counts["reasons"].values()) == len(gone)
        assert all(entry["reason"] and entry["place"].startswith(str(folder / "a.jsonl:")) for entry in errors)
