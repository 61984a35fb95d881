"""What a reply says anew is told from what it repeats, of itself or of its prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.backends.capture.splits import capture_splits
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.distributed import SINGLE_PROCESS
from eagle3cli.runtime.report import Silent
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Settings
from eagle3cli.training.eval.own_replies import judge_replies, new_tokens
from tests.tiny import TEXT


@pytest.mark.parametrize(
    ("prompt", "reply", "count"),
    [
        ([1, 2], [10, 11, 12, 13], 3),
        ([1, 2], [10, 11, 12, 13, 14] * 20, 7),
        ([10, 11, 12, 13, 14, 15, 16], [10, 11, 12, 13, 14, 15, 16], 2),
        ([1, 2], [10], 0),
    ],
    ids=["plain", "going round", "the prompt again", "one token"],
)
def test_repeated_tokens_are_not_new(prompt: list[int], reply: list[int], count: int) -> None:
    """The first token is not judged; behind a place where the text turns three tokens are new."""
    mask = [0] * len(prompt) + [1] * len(reply)
    assert new_tokens(prompt + reply, mask) == count


@pytest.mark.slow
def test_states_on_disk_are_judged_as_the_target_itself_would(tiny: Path, tmp_path: Path) -> None:
    """What a capture of several processes has not judged is judged from its states."""
    rows = tmp_path / "rows.jsonl"
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in TEXT]
    rows.write_text("".join(json.dumps({"id": str(i), "conversations": t}) + "\n" for i, t in enumerate(turns)))
    settings = Settings().updated("target", model_path=str(tiny), threads=1, device="cpu")
    settings = settings.updated("data", train_path=rows, max_length=256, num_proc=1, cache_dir=tmp_path / "cache")
    settings = settings.updated("hidden_states", output_path=tmp_path / "states", split="train")
    config = DraftConfig.from_target(json.loads((tiny / "config.json").read_text()), draft_vocab_size=200)
    capture_splits(settings, Silent(), Stop(), SINGLE_PROCESS)
    judged = {}
    for name, store in (("capture", None), ("states", tmp_path / "states" / "train"), ("target", None)):
        judged[name] = judge_replies(settings, config, Silent(), Stop(), store)
        for known in (tmp_path / "cache").rglob("on_policy.safetensors"):
            known.unlink()
    assert len(judged["target"]) == len(TEXT)
    for row, reply in judged["target"].items():
        for name in ("capture", "states"):
            assert judged[name][row].best_share == pytest.approx(reply.best_share, abs=0.02)
            assert judged[name][row].mean_logprob == pytest.approx(reply.mean_logprob, rel=0.02)
