"""Every row in one place, the same result whenever the run was killed, recorded replies only where they fit."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.errors import ModelError
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.chat_tokenizer import ChatTokenizer
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.serving.regenerate import record
from eagle3cli.serving.regenerate.recorded import differences_of
from eagle3cli.serving.regenerate.regenerate import Regenerated, made_with_of, prompt_with, regenerate
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT
from tests.failing import fails
from tests.serving.regenerate.remote_run import lines_of
from tests.tiny import tiny_target

QUESTIONS = ["How do I sort a list?", "And backwards?", "Write a letter.", "What is rain?", "Add 2 and 3."]


def write_rows(path: Path, count: int = 10) -> Path:
    rows = [
        {
            "id": f"r{i}",
            "conversations": [
                {"role": "user", "content": f"{i}: {QUESTIONS[i % 5]}"},
                {"role": "assistant", "content": "old"},
                {"role": "user", "content": QUESTIONS[(i + 1) % 5]},
            ][: 1 if i % 3 else 3],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(tiny: Path, rows: Path, out: Path, **config: Any) -> Settings:
    table = {"input_path": rows, "output_dir": out, "max_tokens": 12, "batch_size": 4, "num_per_shard": 4} | config
    table.setdefault("engine", "local")
    return Settings.model_validate({"target": {"model_path": str(tiny), "device": "cpu"}, "regenerate": table})


def run(tiny: Path, rows: Path, out: Path, **config: Any) -> Regenerated:
    return regenerate(settings(tiny, rows, out, **config), Silent())


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*_*.jsonl"))}


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"{kind}_*.jsonl"), key=lambda path: int(path.stem.split("_")[1].split("-")[0]))
    return [json.loads(line) for path in paths for line in path.read_text().split("\n") if line]


@pytest.mark.slow
def test_shards_hold_every_row_in_order(tiny: Path, tmp_path: Path) -> None:
    done = run(tiny, write_rows(tmp_path / "in.jsonl"), tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["shard_0-4.jsonl", "shard_4-8.jsonl", "shard_8-10.jsonl"]
    rows = rows_of(tmp_path / "out", "shard")
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(10)]
    assert (done.rows, done.generated, done.errors, done.shards) == (10, 10, 0, 3)
    messages = rows[0]["conversations"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert "old" not in [m["content"] for m in messages]
    assert len(rows[0]["finish"]) == 2
    assert not list((tmp_path / "out").glob(".part*"))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_neighbours_and_shards_change_nothing(tiny: Path, tmp_path: Path, temperature: float) -> None:
    path = write_rows(tmp_path / "in.jsonl")
    run(tiny, path, tmp_path / "a", temperature=temperature)
    run(tiny, path, tmp_path / "b", temperature=temperature, batch_size=1, num_per_shard=100)
    assert rows_of(tmp_path / "a", "shard") == rows_of(tmp_path / "b", "shard")


@pytest.mark.slow
def test_a_second_run_does_nothing_and_other_settings_are_refused(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl")
    run(tiny, path, tmp_path / "out")
    before = files(tmp_path / "out")
    again = run(tiny, path, tmp_path / "out")
    assert (again.rows, again.rows_now) == (10, 0)
    with fails("made-differently", "max_tokens", "12", "5"):
        run(tiny, path, tmp_path / "out", max_tokens=5)
    assert files(tmp_path / "out") == before
    assert run(tiny, path, tmp_path / "out", max_tokens=5, overwrite=True).rows_now == 10
    assert files(tmp_path / "out") != before


@pytest.mark.slow
def test_a_wrong_model_claims_no_folder_and_a_namesake_is_another_target(tiny: Path, tmp_path: Path) -> None:
    path, out = write_rows(tmp_path / "in.jsonl", 2), tmp_path / "out"
    with pytest.raises(ModelError):
        run(tmp_path / "absent", path, out)
    run(tiny, path, out)
    namesake = tiny_target(tmp_path / "elsewhere" / tiny.name, seed=1)
    with fails("made-differently", "target_weights"):
        run(namesake, path, out)


@pytest.mark.slow
def test_bad_rows_are_reported_and_retried(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", 3)
    with path.open("a") as f:
        f.write("{broken\n\n")
        f.write(json.dumps({"id": "long", "conversations": [{"role": "user", "content": "word " * 600}]}) + "\n")
        f.write(json.dumps({"id": "odd", "conversations": [{"role": "clown", "content": "x"}]}) + "\n")
        f.write(json.dumps({"id": "good", "conversations": [{"role": "user", "content": "x"}]}) + "\n")
    done = run(tiny, path, tmp_path / "out")
    errors = rows_of(tmp_path / "out", "error")
    assert [row["row"] for row in errors] == [3, 4, 5]
    assert [row.get("line") for row in errors] == [4, 6, 7]
    assert errors[1]["reason"].startswith("too long for the context")
    assert [row["id"] for row in rows_of(tmp_path / "out", "shard")] == ["r0", "r1", "r2", "good"]
    assert (done.rows, done.errors, sum(done.reasons.values())) == (7, 3, 3)
    before = files(tmp_path / "out")
    again = run(tiny, path, tmp_path / "out", retry_errors=True)
    assert (again.rows, again.errors, again.generated) == (7, 3, 4)
    assert files(tmp_path / "out") == before


def test_dirty_rows_all_end_somewhere(tiny: Path, tmp_path: Path, shared: Path) -> None:
    path = shared / "data" / "bad_rows.jsonl"
    done = run(tiny, path, tmp_path / "out", max_tokens=2, num_per_shard=100)
    good, bad = rows_of(tmp_path / "out", "shard"), rows_of(tmp_path / "out", "error")
    assert len(good) + len(bad) == done.rows == 18
    assert all(row["reason"] for row in bad)
    problems = {
        row["line"]
        for row in json.loads((shared / "data" / "bad_rows.expected.json").read_text())["rows"]
        if row["defect"]
    }
    assert {row["line"] for row in bad if not row["reason"].startswith("too long")} <= problems


@pytest.mark.slow
def test_retry_takes_in_rows_that_work_now(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "in.jsonl", 6)
    run(tiny, path, tmp_path / "expected")
    real = ChatTokenizer.encode

    def refuse(self: ChatTokenizer, conversation: OpenConversation) -> list[int]:
        if conversation.prompt()[0]["content"].startswith(("1:", "5:")):
            raise ModelError("refused-by-template", "the template refuses")
        return real(self, conversation)

    monkeypatch.setattr(ChatTokenizer, "encode", refuse)
    assert run(tiny, path, tmp_path / "out").errors == 2
    monkeypatch.undo()
    done = run(tiny, path, tmp_path / "out", retry_errors=True)
    assert (done.errors, done.rows_now, done.generated) == (0, 2, 6)
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_a_talk_that_outgrows_the_context_ends_before_the_last_question(tiny: Path, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "x " * 600},
    ]
    messages[1]["content"] = "old"
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "conversations": messages}) + "\n")
    run(tiny, tmp_path / "in.jsonl", tmp_path / "out")
    assert len(rows_of(tmp_path / "out", "shard")[0]["conversations"]) == 2


def test_sample_range_and_its_mistakes(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl")
    run(tiny, path, tmp_path / "out", sample_range="2:5")
    assert [row["id"] for row in rows_of(tmp_path / "out", "shard")] == ["r2", "r3", "r4"]
    for wrong in ("2", "5:2", "a:b", "99:"):
        with fails("invalid-value", "--sample-range"):
            run(tiny, path, tmp_path / "other", sample_range=wrong)


def test_no_input_and_empty_input_are_told(tiny: Path, tmp_path: Path) -> None:
    with fails("unreadable-file"):
        run(tiny, tmp_path / "absent.jsonl", tmp_path / "out")
    (tmp_path / "empty.jsonl").write_text("\n")
    with fails("no-rows"):
        run(tiny, tmp_path / "empty.jsonl", tmp_path / "out")
    (tmp_path / "array.json").write_text('[{"id": "a",\n "conversations": []}]')
    with fails("unreadable-file"):
        run(tiny, tmp_path / "array.json", tmp_path / "out")


@pytest.mark.slow
def test_a_torn_part_file_goes_on(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl")
    run(tiny, path, tmp_path / "expected", num_per_shard=100)
    lines = []
    for i, row in enumerate(rows_of(tmp_path / "expected", "shard")):
        lines.append(json.dumps({"row": i, "by": "generated", "tokens": 1, "value": row}, ensure_ascii=False) + "\n")
    (tmp_path / "out").mkdir()
    whole = "".join(lines[::-1][:4])
    part = tmp_path / "out" / ".part_0-10.jsonl"
    for torn in (lines[0][:40], lines[0][:-1], "\x00" * 7):
        part.write_text(whole + torn)
        done = run(tiny, path, tmp_path / "out", num_per_shard=100)
        assert done.rows_now == 6
        assert files(tmp_path / "out") == files(tmp_path / "expected")
        for left in (tmp_path / "out").iterdir():
            left.unlink()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.serving.regenerate.test_regenerate import run
run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), temperature=0.7, max_tokens=60, num_per_shard=12)
"""


@pytest.mark.slow
def test_kill_at_any_moment_gives_the_same_shards(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", 24)
    run(tiny, path, tmp_path / "expected", temperature=0.7, max_tokens=60, num_per_shard=12)
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), str(tiny), str(path), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    lines = 0
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, cwd=ROOT)
        while process.poll() is None and lines_of(tmp_path / "out") < lines + 3:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lines_of(tmp_path / "out") >= lines
        lines = lines_of(tmp_path / "out")
    assert 3 <= lines < 24
    done = run(tiny, path, tmp_path / "out", temperature=0.7, max_tokens=60, num_per_shard=12)
    assert done.rows_now <= 24 - lines + 1
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def recorded_file(tiny: Path, tmp_path: Path, rows: Path, **config: Any) -> Path:
    run(tiny, rows, tmp_path / "first", **config)
    record.record(tmp_path / "first", tmp_path / "replies.jsonl.gz")
    return tmp_path / "replies.jsonl.gz"


@pytest.mark.slow
def test_recorded_replies_stand_for_generated_ones(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl")
    replies = recorded_file(tiny, tmp_path, path)
    assert b"sort a list" not in gzip.decompress(replies.read_bytes())
    done = run(tiny, path, tmp_path / "out", recorded=str(replies))
    lone = sum(i % 3 != 0 for i in range(10))
    assert (done.recorded, done.generated) == (lone, 10 - lone)
    assert files(tmp_path / "out") == files(tmp_path / "first")


def test_recording_again_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    replies = recorded_file(tiny, tmp_path, write_rows(tmp_path / "in.jsonl"))
    before = replies.read_bytes()
    record.record(tmp_path / "first", replies)
    assert replies.read_bytes() == before


@pytest.mark.slow
def test_a_changed_prompt_or_setting_is_generated(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl")
    replies = recorded_file(tiny, tmp_path, path)
    path.write_text(path.read_text().replace("1: And", "1: But"))
    assert run(tiny, path, tmp_path / "a", recorded=str(replies)).recorded == 5
    report = Silent()
    done = regenerate(settings(tiny, path, tmp_path / "b", recorded=str(replies), max_tokens=5), report)
    assert done.recorded == 0
    assert "max_tokens 12 instead of 5" in report.warnings[0]
    assert run(tiny, path, tmp_path / "c", recorded=str(replies), temperature=0.5).recorded == 0
    with fails("no-such-path", "--recorded"):
        run(tiny, path, tmp_path / "d", recorded="absent")


@pytest.mark.slow
def test_replies_of_another_target_of_the_same_name_are_not_used(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", 2)
    replies = recorded_file(tiny, tmp_path, path)
    tuned = tiny_target(tmp_path / tiny.name, seed=1)
    report = Silent()
    assert regenerate(settings(tuned, path, tmp_path / "out", recorded=str(replies)), report).recorded == 0
    assert f"other weights of {tiny.name}" in report.warnings[0]
    file = {"file": f"{tiny.name}.gguf", "bytes": 1, "sha256_of_ends": "0"}
    told = {"target": tiny.name, "max_tokens": 12, "temperature": 0, "target_source": file, "target_weights": "0"}
    (tmp_path / "of-gguf.jsonl").write_text(json.dumps(told))
    now = made_with_of(settings(tiny, path, tmp_path / "out"), "")
    assert differences_of(str(tmp_path / "of-gguf.jsonl"), {**now, "target_source": file}) == []
    assert differences_of(str(tmp_path / "of-gguf.jsonl"), now) == [f"other weights of {tiny.name}"]


@pytest.mark.slow
def test_options_that_the_template_does_not_read_make_no_other_reply(tiny: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in.jsonl", 2)
    replies = recorded_file(tiny, tmp_path, path)
    thinking = settings(tiny, path, tmp_path / "a").updated("data", chat_template_kwargs=("enable_thinking=false",))
    now = made_with_of(thinking, "")
    assert len(differences_of(str(replies), now)) == 1
    assert differences_of(str(replies), now, partial(prompt_with, thinking)) == []
    read = thinking.updated("data", chat_template=str(tmp_path / "own.jinja"))
    (tmp_path / "own.jinja").write_text("{{ enable_thinking }}{{ messages[0].content }}")
    assert len(differences_of(str(replies), now, partial(prompt_with, read))) == 1


def test_replies_of_reasoning_alone_are_told(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thinks.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<think>\n"
    )
    some = settings(tiny, write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out", max_tokens=3)
    report = Silent()
    done = regenerate(some.updated("data", chat_template=str(tmp_path / "thinks.jinja")), report)
    assert [row["conversations"][-1]["content"] for row in rows_of(tmp_path / "out", "shard")] == [""] * 3
    assert (done.generated, len(report.warnings)) == (3, 1)
    assert "3 of 3 rows end in reasoning that --max-tokens 3 cut" in report.warnings[0]


@pytest.mark.slow
def test_sampled_replies_are_not_recorded(tiny: Path, tmp_path: Path) -> None:
    run(tiny, write_rows(tmp_path / "in.jsonl", 2), tmp_path / "out", temperature=1.0)
    assert record.main([str(tmp_path / "out"), str(tmp_path / "x.jsonl")]) == 2
    assert record.main([]) == 2


def test_two_runs_do_not_share_a_folder(tiny: Path, tmp_path: Path) -> None:
    from eagle3cli.serving.regenerate.shards import ShardFolder

    path = write_rows(tmp_path / "in.jsonl", 1)
    with ShardFolder(tmp_path / "out").locked(), fails("locked"):
        run(tiny, path, tmp_path / "out")
