"""What CONTRIBUTING says is done to a copy of the program, line for line, and what was added is used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.conftest import ROOT
from tests.tiny import tiny_tokenizer

PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILE = r"`(eagle3cli/[a-z0-9_./-]+)`"
ENTRIES = re.findall(rf"`([A-Z]+)`\s+in\s+{FILE}[^`]*?(?:`[^`]+`[^`]*)*?:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
FILES = re.findall(rf"{FILE}:\n\n```json\n(.*?)```", PAGE, re.DOTALL)
FILES += re.findall(rf"{FILE}, with two functions.*?```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the program, changed as the page says."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "eagle3cli", folder / "eagle3cli", ignore=shutil.ignore_patterns("__pycache__"))
    for table, name, entry in ENTRIES:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        assert len(opened := re.findall(rf"^{table}\b.*= \{{$", text, re.MULTILINE)) == 1, table
        path.write_text(text.replace(opened[0], f"{opened[0]}\n{entry.rstrip()}"), encoding="utf-8")
    for name, content in FILES:
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def python(copied: Path, cwd: Path, *words: object) -> str:
    """Run the copied program's Python in a folder; returns stdout."""
    env = {**os.environ, "PYTHONPATH": str(copied), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TALK = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "You call sorted."}]


def test_the_page_has_them_all() -> None:
    assert {table for table, _, _ in ENTRIES} == {"NAMED", "PRESETS", "BENCHMARKS"}
    assert [Path(name).name for name, _ in FILES] == ["my-model.json", "columns.py"]


def test_a_data_set(copied: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"asked": "France?", "said": "Paris"}, {"asked": "Italy?", "said": "Rome"})
    told = python(copied, tmp_path, "-m", "eagle3cli", "prepare", "capitals", "--data-path", rows, "--json")
    (train,) = tmp_path.rglob("train.jsonl")
    assert "capitals" in str(train)
    assert json.loads(train.read_text().splitlines()[0])["conversations"][1]["content"] in ("Paris", "Rome")
    assert json.loads(told)


@pytest.mark.slow
def test_a_chat_template(copied: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"id": "a", "conversations": TALK})
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "</s>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    given = ("--chat-template", "zephyr", "--target-model-path", tmp_path / "model", "--path", rows)
    shown = python(copied, tmp_path, "-m", "eagle3cli", "view", "1", *given)
    assert "<|assistant|>" in shown
    assert "You call sorted." in shown


@pytest.mark.slow
def test_a_draft_config(copied: Path, tiny: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"id": "a", "conversations": TALK})
    given = ("--draft-model-config", "my-model", "--target-model-path", tiny, "--train-data-path", rows)
    python(copied, tmp_path, "-m", "eagle3cli", "cache", *given)
    (mapping,) = (tmp_path / "cache" / "vocab_mapping").iterdir()
    assert len(load_file(mapping)["d2t"]) == 96


USE = """
import sys
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.accuracy import is_right
from eagle3cli.serving.bench.tasks import load_task
question = load_task(sys.argv[1], Silent()).questions[0]
print(question.turns[0], is_right("It is 4.", question.check, run_code=False))
"""


def test_a_benchmark(copied: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"sum": "2 + 2", "answer": "#### 4"})
    assert python(copied, tmp_path, "-c", USE, f"sums@{rows}:1") == "Work out: 2 + 2 True\n"


@pytest.mark.slow
def test_a_tracker(copied: Path, tiny: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *({"id": f"r{i}", "conversations": TALK} for i in range(4)))
    given = ("--target-model-path", tiny, "--train-data-path", rows, "--total-steps", "2", "--batch-size", "2")
    more = ("--draft-vocab-size", "64", "--ttt-length", "1", "--log-interval", "1", "--draft-init", "random")
    python(copied, tmp_path, "-m", "eagle3cli", "train", "--report-to", "columns", *given, *more)
    (kept,) = (tmp_path / "runs" / "train").rglob("loss.txt")
    assert [line.split()[0] for line in kept.read_text().splitlines()] == ["1", "2"]


def test_every_file_that_is_named_exists() -> None:
    added = {name for name, _ in FILES}
    for name in re.findall(r"`((?:eagle3cli|tests)/[^`\s]+)`", PAGE):
        assert name in added or (ROOT / name).exists(), name
