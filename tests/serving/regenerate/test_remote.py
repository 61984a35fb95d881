"""What regeneration through servers asks for, and what it makes of the answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.data.chat.tokenizer import load_tokenizer
from eagle3cli.data.images.reference import find_image
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.regenerate.regenerate import regenerate
from eagle3cli.settings.tables import Settings
from tests.failing import fails
from tests.pictures import write_images
from tests.serving.client.fake_server import Faults, reply_to, running
from tests.serving.regenerate.remote_run import (
    QUICK,
    old,
    rows_of,
    run,
    user,
    write_one,
    write_rows,
)

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


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
    message = rows_of(tmp_path / "out", "shard")[0]["conversations"][1]
    assert message == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_a_chat_template_of_our_own_is_rendered_here(tmp_path: Path, tiny: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: <think>\n")
    rows = write_one(tmp_path / "in.jsonl", user("1"))
    expected = load_tokenizer(str(tiny)).encode("user: 1\nassistant: <think>", add_special_tokens=False)
    with running(Faults()) as (server,):
        tables: dict[str, Any] = {
            "target": {"model_path": str(tiny)},
            "data": {"chat_template": str(template)},
            "server": {"address_port": [server.address]},
            "regenerate": {"input_path": rows, "output_dir": tmp_path / "out"},
        }
        report = Silent()
        regenerate(Settings.model_validate(tables), report, QUICK)
        body = server.bodies[0]
        tables["regenerate"] |= {"output_dir": tmp_path / "kept", "is_reasoning_model": True}
        regenerate(Settings.model_validate(tables), Silent(), QUICK)
    assert body["input_ids"] == expected
    assert 2 in body["sampling_params"]["stop_token_ids"]
    # The prompt opened a block of reasoning and the reply did not close it.
    assert rows_of(tmp_path / "out", "shard")[0]["conversations"][1]["content"] == ""
    row = rows_of(tmp_path / "kept", "shard")[0]
    assert row["conversations"][1]["content"] == f"reply to {expected}"
    assert row["token_ids"] == [[7, 2]]
    assert any("--model-path" in text for text in report.warnings)  # the fake serves another model


def test_values_for_the_servers_template_are_sent(tmp_path: Path) -> None:
    rows = write_one(tmp_path / "in.jsonl", user("1"))
    with running(Faults()) as (server,):
        tables = {
            "data": {"chat_template_kwargs": ["enable_thinking=false"]},
            "server": {"address_port": [server.address]},
            "regenerate": {"input_path": rows, "output_dir": tmp_path / "out"},
        }
        regenerate(Settings.model_validate(tables), Silent(), QUICK)
        assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_sampling_reaches_the_server_with_a_stream_for_every_reply(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 6)
    with running(Faults()) as (server,):
        config = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 50}
        run([server], rows, tmp_path / "out", sample_range="1:5", **config)
        seeds = {body["seed"] for body in server.bodies}
        assert len(seeds) == len(server.bodies) == 5
        assert {(b["temperature"], b["top_p"], b["top_k"], b["max_tokens"]) for b in server.bodies} == {
            (0.7, 0.9, 5, 50)
        }
    assert [row["id"] for row in rows_of(tmp_path / "out", "shard")] == ["r1", "r2", "r3", "r4"]


def test_addresses_and_local_exclude_each_other(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 1)
    with running(Faults()) as servers, fails("conflicting-options"):
        run(servers, rows, tmp_path / "out", engine="local")


def test_images_are_sent_by_data_urls_and_a_changed_one_fails_its_row(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    asked = [{"type": "text", "text": "What?"}, {"type": "image", "image": "images/0.png"}]
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": asked}, old()]},
        {"id": "b", "messages": [{"role": "user", "content": [{**asked[1], "sha256": "0" * 64}]}, old()]},
        {"id": "c", "messages": [{"role": "user", "content": [{**asked[1], "image": "images/9.png"}]}, old()]},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(Faults()) as servers:
        run(servers, tmp_path / "in.jsonl", tmp_path / "out")
        sent = [body["messages"] for body in servers[0].bodies]
    url = "data:image/png;base64," + base64.b64encode(images[0].read_bytes()).decode()
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    assert sent == [[{"role": "user", "content": parts}]]
    written = rows_of(tmp_path / "out", "shard")
    image = {"type": "image", "image": str(images[0]), "sha256": find_image(str(images[0])).sha256}
    assert written[0]["conversations"][0]["content_parts"] == ["What?", image]
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path / "out", "error")}
    assert reasons["b"].startswith("message 1: the image has changed since the row was prepared")
    assert reasons["c"] == "no such image: images/9.png"


def test_going_on_notices_that_an_image_is_another_one(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    shown = [{"type": "image", "image": "images/0.png"}, {"type": "text", "text": "What?"}]
    rows = [{"messages": [user("No image."), old()]}, {"messages": [{"role": "user", "content": shown}, old()]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(Faults()) as servers:
        run(servers, tmp_path / "in.jsonl", tmp_path / "out")
        kept = images[0].read_bytes()
        images[0].write_bytes(images[1].read_bytes())
        with fails("made-differently", "0.png"):
            run(servers, tmp_path / "in.jsonl", tmp_path / "out")
        images[0].write_bytes(kept)
        assert run(servers, tmp_path / "in.jsonl", tmp_path / "out").nothing_new
        images[0].unlink()
        assert run(servers, tmp_path / "in.jsonl", tmp_path / "out").nothing_new
        assert run(servers, tmp_path / "in.jsonl", tmp_path / "out", overwrite=True).errors == 1
