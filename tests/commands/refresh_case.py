"""A draft of a tiny target as servers have it, and logs of a server that runs that target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import RunCli
from tests.tiny import tiny_tokenizer

TOKENS = 10
SETTINGS = """
[target]
model_path = "{tiny}"
threads = 1
[data]
max_length = 128
num_proc = 1
[regenerate]
engine = "local"
max_tokens = {tokens}
[train]
total_steps = 2
batch_size = 4
learning_rate = 2e-3
ttt_length = 2
[draft]
vocab_size = 200
init = "random"
[run]
k = 2
[refresh]
min_rows = 16
num_epochs = 5
learning_rate = 5e-3
tolerance = 0.5
"""
OLD = ("rain", "hill", "town", "river", "meadow", "evening", "letter", "friend", "city", "train", "noon", "hour")
NEW = ("def", "return", "print", "sorted", "list", "add", "call", "keep", "number", "sort", "text", "value")


def prompts(words: tuple[str, ...], count: int) -> list[str]:
    """Prompts that differ in their words."""
    size = len(words)
    return [f"Say {words[i % size]} and {words[(i // size + 1) % size]} {words[(7 * i) % size]}." for i in range(count)]


def own_replies(run_cli: RunCli, folder: Path, texts: list[str], name: str, *more: str) -> dict[str, str]:
    """The target's own replies, by prompt: those of a random target whose text has as many tokens again."""
    rows = [{"id": str(i), "conversations": [{"role": "user", "content": text}]} for i, text in enumerate(texts)]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = run_cli("regenerate", "--input-path", path, "--output-dir", folder / name, *more, cwd=folder)
    assert ran.code == 0, ran.err
    written = [json.loads(line) for shard in (folder / name).glob("shard_*") for line in shard.open()]
    replies = {row["conversations"][0]["content"]: row["conversations"][1]["content"] for row in written}
    tokenizer = tiny_tokenizer()
    return {prompt: reply for prompt, reply in replies.items() if len(tokenizer(reply)["input_ids"]) == TOKENS}


def exchange(prompt: str, reply: str, *, finish: str = "length", **request: Any) -> dict[str, Any]:
    """A line of a log."""
    asked = {"model": "llama", "temperature": 0, "messages": [{"role": "user", "content": prompt}], **request}
    message = {"role": "assistant", "content": reply}
    return {"request": asked, "response": {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}}


def write_log(path: Path, rows: list[Any]) -> Path:
    """A log of these lines."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def make_served(run_cli: RunCli, folder: Path, tiny: Path) -> None:
    """``runs/draft``, trained in ``runs/train`` on ``old.jsonl`` with ``held.jsonl`` held out; settings for tests."""
    (folder / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny, tokens=TOKENS))
    replies = own_replies(run_cli, folder, prompts(OLD, 40), "old")
    rows = [
        {"id": f"o{i}", "conversations": [{"role": "user", "content": p}, {"role": "assistant", "content": r}]}
        for i, (p, r) in enumerate(replies.items())
    ]
    write_log(folder / "train.jsonl", rows[8:])
    write_log(folder / "eval.jsonl", rows[:8])
    data = ("--train-data-path", "train.jsonl", "--eval-data-path", "eval.jsonl")
    for words in (("train", *data), ("export",)):
        ran = run_cli(*words, cwd=folder)
        assert ran.code == 0, ran.err
