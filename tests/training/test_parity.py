"""One EAGLE-3 step against reference tensors made by another trainer (alignment ``specforge``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from eagle3cli.models.draft import Draft
from eagle3cli.training.loss import DepthSums, Teacher, depth_losses
from eagle3cli.training.optimizer import Optimizer
from eagle3cli.training.rows import masked_rows, plan_rows
from eagle3cli.training.unroll import unroll
from tests.training.parity_case import Case, read_case

HERE = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("EAGLE3_SHARED", HERE.parent / "shared"))
FOLDER = Path(os.environ.get("EAGLE3_PARITY_DIR", SHARED / "fixtures" / "parity"))
CASES = sorted(p for p in FOLDER.glob("*.json") if p.with_suffix(".safetensors").exists())
LOSS = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
GRAD = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
NORM = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
UPDATE = {torch.float32: 2e-4, torch.bfloat16: 6e-2}

pytestmark = pytest.mark.skipif(not CASES, reason=f"no parity fixtures in {FOLDER} (set EAGLE3_PARITY_DIR)")


def step(case: Case, draft: Draft) -> tuple[torch.Tensor, DepthSums, list[int], list[int]]:
    """Forward and backward of one step; the loss is divided by B*S as the reference does."""
    ids, mask, aux, last, bounds = case.packed()
    head = case.tensors["target.lm_head.weight"]
    answer = torch.nn.functional.linear(last, head).argmax(-1)
    plan = plan_rows(mask, bounds, draft.t2d[answer], case.depths, "specforge")
    embedding = case.tensors["param.embed_tokens.weight"]
    normed = unroll(draft, ids, aux, embedding, plan)
    teacher = Teacher(last, answer, head[draft.draft_ids], draft.draft_ids)
    weights = [case.info["ploss_decay"] ** i for i in range(case.depths)]
    total, sums = depth_losses(normed, draft.lm_head.weight, teacher, plan, weights)
    loss = total / (case.info["batch"]["B"] * case.info["batch"]["S"])
    loss.backward()
    kept = [len(rows.kept_r) for rows in plan.depths]
    return loss.detach(), sums, kept, [rows.counted for rows in plan.depths]


@pytest.fixture(params=CASES, ids=lambda p: p.stem)
def case(request: pytest.FixtureRequest) -> Case:
    found = read_case(request.param)
    if found.info["loss"]["lk_loss_type"] or found.info["draft_config"].get("fc_norm"):
        pytest.skip("loss type or fc_norm that this version does not have")
    return found


def test_one_step(case: Case) -> None:
    draft, t = case.draft(), case.tensors
    loss, sums, kept, counted = step(case, draft)
    rows = case.info["batch"]["B"] * case.info["batch"]["S"]
    tolerance = LOSS[case.dtype]
    torch.testing.assert_close(sums.loss_T / rows, t["out.plosses"].float(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(loss, t["out.loss"][0].float(), rtol=tolerance, atol=tolerance)
    assert kept == t["inter.position_mask"].flatten(1).sum(1).long().tolist()
    assert counted == t["out.acc_denoms"].long().tolist()
    acc = sums.correct_T / torch.tensor(counted).clamp(min=1)
    torch.testing.assert_close(acc, t["out.acces"].float())
    for name, weight in draft.named_parameters():
        want, got = t[f"grad.{name}"].float(), weight.grad
        assert got is not None
        scale = float(want.abs().max()) or 1.0
        assert float((got.float() - want).abs().max()) / scale < GRAD[case.dtype], name
    norm = torch.linalg.vector_norm(
        torch.stack([p.grad.float().norm() for p in draft.parameters() if p.grad is not None])
    )
    torch.testing.assert_close(norm, t["out.grad_norm"][0].float(), rtol=NORM[case.dtype], atol=1e-7)


def test_three_steps(case: Case) -> None:
    draft, t, o = case.draft(), case.tensors, case.info["optimizer"]
    before = {name: weight.detach().float().clone() for name, weight in draft.named_parameters()}
    optimizer = Optimizer(list(draft.named_parameters()), max_grad_norm=o["max_grad_norm"])
    for k in range(3):
        loss, *_ = step(case, draft)
        torch.testing.assert_close(loss, t["steps.loss"][k].float(), rtol=20 * LOSS[case.dtype], atol=1e-7)
        norm = optimizer.step(float(t["steps.lr"][k]))
        torch.testing.assert_close(norm, t["steps.grad_norm"][k].float(), rtol=20 * NORM[case.dtype], atol=1e-7)
    for (name, _), master in zip(draft.named_parameters(), optimizer.masters, strict=True):
        want = t.get(f"after3_master.{name}", t[f"after3.{name}"]).float() - before[name]
        got = master.detach() - before[name]
        # Adam turns rounding noise of tiny gradients into whole steps: compare the update as a whole.
        assert float((got - want).norm()) <= UPDATE[case.dtype] * float(want.norm()) + 1e-12, name


def test_masked_rows_are_the_reference_shifts(case: Case) -> None:
    _, mask, _, _, bounds = case.packed()
    rows = masked_rows(mask, bounds, case.depths, "specforge")
    for i in range(case.depths):
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            want = [bool(mask[p + i]) if p + i < end - 1 else False for p in range(begin, end)]
            assert rows[i, begin:end].tolist() == want
