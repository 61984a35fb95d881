"""Regeneration through servers that fail, die and hang: every row in one place, with the reply that is its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.errors import Eagle3Error, Stopped, UsageError
from eagle3cli.runtime import stop
from eagle3cli.runtime.report import Silent
from eagle3cli.serving import remote
from eagle3cli.serving.pool import Rules
from eagle3cli.serving.regenerate import Regenerated, regenerate
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT
from tests.serving.fake_server import FakeServer, Faults, reply_to, running

QUICK = Rules(tick=0.05, silence=1.0, health=1.0, retry_wait=0.01)
ILL = Faults(error_500=0.03, busy_429=0.03, reset=0.03, malformed=0.03, aborted=0.03, retry_after=0.02, seconds=0.01)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def old(text: str = "old") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def write_rows(path: Path, count: int) -> Path:
    """Every third row is a conversation of two turns."""
    with path.open("w") as f:
        for i in range(count):
            talk = [user(f"q{i}"), old(), user(f"then{i}"), old()][: 1 if i % 3 else 4]
            f.write(json.dumps({"id": f"r{i}", "conversations": talk}) + "\n")
    return path


def write_one(path: Path, *talk: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"id": "a", "conversations": list(talk), **more}) + "\n")
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


@pytest.mark.slow
def test_two_thousand_rows_through_servers_that_fail(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 2000)
    slow = Faults(seconds=0.3, places=4, most_waiting=4, tells_load=False, seed=2)
    with running(ILL, Faults(**{**vars(ILL), "silent": 0.002, "seed": 1}), slow) as servers:
        done = run(servers, rows, tmp_path / "out")
        assert all(server.served for server in servers)
    assert (done.rows, done.generated, done.errors, done.shards) == (2000, 2000, 0, 4)
    check(tmp_path / "out", 2000)


def test_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 600)
    with running(Faults(seconds=0.05), Faults(seconds=0.05)) as (one, two):
        import threading

        def die_and_come_back() -> None:
            time.sleep(0.4)
            one.do(one.stop())
            time.sleep(0.5)
            one.do(one.start())

        thread = threading.Thread(target=die_and_come_back)
        thread.start()
        run([one, two], rows, tmp_path / "out", table={"max_concurrency": 16})
        thread.join()
    check(tmp_path / "out", 600)


@pytest.mark.slow
def test_kill_at_ten_random_moments(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 2000)
    out = tmp_path / "out"
    moments = random.Random(0)
    with running(
        Faults(**{**vars(ILL), "seconds": 0.05}), Faults(**{**vars(ILL), "seconds": 0.05, "seed": 1})
    ) as servers:
        words = ["regenerate", "--input-path", str(rows), "--output-dir", str(out), "--num-per-shard", "300"]
        words += ["--server-address-port", *[server.address for server in servers]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        kills = 0
        for _ in range(10):
            process = subprocess.Popen([sys.executable, "-m", "eagle3cli", *words], env=environment, cwd=tmp_path)
            aim = lines_of(out) + moments.randrange(5, 190)
            while process.poll() is None and lines_of(out) < aim:
                time.sleep(0.002)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert kills == 10
        before = lines_of(out)
        assert 200 < before < 2000
        finished = [json.dumps([user(f"q{row}")]) for row in rows_done(out)]
        asked = [sum(server.seen[text] for server in servers) for text in finished]
        done = run(servers, rows, out, num_per_shard=300)
        assert done.rows_now == 2000 - before == 2000 - len(finished)
        assert asked == [sum(server.seen[text] for server in servers) for text in finished]
    check(out, 2000)


def lines_of(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (*folder.glob(".part_*"), *folder.glob("shard_*")))


def rows_done(folder: Path) -> list[int]:
    """Rows that have their outcome, in shards or in part files."""
    ids = [row["id"] for row in rows_of(folder, "shard")]
    parts = [line for path in folder.glob(".part_*") for line in path.read_text().splitlines()]
    return [int(name[1:]) for name in ids] + [json.loads(line)["row"] for line in parts if line.endswith("}")]


def test_turns_build_on_the_replies_before_them(tmp_path: Path) -> None:
    rows = write_one(tmp_path / "in.jsonl", user("1"), old(), user("2"), old())
    with running(Faults()) as servers:
        run(servers, rows, tmp_path / "all", system_prompt="Be brief.")
        run(servers, rows, tmp_path / "last", turns="last")
        sent = [body["messages"] for body in servers[0].bodies]
    system = {"role": "system", "content": "Be brief."}
    assert sent[0] == [system, user("1")]
    assert sent[1] == [system, user("1"), old(reply_to(sent[0])), user("2")]
    assert sent[2] == [user("1"), old(), user("2")]
    assert rows_of(tmp_path / "last", "shard")[0]["finish"] == ["kept", "stop"]


def test_rows_carry_token_ids_finish_and_truncation(tmp_path: Path) -> None:
    rows = write_one(tmp_path / "in.jsonl", user("1"), old(), user("2"), old())
    with running(Faults(words=3)) as servers:
        run(servers, rows, tmp_path / "a", turns="last")
        run(servers, rows, tmp_path / "b", max_tokens=2)
    whole, cut = rows_of(tmp_path / "a", "shard")[0], rows_of(tmp_path / "b", "shard")[0]
    words = whole["conversations"][-1]["content"].split(" ")
    assert whole["token_ids"] == [None, [len(word) for word in words]]
    assert (whole["truncated"], cut["truncated"]) == (False, True)
    assert cut["finish"] == ["length", "length"]


def test_rows_that_do_not_fit_the_context(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    talks = [
        [user("word " * 50)],
        [user("word " * 30)],
        [user("one"), old(), user("word " * 50), old()],
    ]
    path.write_text("".join(json.dumps({"id": f"r{i}", "conversations": t}) + "\n" for i, t in enumerate(talks)))
    with running(Faults(context=40, words=20)) as servers:
        done = run(servers, path, tmp_path / "out", max_tokens=30)
    assert done.reasons == {"too long for the context": 1}
    assert rows_of(tmp_path / "out", "error")[0]["reason"] == "too long for the context: 50 tokens of 40"
    shorter, ended = rows_of(tmp_path / "out", "shard")
    assert shorter["finish"] == ["length"]
    assert len(shorter["conversations"][1]["content"].split(" ")) == 10
    assert (len(ended["conversations"]), ended["truncated"]) == (2, True)


def test_tool_turns_stand_and_a_call_ends_the_conversation(tmp_path: Path) -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    rows = write_one(
        tmp_path / "in.jsonl",
        user("1"),
        calling,
        {"role": "tool", "content": "x"},
        old(),
        user("2"),
        old(),
        tools=[TOOL],
    )
    with running(Faults()) as (server,):
        run([server], rows, tmp_path / "a")
        assert server.bodies[0]["tools"] == [TOOL]
        assert server.bodies[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"
        message = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "c"}]}
        server.answer = lambda body: {
            "choices": [{"message": message, "finish_reason": "tool_calls"}],
            "usage": {"completion_tokens": 3, "prompt_tokens": 1},
        }
        run([server], rows, tmp_path / "b")
    row = rows_of(tmp_path / "a", "shard")[0]
    assert row["finish"] == ["kept", "stop", "stop"]
    assert row["conversations"][1]["tool_calls"] == [CALL]
    called = rows_of(tmp_path / "b", "shard")[0]
    assert called["finish"] == ["kept", "tool_calls"]
    assert called["conversations"][-1]["tool_calls"][0]["id"] == "c"
    assert called["truncated"]


def said(content: str, reasoning: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}


@pytest.mark.parametrize(
    ("answer", "kept", "dropped"),
    [
        (said("Yes.", "Hm."), {"content": "Yes.", "reasoning_content": "Hm."}, {"content": "Yes."}),
        (said("<think>\nHm.\n</think>\n\nYes."), {"content": "<think>\nHm.\n</think>\n\nYes."}, {"content": "Yes."}),
        (said("", "cut"), {"content": "", "reasoning_content": "cut"}, {"content": ""}),
    ],
)
def test_reasoning_is_kept_or_taken_off(tmp_path: Path, answer: Any, kept: Any, dropped: Any) -> None:
    rows = write_one(tmp_path / "in.jsonl", user("1"))
    with running(Faults()) as (server,):
        server.answer = lambda body: dict(answer)
        run([server], rows, tmp_path / "kept", is_reasoning_model=True)
        run([server], rows, tmp_path / "dropped")
    assert rows_of(tmp_path / "kept", "shard")[0]["conversations"][1] == {"role": "assistant", **kept}
    assert rows_of(tmp_path / "dropped", "shard")[0]["conversations"][1] == {"role": "assistant", **dropped}


HARMONY = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."


@pytest.mark.parametrize("text", [HARMONY, "analysisHm.assistantfinalYes."])
def test_harmony(tmp_path: Path, text: str) -> None:
    rows = write_one(tmp_path / "in.jsonl", user("1"))
    with running(Faults(model="openai/gpt-oss-20b")) as (server,):
        server.answer = lambda body: said(text)
        run([server], rows, tmp_path / "out", is_reasoning_model=True, reasoning_effort="high")
        assert server.bodies[0]["reasoning_effort"] == "high"
    told = rows_of(tmp_path / "out", "shard")[0]["conversations"][1]
    assert told == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_failed_rows_are_retried_alone(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 30)
    with running(Faults()) as (server,):
        usual = server.chat

        def refuse_some(body: dict[str, Any]) -> dict[str, Any]:
            if body["messages"][0]["content"] in ("q4", "q7"):
                return {"status": 400, "message": "no"}
            return usual(body)

        server.answer = refuse_some
        done = run([server], rows, tmp_path / "out", num_per_shard=10)
        assert done.reasons == {"the server refuses it (400: no)": 2}
        check(tmp_path / "out", 30, errors=2)
        server.answer = None
        before = server.served.total()
        again = run([server], rows, tmp_path / "out", num_per_shard=10, retry_errors=True)
        assert server.served.total() - before == 2
    assert (again.errors, again.rows_now, again.generated) == (0, 2, 30)
    check(tmp_path / "out", 30)


def test_sampling_reaches_the_server_with_a_stream_for_every_reply(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 6)
    with running(Faults()) as (server,):
        wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 50}
        run([server], rows, tmp_path / "out", sample_range="1:5", **wanted)
        seeds = {body["seed"] for body in server.bodies}
        assert len(seeds) == len(server.bodies) == 5
        assert {(b["temperature"], b["top_p"], b["top_k"], b["max_tokens"]) for b in server.bodies} == {
            (0.7, 0.9, 5, 50)
        }
    assert [row["id"] for row in rows_of(tmp_path / "out", "shard")] == ["r1", "r2", "r3", "r4"]


def test_a_stop_signal_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.1)
    rows = write_rows(tmp_path / "in.jsonl", 200)
    with running(Faults(seconds=0.2)) as servers:
        asked = stop.Stop()
        monkeypatch.setattr(stop, "_active", asked)
        import threading

        threading.Timer(0.6, lambda: setattr(asked, "requested", signal.SIGTERM)).start()
        with pytest.raises(Stopped, match="of 200 rows") as stopped:
            run(servers, rows, tmp_path / "out", table={"max_concurrency": 16})
        assert stopped.value.exit_code == 143
        monkeypatch.setattr(stop, "_active", None)
        assert 0 < lines_of(tmp_path / "out") < 200
        run(servers, rows, tmp_path / "out", table={"max_concurrency": 64})
    check(tmp_path / "out", 200)


def test_dead_servers_end_the_work_and_lose_nothing(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 300)
    with running(Faults(seconds=0.02)) as (server,):
        import threading

        threading.Timer(0.3, lambda: server.do(server.stop())).start()
        with pytest.raises(Eagle3Error, match="no server has answered"):
            run([server], rows, tmp_path / "out", Rules(tick=0.05, patience=0.5, retry_wait=0.01))
        before = lines_of(tmp_path / "out")
        assert 0 < before < 300
        server.do(server.start())
        assert run([server], rows, tmp_path / "out").rows_now == 300 - before
    check(tmp_path / "out", 300)


def test_addresses_and_local_exclude_each_other(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 1)
    with running(Faults()) as servers, pytest.raises(UsageError, match="needs no servers"):
        run(servers, rows, tmp_path / "out", engine="local")


def test_the_notes_tell_who_holds_the_work_up(tmp_path: Path) -> None:
    class Told(Silent):
        notes: dict[str, object] = {}

        def task(self, name: str, total: int | None = None, unit: str = "rows", done: int = 0) -> Any:
            from contextlib import nullcontext
            from types import SimpleNamespace

            return nullcontext(SimpleNamespace(advance=lambda count=1, **notes: self.notes.update(notes)))

    rows = write_rows(tmp_path / "in.jsonl", 200)
    seen = []
    for fault, concurrency in ((Faults(seconds=0.05, places=2), 32), (Faults(seconds=0.3), 8)):
        report = Told()
        with running(fault) as (server,):
            tables = {
                "server": {"address_port": [server.address], "max_concurrency": concurrency},
                "regenerate": {"input_path": rows, "output_dir": tmp_path / str(len(seen)), "sample_range": "0:60"},
            }
            limits: list[str] = []
            report.notes = _Spy(limits)
            regenerate(Settings.model_validate(tables), report, QUICK)
        seen.append(limits)
    assert any("wait inside them" in limit for limit in seen[0])
    assert "--max-concurrency" in seen[1]


class _Spy(dict[str, object]):
    def __init__(self, limits: list[str]) -> None:
        self.limits = limits

    def update(self, notes: Any) -> None:  # type: ignore[override]
        if "limited by" in notes:
            self.limits.append(notes["limited by"])
