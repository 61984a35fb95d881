"""``--max-length auto``: one number for the same rows, whoever asks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eagle3cli.data.tokens.lengths import count_kept
from eagle3cli.data.tokens.max_length import STEP, LengthChoice, Tally, with_max_length
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.tables import Settings
from tests.conftest import RunCli
from tests.tiny import conversations


def tallied(rows: list[tuple[int, int]], limit: int) -> LengthChoice:
    """The choice for rows of so many tokens, of which the last so many are a reply."""
    tally = Tally(limit)
    for tokens, reply in rows:
        mask = np.zeros(tokens, dtype=np.uint8)
        mask[tokens - reply :] = 1
        ids = np.zeros(min(tokens, limit), dtype=np.int32)
        kept = count_kept(tokens, [(tokens - reply, tokens)], limit)
        tally.add(TokenRow("row", ids, mask[:limit], truncated=tokens > limit, kept=kept))
    return tally.choice(len(rows))


@pytest.mark.parametrize(
    ("rows", "limit", "chosen"),
    [
        ([(100, 50)] * 99 + [(1000, 50)], 4096, STEP),  # the long one has a hundredth of the reply tokens
        ([(100, 50)] * 98 + [(1000, 51)], 4096, 1024),
        ([(STEP, 50)], 4096, STEP),
        ([(STEP + 1, 1)], 4096, 2 * STEP),
        ([(1000, 500)], 500, 500),  # the target's context: nothing longer is possible
        ([(300, 0)], 4096, 2048),
    ],
)
def test_the_smallest_multiple_that_keeps_99_of_100_reply_tokens(
    rows: list[tuple[int, int]], limit: int, chosen: int
) -> None:
    assert tallied(rows, limit).max_length == chosen


def test_what_is_lost_is_counted() -> None:
    choice = tallied([(100, 50)] * 396 + [(120, 100), (200, 100), (1000, 50)], 4096)
    assert (choice.max_length, choice.rows, choice.whole, choice.without_reply) == (STEP, 399, 397, 1)
    assert (choice.reply_tokens, choice.kept_reply_tokens) == (396 * 50 + 250, 396 * 50 + 128)
    assert "399 rows measured 2 are cut, 1 of them before any reply, and 122 of 20,050 reply tokens" in choice.text()


def test_every_command_takes_the_number_that_the_cache_chose(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    words = ["short words"] * 60 + ["many words " * 12]
    rows = [[("user", "ask"), ("assistant", text)] for text in words]
    conversations = [[{"role": role, "content": text} for role, text in row] for row in rows]
    text = "".join(json.dumps({"conversations": conversation}) + "\n" for conversation in conversations)
    (tmp_path / "train.jsonl").write_text(text)
    (tmp_path / "eval.jsonl").write_text(text[:200].splitlines()[0] + "\n")
    target = ("--target-model-path", str(tiny), "--train-data-path", "train.jsonl", "--json")
    chosen = run_cli("cache", *target, "--max-length", "auto")
    length = chosen.json["max_length"]
    assert length % STEP == 0
    assert f"data.max_length auto: {length} tokens" in chosen.err
    assert not run_cli("cache", *target, "--max-length", str(length)).json["built"]
    planned = run_cli("hidden-states", *target, "--dry-run", "--max-length", "auto").json
    assert planned == run_cli("hidden-states", *target, "--dry-run", "--max-length", str(length)).json
    held_out = run_cli("cache", *target, "--max-length", "auto", "--eval-data-path", "eval.jsonl")
    assert held_out.json["max_length"] == length  # by the training rows, also with others beside them
    assert "chosen by the evaluation rows" not in held_out.err


def test_without_training_rows_it_says_that_it_is_by_the_others(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text(conversations(6, 0))
    tables = {"target": {"model_path": str(tiny)}, "data": {"eval_path": tmp_path / "eval.jsonl", "max_length": "auto"}}
    said: list[str] = []

    class Said(Silent):
        def info(self, text: str) -> None:
            said.append(text)

    chosen = with_max_length(Settings.model_validate(tables), 512, Said(), remember=False)
    assert chosen.data.max_length == 128
    assert said[1].startswith(f"chosen by the evaluation rows, {tmp_path / 'eval.jsonl'}: ")


def test_without_rows_a_plan_counts_with_the_usual_length(run_cli: RunCli, tiny: Path) -> None:
    words = ("plan", "llama-3.1-8b-online", "--model-path", str(tiny), "--set", "data.max_length=auto", "--json")
    told = run_cli(*words)
    assert told.code == 0, told.err
    assert any("auto chooses another number" in note for note in told.json["forecast"]["ranges_from"])
    wrong = run_cli("cache", "--max-length", "atuo")
    assert wrong.code == 2
    assert wrong.error == "invalid-value"


def test_a_damaged_choice_is_made_again(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(conversations(6, 0))
    words = ("cache", "--target-model-path", tiny, "--train-data-path", "train.jsonl", "--max-length", "auto")
    assert run_cli(*words).code == 0
    (kept,) = (tmp_path / "cache" / "max_length").glob("*.json")
    whole = kept.read_text()
    for damaged in ("{", "[]", '{"max_length": 128}'):
        kept.write_text(damaged)
        assert run_cli(*words).code == 0
        assert kept.read_text() == whole
