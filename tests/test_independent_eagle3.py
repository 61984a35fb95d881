"""The independent decoder, our engine and simulated acceptance agree, on others' drafts and on exported ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.target.hf import load_target
from eagle3cli.data.tokens.rows import TokenRow, TokenRows
from eagle3cli.models.checkpoint import load_draft, save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode.decode import decode
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training.eval.evaluate import evaluate
from tests.independent_eagle3 import NaiveDraft, measure

PROMPTS = ("count from 17", "days from monday", "months back from may", "count back from 60 please")
NEW_TOKENS, K = 24, 3


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "engines" / "tiny_eagle3"


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "target")
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] for chat in chats
    ]


@pytest.fixture
def newer(folder: Path, tmp_path: Path) -> Path:
    """The trained draft with EAGLE-3.1's two norms put in, which cost it some of its acceptance."""
    config, state = load_draft(folder / "draft", aux_layers=(1, 3, 4))
    config = replace(config, fc_norm=True, norm_output=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "target", output_hidden_states=True)
    with torch.no_grad():
        states = model(torch.arange(20, 60)[None]).hidden_states
    # Norm weights that undo the norm on average, so that the draft still works.
    for i, layer in enumerate(config.aux_layers):
        state[f"fc_norm.{i}.weight"] = torch.full((config.hidden_size,), float(states[layer + 1].pow(2).mean() ** 0.5))
    save_draft(tmp_path / "newer", state, config, dtype=torch.float32)
    return tmp_path / "newer"


def test_newer_drafts_mean_the_same_to_all(folder: Path, prompts: list[list[int]], newer: Path) -> None:
    plain = measure(folder / "target", folder / "draft", prompts, k=K, max_new_tokens=8, default_layers=(1, 3, 4))
    changed = measure(folder / "target", newer, prompts, k=K, max_new_tokens=8)
    assert plain.steps != changed.steps
    assert changed.acceptance_length > 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"), [("draft", 3.6, 4.0), ("draft_random", 1.0, 1.1), ("newer", 1.5, 4.0)]
)
def test_simulated_acceptance_engine_and_independent_decoder_agree(
    folder: Path, prompts: list[list[int]], newer: Path, tmp_path: Path, name: str, low: float, high: float
) -> None:
    name = str(newer) if name == "newer" else name
    options: dict[str, Any] = {"k": K, "max_new_tokens": NEW_TOKENS, "eos_ids": frozenset([2])}
    independent = measure(folder / "target", folder / name, prompts, **options, default_layers=(1, 3, 4))
    assert low <= independent.acceptance_length <= high

    target = load_target(TargetSettings(model_path=str(folder / "target"), device="cpu"), Silent())
    config, state = load_draft(folder / name, aux_layers=target.aux_layers)
    draft = Draft(config).float().eval()
    draft.load_state_dict(state)
    ours = decode(target, draft, prompts, batch_size=4, **options)
    assert [row.token_ids for row in ours] == independent.replies
    assert [row.steps for row in ours] == independent.steps

    rows = []
    for prompt, reply in zip(prompts, independent.replies, strict=True):
        mask = np.array([0] * len(prompt) + [1] * len(reply), dtype=np.uint8)
        rows.append(TokenRow("", np.array(prompt + reply, dtype=np.int32), mask))
    source = OnlineSource(target, TokenRows.of(rows))
    walked = evaluate(
        draft, source, target.embedding_VH, draft_steps=K, rows=range(len(rows)), batch_size=2, report=Silent()
    ).simulated[-1]
    assert (walked.tokens, walked.steps) == (sum(map(len, independent.replies)) - len(rows), sum(independent.steps))

    save_draft(tmp_path / "exported", draft.serving_state(), config, dtype=torch.float32)
    exported = measure(folder / "target", tmp_path / "exported", prompts, **options)
    assert exported == independent


def test_scaled_rope_means_the_same_to_both(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }
    raw = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
    }
    config = DraftConfig.from_target(
        {**raw, "vocab_size": 20, "num_hidden_layers": 8, "rope_theta": 5e5, "rope_scaling": scaling}
    )
    draft = Draft(config)
    draft.set_vocab(torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.bool))
    save_draft(tmp_path, draft.serving_state(), config)
    torch.testing.assert_close(NaiveDraft(tmp_path).frequencies, draft.rotary.inv_freq)
