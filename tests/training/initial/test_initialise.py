"""Weights solved from a target's states: what they promise holds before any training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.target.head import read_target_tensors
from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training.initial.initialise import initialise
from eagle3cli.training.initial.sample import gather_sample
from eagle3cli.training.initial.solve import ridge
from eagle3cli.training.ttt.loss import LossWeights, Teacher, ttt_loss
from eagle3cli.training.ttt.unroll import plan_positions, unroll


class Rows(list[TokenRow]):
    """Token rows of a test."""

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self]


@pytest.fixture(scope="module")
def source(tiny: Path) -> OnlineSource:
    """Replies that the tiny target writes by itself."""
    target = load_target(TargetSettings(model_path=str(tiny)), Silent())
    model = AutoModelForCausalLM.from_pretrained(tiny)
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(10, 300, (24, 6), generator=generator)
    ids = model.generate(prompts, max_new_tokens=24, min_new_tokens=24, do_sample=True, pad_token_id=0).tolist()
    rows = Rows(
        TokenRow(str(n), torch.tensor(row).int().numpy(), (torch.arange(30) >= 6).byte().numpy())
        for n, row in enumerate(ids)
    )
    return OnlineSource(target, rows)  # type: ignore[arg-type]


def loss_of(draft: Draft, source: OnlineSource) -> float:
    batch = source.batch(range(24))
    plan = plan_positions(batch.loss_mask_N, batch.cu_seqlens, draft.t2d[batch.top_N], 1, "serving")
    with torch.no_grad():
        normed = unroll(draft, batch.token_ids_N, batch.aux_NC, source.target.embedding_VH, plan)
        teacher = Teacher(batch.last_NH, batch.top_N, source.target.head.rows(draft.draft_ids), draft.draft_ids)
        total, _ = ttt_loss(normed, draft.lm_head.weight, teacher, plan, LossWeights.of_cross_entropy([1.0]))
    return float(total) / plan.with_loss


@pytest.mark.slow
@pytest.mark.parametrize("wide", [0, 8], ids=["heads of the target", "heads wider than the hidden size"])
def test_starts_closer_to_the_target_than_noise(source: OnlineSource, wide: int) -> None:
    target = source.target
    assert isinstance(target, HfTarget)
    final_norm = read_target_tensors(target.path, 7)["final_norm"]
    config = DraftConfig.from_target(target.model.config.to_dict(), aux_layers=target.aux_layers)
    if wide:
        config = replace(config, head_dim=config.hidden_size + wide)
    torch.manual_seed(0)
    draft = Draft(config)
    before = loss_of(draft, source)
    sample = gather_sample([source.batch(range(24))], final_norm, 10_000)
    assert len(sample.token_R) == 24 * 23
    initialise(
        draft, sample, embedding_VH=target.embedding_VH, head=target.head, final_norm_H=final_norm,
        last_layer_mlp={},
    )  # fmt: skip
    assert loss_of(draft, source) < before
    assert torch.equal(draft.lm_head.weight, target.head.weight_VH)
    rms = sample.aux_RC.pow(2).mean(0).sqrt()
    torch.testing.assert_close(draft.aux_scale_C, rms.clamp(min=1e-3 * float(rms.mean())))


def test_the_scale_of_the_states_leaves_the_function_alone() -> None:
    config = DraftConfig(16, 24, 4, 2, 4, 32, 32, 16, (0, 1, 2))
    draft, aux = Draft(config), torch.randn(5, 48)
    want = draft.first_hidden(aux)
    folded = draft.serving_state()["fc.weight"]
    draft.set_aux_scale(torch.rand(48) * 10 + 0.1)
    torch.testing.assert_close(draft.first_hidden(aux), want)
    torch.testing.assert_close(draft.serving_state()["fc.weight"], folded)


def test_ridge_finds_a_linear_map() -> None:
    x, w = torch.randn(400, 12), torch.randn(5, 12)
    torch.testing.assert_close(ridge(x, x @ w.T), w, rtol=0.02, atol=0.02)
