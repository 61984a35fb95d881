"""Prompts that a tiny target writes itself."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.regenerate import self_prompts
from eagle3cli.serving.regenerate.self_prompts import PART, self_author, user_header
from eagle3cli.settings.data import PrepareSettings
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from tests.failing import fails
from tests.tiny import END, START, tiny_tokenizer

if TYPE_CHECKING:
    from tests.conftest import RunCli


def author_of(target: Path, seed: int = 0, size: int = 6) -> Any:
    prepare = PrepareSettings(source=("self",), sample_size=size, seed=seed)
    return self_author(Settings(target=TargetSettings(model_path=str(target)), prepare=prepare), Silent())


def first(author: Any, folder: Path, count: int) -> list[SourceRow]:
    lines = author.lines(folder)
    rows = list(islice(lines, count))
    lines.close()
    return rows


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_prompts, "LONGEST", 96)


@pytest.mark.slow
def test_a_seed_gives_the_same_prompts_also_after_a_kill(tiny: Path, tmp_path: Path) -> None:
    whole = first(author_of(tiny), tmp_path / "a", 15)
    assert [line.number for line in whole] == list(range(1, 16))
    assert {line.value is None for line in whole} == {True, False}
    assert all("no end within" in (line.problem or "") for line in whole if line.value is None)
    part = tmp_path / "a" / PART
    raw_lines = part.read_bytes().splitlines(keepends=True)
    assert len(raw_lines) == 1 + 18
    part.write_bytes(b"".join(raw_lines[:9]) + raw_lines[9][:-5])  # killed within the second chunk, at a torn line
    assert first(author_of(tiny), tmp_path / "a", 15) == whole
    assert first(author_of(tiny, seed=1), tmp_path / "a", 15) != whole
    assert json.loads(part.read_bytes().splitlines()[0])["seed"] == 1


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = first(author_of(tiny), tmp_path, 6)
    monkeypatch.setattr(self_prompts, "load_target", lambda *_: pytest.fail("the target was loaded"))
    author = author_of(tiny)
    assert first(author, tmp_path, 6) == whole
    author.finish(tmp_path)
    assert not (tmp_path / PART).exists()


def test_the_header_is_the_templates_own() -> None:
    assert user_header(tiny_tokenizer(), "auto") == (f"{START}user\n", f"{END}\n")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].role }}"
    with fails("unknown-template"):
        user_header(tokenizer, "auto")


@pytest.mark.slow
def test_prepare_self_alone_and_mixed(tiny: Path, tmp_path: Path, run_cli: RunCli) -> None:
    words = ("prepare", "self", "--model-path", tiny, "--sample-size", 4, "--output-path", "out", "--json")
    done = run_cli(*words)
    assert done.code == (3 if done.json["rejected"] else 0), done.err  # of a random target some say nothing
    assert done.json["written"] == 4
    assert done.json["read"] == 4 + done.json["rejected"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_bytes().splitlines()]
    assert all([message["role"] for message in row["conversations"]] == ["user"] for row in rows)
    assert run_cli(*words).json["already_done"]
    assert not (tmp_path / "out" / PART).exists()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(9)))
    mixed = run_cli(
        *("prepare", "self:0.25", "a.jsonl:0.75", "--model-path", tiny, "--sample-size", 8, "--output-path", "mix"),
        "--json",
    )
    assert mixed.json["sources"] == {"self": 2, "a": 6}
    for wrong in (("prepare", "self", "a.jsonl"), ("prepare", "self:1", "a.jsonl:1")):
        refused = run_cli(*wrong, "--model-path", tiny)
        assert refused.code == 2
        assert refused.error == "conflicting-options"
    assert run_cli("prepare", "self", "--model-path", tmp_path / "none").code == 1
