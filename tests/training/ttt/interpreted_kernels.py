"""The Triton kernels, run by Triton's interpreter on a CPU, against plain torch.

The interpreter is chosen by the environment before Triton is imported, so ``test_kernels.py`` runs this file in a
process of its own; by hand: ``TRITON_INTERPRET=1 pytest tests/training/ttt/interpreted_kernels.py``.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eagle3cli.training.ttt import attention
from eagle3cli.training.ttt.kernels import draft_kv, loss_rows, plain_rows
from eagle3cli.training.ttt.kernels.plain_rows import ScoredRows, TeacherRows

STEP_WEIGHTS = {
    "kl": [[1.0, 0.5, 0.25], [0.0] * 3, [0.0] * 3],
    "tv": [[0.0] * 3, [1.0, 0.5, 0.25], [0.0] * 3],
    "lk": [[0.0] * 3, [0.0] * 3, [1.0, 0.5, 0.25]],
    "mix": [[0.3, 0.2, 0.1], [0.7, 0.6, 0.5], [0.0] * 3],
}
STEPS = 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several blocks without rows that the interpreter takes minutes for."""
    monkeypatch.setattr(loss_rows, "BLOCK", 64)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-9}


def case(rows: int, width: int, loss: str, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, TeacherRows, ScoredRows]:
    generator = torch.Generator().manual_seed(seed)
    positions = 1 + rows // 2
    logits_UW = (2 * torch.randn(positions, width, generator=generator)).to(dtype)
    outside_U = torch.randn(positions, generator=generator)
    lse_U = torch.logsumexp(logits_UW.float(), 1)
    teacher = TeacherRows(
        logits_UW,
        lse_U,
        None if loss == "kl" else torch.logaddexp(lse_U, outside_U),
        torch.randint(3 * width, (positions,), generator=generator),
        torch.arange(width) * 3 + 1,
    )
    scored = ScoredRows(
        torch.randint(positions, (rows,), generator=generator),
        torch.randint(STEPS, (rows,), generator=generator),
        torch.randperm(rows, generator=generator) + 2,
        torch.tensor(STEP_WEIGHTS[loss]),
    )
    logits_LW = (2 * torch.randn(rows, width, generator=generator)).to(dtype)
    # Half of the answers are what the draft says: right and wrong rows.
    best_L = teacher.draft_ids_W[logits_LW.float().argmax(1)]
    teacher.answer_U[scored.at_L[::2]] = best_L[::2]
    return logits_LW, teacher, scored


def both(logits_LW: Tensor, teacher: TeacherRows, rows: ScoredRows, *, training: bool = True) -> tuple[Tensor, Tensor]:
    """The kernel's sums and gradients, after they were found to be the plain ones."""
    results = []
    for module in (loss_rows, plain_rows):
        logits = logits_LW.clone()
        sums_4P = torch.zeros(4, len(logits) + 5)
        module.score_rows(logits, teacher, rows, sums_4P, training=training)
        results.append((sums_4P, logits))
    (got_sums, got), (want_sums, want) = results
    torch.testing.assert_close(got_sums, want_sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, want, **tolerance(logits_LW.dtype))
    return got_sums, got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", STEP_WEIGHTS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 200), (5, 64), (7, 131), (4, 1)])
def test_a_row_is_scored_as_in_plain_torch(rows: int, width: int, loss: str, dtype: torch.dtype) -> None:
    sums, _ = both(*case(rows, width, loss, dtype))
    assert sums[1].sum() >= 1


@pytest.mark.parametrize("loss", STEP_WEIGHTS)
def test_the_gradient_is_that_of_autograd(loss: str) -> None:
    """The formula itself: the weighted loss written with torch's own functions, and its derivative."""
    logits_LW, teacher, rows = case(6, 150, loss, torch.float32, seed=3)
    _, got = both(logits_LW, teacher, rows)
    z_LW = logits_LW.double().requires_grad_()
    u_LW = teacher.logits_UW.double()[rows.at_L]
    weights = rows.weights_3T.double()[:, rows.step_L]
    total = (weights[0] * -(u_LW.softmax(1) * z_LW.log_softmax(1)).sum(1)).sum()
    if teacher.whole_lse_U is not None:
        p_LW = (u_LW - teacher.whole_lse_U.double()[rows.at_L, None]).exp()
        rate_L = torch.minimum(p_LW, z_LW.softmax(1)).sum(1)
        total = total + (weights[1] * (1 - rate_L) - weights[2] * rate_L.log()).sum()
    total.backward()
    assert z_LW.grad is not None
    torch.testing.assert_close(got.double(), z_LW.grad, rtol=1e-5, atol=1e-5)


def test_without_training_the_logits_stay() -> None:
    logits_LW, teacher, rows = case(5, 130, "mix", torch.float32)
    _, after = both(logits_LW, teacher, rows, training=False)
    assert torch.equal(after, logits_LW)


@pytest.mark.parametrize("loss", STEP_WEIGHTS)
def test_tokens_that_nobody_says(loss: str) -> None:
    """-inf in the teacher's logits, in a whole block of both, and in a part of both: no NaN anywhere."""
    logits_LW, teacher, rows = case(4, 200, loss, torch.float32)
    teacher.logits_UW[:, :64] = -math.inf
    teacher.logits_UW[:, 70:75] = -math.inf
    teacher.lse_U.copy_(torch.logsumexp(teacher.logits_UW, 1))
    logits_LW[:, :64] = -math.inf
    logits_LW[1:, 70:73] = -math.inf
    sums, d_logits = both(logits_LW, teacher, rows)
    assert sums.isfinite().all()
    assert d_logits.isfinite().all()


def test_a_rate_of_zero_has_no_gradient() -> None:
    """All that the teacher says is outside of the draft vocabulary: rate 0, log rate 0, no pull."""
    logits_LW, teacher, rows = case(3, 100, "lk", torch.float32)
    assert teacher.whole_lse_U is not None
    teacher.whole_lse_U.fill_(500.0)
    sums, d_logits = both(logits_LW, teacher, rows)
    assert sums[2].tolist() == [0.0] * 8
    assert sums[3].tolist() == [0.0] * 8
    assert not d_logits.any()


def test_a_nan_shows_in_the_loss_and_addresses_nothing() -> None:
    logits_LW, teacher, rows = case(3, 100, "kl", torch.float32)
    logits_LW[1, 7] = math.nan
    sums_4P = torch.zeros(4, 8)
    loss_rows.score_rows(logits_LW, teacher, rows, sums_4P, training=True)
    assert sums_4P[0].isnan().tolist() == [slot == int(rows.slot_L[1]) for slot in range(8)]


@pytest.mark.parametrize("width", [1, 63, 64, 65, 300])
def test_log_sum_exp_of_rows(width: int) -> None:
    logits = 10 * torch.randn(3, width + 5, generator=torch.Generator().manual_seed(width))
    view = logits[:, :width]  # rows that do not stand side by side
    torch.testing.assert_close(loss_rows.lse_rows(view), torch.logsumexp(view, 1))
    low = view.bfloat16()
    torch.testing.assert_close(loss_rows.lse_rows(low), torch.logsumexp(low.float(), 1))


SHAPES = {"grouped": (5, 4, 2, 16), "odd": (3, 6, 2, 12), "one head each": (2, 3, 3, 8), "one row": (1, 7, 1, 5)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("blind", [False, True])
def test_own_keys_are_merged_as_in_plain_torch(
    shape: tuple[int, int, int, int], steps: int, dtype: torch.dtype, blind: bool
) -> None:
    """Output, log-sum-exp and all gradients, with heads before rows as the attention kernel leaves them, and where a
    window shows no other key than the own ones (a log-sum-exp of nothing)."""
    count, heads, kv_heads, size = shape
    generator = torch.Generator().manual_seed(steps)

    def states(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    inputs = [
        states(count, heads, size),
        states(heads, count, size).transpose(0, 1),
        torch.randn(heads, count, generator=generator).transpose(0, 1),
        *(states(count, kv_heads, size) for _ in range(2 * steps)),
    ]
    grad = states(heads, count, size).transpose(0, 1)
    if blind:
        inputs[1] = torch.zeros_like(inputs[1])
        inputs[2] = torch.full_like(inputs[2], float("-inf"))
    results = []
    for merge in (draft_kv.merge_draft_kv, attention.merge_draft_kv):
        leaves = [x.detach().requires_grad_() for x in inputs]
        merged, total = merge(leaves[0], leaves[1], leaves[2], leaves[3:])
        merged.backward(grad)
        results.append((merged.detach(), total.detach(), [leaf.grad for leaf in leaves]))
    (got, got_total, got_grads), (want, want_total, want_grads) = results
    torch.testing.assert_close(got, want, **tolerance(dtype))
    torch.testing.assert_close(got_total, want_total, rtol=1e-5, atol=1e-5)
    # delta reads the rounded output, as flash attention's does: a rounding of bf16 times a few summands.
    wide = tolerance(dtype) if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-5}
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, **wide)


def test_no_rows_are_no_work() -> None:
    empty = torch.zeros(0, 4, 8, requires_grad=True)
    own = torch.zeros(0, 2, 8)
    merged, _ = draft_kv.merge_draft_kv(empty, torch.zeros(0, 4, 8), torch.zeros(0, 4), [own, own])
    merged.sum().backward()
    assert merged.shape == (0, 4, 8)
    assert loss_rows.lse_rows(torch.zeros(0, 7)).shape == (0,)
