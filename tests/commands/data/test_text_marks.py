"""Pre-formatted rows with custom marks, and a system prompt for all rows, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import RunCli
from tests.tiny import tiny_tokenizer


@pytest.fixture
def target(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def rows(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(ran_json: dict[str, list[dict[str, list[dict[str, object]]]]]) -> str:
    return "".join(str(run["text"]) for run in ran_json["rows"][0]["runs"] if run["trained"])


def test_custom_marks(run_cli: RunCli, tmp_path: Path, target: Path) -> None:
    file = rows(tmp_path / "text.jsonl", {"id": "a", "text": "Q: one\nA: 1\nQ: two\nA: 2<|im_end|>"})
    marks = ("--assistant-header", "\\nA:", "--user-header", "\\nQ:", "--end-of-turn-token", "<|im_end|>")
    words = ("view", "1", "--path", file, "--target-model-path", target, "--is-preformatted", *marks, "--json")
    ran = run_cli(*words)
    assert ran.code == 0, ran.err
    assert trained(ran.json) == " 1 2<|im_end|>"


def test_a_system_prompt_for_all_rows(run_cli: RunCli, tmp_path: Path, target: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    file = rows(tmp_path / "talk.jsonl", {"id": "a", "conversations": talk})
    (tmp_path / "prompt.txt").write_text("Be kind.\n")
    words = ("view", "1", "--path", file, "--target-model-path", target, "--json")
    ran = run_cli(*words, "--system-prompt", f"@{tmp_path}/prompt.txt")
    assert ran.code == 0, ran.err
    text = "".join(run["text"] for run in ran.json["rows"][0]["runs"])
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
    assert trained(ran.json) == "yo<|im_end|>"


def test_values_for_the_template(run_cli: RunCli, tmp_path: Path, target: Path) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ mood }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {{ mood }}\n{% endif %}"
    )
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    file = rows(tmp_path / "talk.jsonl", {"id": "a", "conversations": talk})
    words = ("view", "1", "--path", file, "--target-model-path", target, "--chat-template", tmp_path / "own.jinja")
    ran = run_cli(*words, "--chat-template-kwargs", "mood=calm", "--json")
    assert ran.code == 0, ran.err
    assert "<|im_start|>assistant calm\n" in "".join(run["text"] for run in ran.json["rows"][0]["runs"])
    assert trained(ran.json) == "yo<|im_end|>"
    assert run_cli(*words, "--chat-template-kwargs", "mood").code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--assistant-header", "A:"), "is for pre-formatted rows"),
        (("--is-preformatted", "--user-header", "Q:"), "needs data.assistant_header"),
        (("--is-preformatted", "--system-prompt", "Be kind."), "cannot change pre-formatted rows"),
    ],
)
def test_marks_that_make_no_sense(run_cli: RunCli, target: Path, words: tuple[str, ...], said: str) -> None:
    ran = run_cli("view", "--target-model-path", target, *words)
    assert ran.code == 2
    assert said in ran.err
