"""Drafts of every shape: training and the decoder's key/value cache give the same proposals, the text is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target.hf import load_target
from eagle3cli.models.contract import Layout, refusals
from eagle3cli.models.draft import Draft
from eagle3cli.models.inference import load_for_inference
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training.ttt.unroll import plan_positions, unroll
from tests.serving.engine_case import STEPS, make_draft, make_target

FIVE = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3, 5, 6]}}
LATENT = {"kv_lora_rank": 24, "q_lora_rank": 40, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 28}
SHAPES: dict[str, tuple[dict[str, Any], set[Layout]]] = {
    # keys of the draft's JSON, and the layouts that may hold it
    "plain": ({"norm_output": False}, {"sglang", "vllm", "legacy"}),
    "norm-before-fc": ({"norm_before_fc": True, "norm_output": False}, {"sglang", "vllm"}),
    "three-wide-layers-five-states": ({"num_hidden_layers": 3, "intermediate_size": 320, **FIVE}, {"sglang", "vllm"}),
    "own-embedding": ({"own_embedding": True, "norm_output": False}, {"vllm"}),
    "latent": ({"architectures": ["Eagle3DeepseekV2ForCausalLM"], "fc_norm": True, **LATENT}, {"sglang", "vllm"}),
    "norm-before-residual": ({"norm_before_residual": True, "norm_output": False}, {"vllm"}),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("wide") / "target"
    return folder, make_target(folder, "llama")


def walked_steps(draft: Draft, target_folder: Path, tokens: list[int], known: int) -> int:
    """Verifications that decoding takes from ``known`` tokens on, by one teacher-forced pass over the whole text."""
    model = load_target(TargetSettings(model_path=str(target_folder), device="cpu"), Silent(), draft.config.aux_layers)
    ids = torch.tensor(tokens + [0] * (STEPS + 2))  # room for rows whose proposals reach behind the end
    aux, _ = model.capture([ids.tolist()])[0]
    every = torch.ones(len(ids), dtype=torch.bool)
    plan = plan_positions(every, (0, len(ids)), every, STEPS, "serving")
    proposed = torch.full((STEPS, len(ids)), -1)
    for depth, (hidden, positions) in enumerate(
        zip(unroll(draft, ids, aux, model.embedding_VH, plan), plan.steps, strict=True)
    ):
        proposed[depth, positions.position_R[positions.loss_L]] = draft.draft_ids[draft.lm_head(hidden).argmax(-1)]
    steps, newest = 0, known
    while newest < len(tokens) - 1:
        accepted = 0
        while accepted < STEPS and newest + 1 + accepted < len(tokens):
            if int(proposed[accepted, newest - 1]) != tokens[newest + 1 + accepted]:
                break
            accepted += 1
        steps, newest = steps + 1, newest + accepted + 1
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_training_and_decoding_propose_the_same(name: str, target: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, raw = target
    wanted, layouts = SHAPES[name]
    with torch.enable_grad():
        expected = make_draft(tmp_path / "draft", folder, raw, **wanted)
    assert 1.2 < expected.acceptance_length < 3.8
    draft = load_for_inference(tmp_path / "draft", raw)
    assert {layout for layout in ("sglang", "vllm", "legacy") if not refusals(draft.config, layout)} == layouts
    walked = [
        walked_steps(draft, folder, prompt + reply, len(prompt))
        for prompt, reply in zip(expected.prompts, expected.replies, strict=True)
    ]
    assert walked == expected.steps
