"""What the tests of regeneration through servers share: rows, a run, and the check that every row is in its place."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.pool import Rules
from eagle3cli.serving.regenerate.regenerate import Regenerated, regenerate
from eagle3cli.settings.tables import Settings
from tests.serving.client.fake_server import FakeServer, Faults, reply_to

QUICK = Rules(tick=0.05, silence=1.0, health=1.0, retry_wait=0.01)
ILL = Faults(error_500=0.03, busy_429=0.03, reset=0.03, malformed=0.03, aborted=0.03, retry_after=0.02, seconds=0.01)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def old(text: str = "old") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def write_rows(path: Path, count: int) -> Path:
    """Every third row is a conversation of two turns."""
    with path.open("w") as f:
        for i in range(count):
            messages = [user(f"q{i}"), old(), user(f"then{i}"), old()][: 1 if i % 3 else 4]
            f.write(json.dumps({"id": f"r{i}", "conversations": messages}) + "\n")
    return path


def write_one(path: Path, *messages: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"id": "a", "conversations": list(messages), **more}) + "\n")
    return path


def run(
    servers: list[FakeServer],
    rows: Path,
    out: Path,
    rules: Rules = QUICK,
    table: dict[str, Any] | None = None,
    **w: Any,
) -> Regenerated:
    addresses = [server.address for server in servers]
    tables = {
        "server": {"address_port": addresses, "request_timeout": 2, "max_concurrency": 64} | (table or {}),
        "regenerate": {"input_path": rows, "output_dir": out, "num_per_shard": 500} | w,
    }
    return regenerate(Settings.model_validate(tables), Silent(), rules)


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"{kind}_*.jsonl"), key=lambda path: int(path.stem.split("_")[1].split("-")[0]))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def check(folder: Path, count: int, errors: int = 0) -> None:
    """Each row once, in order, each reply the one to its own conversation."""
    good, bad = rows_of(folder, "shard"), rows_of(folder, "error")
    assert len(bad) == errors
    assert sorted([int(row["id"][1:]) for row in (*good, *bad)]) == list(range(count))
    assert [row["id"] for row in good] == sorted((row["id"] for row in good), key=lambda name: int(name[1:]))
    for row in good:
        before: list[dict[str, Any]] = []
        for message in row["conversations"]:
            if message["role"] == "assistant":
                assert message["content"] == reply_to(before)
            before.append(message)
        assert len(row["finish"]) == sum(message["role"] == "assistant" for message in row["conversations"])
    assert not list(folder.glob(".part*"))


def lines_of(folder: Path) -> int:
    """Rows that have their outcome, while a process may be writing them or after it was killed."""
    lines = 0
    for path in (*folder.glob("shard_*"), *_parts(folder)):
        with suppress(FileNotFoundError):  # its shard is finished
            lines += path.read_bytes().count(b"\n")
    return lines


def _parts(folder: Path) -> list[Path]:
    """Part files, without one whose rows a shard has already: a kill may come before it is removed."""
    return [path for path in folder.glob(".part_*") if not (folder / path.name.replace(".part_", "shard_")).exists()]


def rows_done(folder: Path) -> list[int]:
    """Rows that have their outcome, in shards or in part files."""
    ids = [row["id"] for row in rows_of(folder, "shard")]
    parts = [line for path in _parts(folder) for line in path.read_text().splitlines(keepends=True)]
    return [int(name[1:]) for name in ids] + [json.loads(line)["row"] for line in parts if line.endswith("}\n")]
