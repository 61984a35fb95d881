"""The loss as a GPU computes it, with its kernels in plain torch, against the loss of the CPU."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eagle3cli.backends.target.logits import Head
from eagle3cli.training.ttt import fused_loss
from eagle3cli.training.ttt.fused_loss import add_product, fused_ttt_loss
from eagle3cli.training.ttt.kernels import plain_rows
from eagle3cli.training.ttt.loss import LossSums, LossWeights, Teacher, best_tokens, ttt_loss
from eagle3cli.training.ttt.unroll import PositionPlan, StepPositions
from tests.gpu_tensor import PretendGpu

SIZE = 24
HIDDEN = 8
VOCAB = 19
DRAFT_VOCAB = 13
STEPS = 3
DECAY = [1.0, 0.8, 0.64]
ZEROS = [0.0] * STEPS
WEIGHTS = {
    "kl": LossWeights.of_cross_entropy(DECAY),
    "tv": LossWeights(ZEROS, DECAY, ZEROS),
    "lk": LossWeights(ZEROS, ZEROS, DECAY),
    "mix": LossWeights([0.3, 0.2, 0.1], [0.7, 0.6, 0.5], ZEROS),
}


def make_plan(teachers_T: list[list[int]]) -> PositionPlan:
    """A plan of which only the teachers matter."""
    steps = []
    for teachers in teachers_T:
        teacher_L = torch.tensor(teachers, dtype=torch.long)
        steps.append(StepPositions(teacher_L, teacher_L, torch.arange(len(teachers)), teacher_L, len(teachers)))
    return PositionPlan(tuple(steps), (0, SIZE), torch.zeros(SIZE, dtype=torch.long), SIZE - 1)


def make_teacher(generator: torch.Generator, *, whole: bool, softcap: float | None = None) -> Teacher:
    weight_VH = torch.randn(VOCAB, HIDDEN, generator=generator)
    draft_ids_W = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
    head = Head(weight_VH, torch.randn(VOCAB, generator=generator), softcap)
    return Teacher(
        torch.randn(SIZE, HIDDEN, generator=generator),
        torch.randint(VOCAB, (SIZE,), generator=generator),
        head.rows(draft_ids_W),
        draft_ids_W,
        head if whole else None,
    )


Result = tuple[Tensor, LossSums, list[Tensor]]


def both(teachers_T: list[list[int]], loss: str, *, seed: int = 0, chunk: int = 10**6, rates: bool = False) -> None:
    """Loss, sums and gradients are the CPU's."""
    generator = torch.Generator().manual_seed(seed)
    teacher = make_teacher(generator, whole=rates or loss != "kl")
    normed = [torch.randn(len(teachers), HIDDEN, generator=generator) for teachers in teachers_T]
    head_WH = torch.randn(DRAFT_VOCAB, HIDDEN, generator=generator)
    results: list[Result] = []
    for function in (fused_ttt_loss, ttt_loss):
        leaves = [states.clone().requires_grad_() for states in (head_WH, *normed)]
        total, sums = function(leaves[1:], leaves[0], teacher, make_plan(teachers_T), WEIGHTS[loss], chunk)
        (total * 0.5).backward()
        results.append((total.detach(), sums, [leaf.grad for leaf in leaves]))
    (got, got_sums, got_grads), (want, want_sums, want_grads) = results
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for name in ("loss_T", "correct_T", "rate_T", "log_rate_T"):
        pair = (getattr(got_sums, name), getattr(want_sums, name))
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-5, atol=1e-5)


teachers = st.lists(
    st.lists(st.integers(0, SIZE - 1), max_size=SIZE, unique=True).map(sorted), min_size=STEPS, max_size=STEPS
)


@settings(max_examples=60, deadline=None)
@given(teachers, st.sampled_from(sorted(WEIGHTS)), st.integers(0, 99), st.sampled_from([1, 100, 250, 10**6]))
def test_equals_the_loss_of_the_cpu(teachers_T: list[list[int]], loss: str, seed: int, chunk: int) -> None:
    """Whatever each step's positions are, none included, and in chunks of one position, of a few and of all."""
    if any(teachers_T):
        both(teachers_T, loss, seed=seed, chunk=chunk)


def test_rates_are_measured_where_no_loss_asks_for_them() -> None:
    both([[1, 2, 5], [2, 7], [9]], "kl", rates=True)


def test_no_positions_are_no_loss() -> None:
    teacher = make_teacher(torch.Generator().manual_seed(0), whole=False)
    head_WH = torch.zeros(DRAFT_VOCAB, HIDDEN, requires_grad=True)
    normed = [torch.zeros(0, HIDDEN)] * STEPS
    total, sums = fused_ttt_loss(normed, head_WH, teacher, make_plan([[], [], []]), WEIGHTS["kl"], 100)
    total.backward()
    assert float(total.detach()) == 0.0
    assert sums.loss_T.tolist() == ZEROS
    assert head_WH.grad is not None
    assert not head_WH.grad.any()


def test_without_gradients_the_sums_are_the_same() -> None:
    generator = torch.Generator().manual_seed(4)
    teacher = make_teacher(generator, whole=True, softcap=3.0)
    normed = [torch.randn(n, HIDDEN, generator=generator) for n in (3, 2, 1)]
    head_WH = torch.randn(DRAFT_VOCAB, HIDDEN, generator=generator)
    plan = make_plan([[1, 2, 5], [2, 7], [9]])
    got, want = (f(normed, head_WH, teacher, plan, WEIGHTS["mix"], 10**6) for f in (fused_ttt_loss, ttt_loss))
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1].rate_T, want[1].rate_T)


def test_low_precision_follows_the_cpu() -> None:
    """bf16 states and heads: the gradients differ by roundings of bf16, the loss by less."""
    generator = torch.Generator().manual_seed(2)
    teacher = make_teacher(generator, whole=True)
    assert teacher.whole_head is not None
    teacher = replace(teacher, head=teacher.head.to(torch.bfloat16), whole_head=teacher.whole_head.to(torch.bfloat16))
    plan = make_plan([list(range(20)), list(range(3, 15)), [4]])
    normed = [torch.randn(len(step.teacher_L), HIDDEN, generator=generator).bfloat16() for step in plan.steps]
    head_WH = torch.randn(DRAFT_VOCAB, HIDDEN, generator=generator).bfloat16()
    results = []
    for function in (fused_ttt_loss, ttt_loss):
        leaves = [states.clone().requires_grad_() for states in (head_WH, *normed)]
        total, _ = function(leaves[1:], leaves[0], teacher, plan, WEIGHTS["mix"], 10**6)
        total.backward()
        results.append((total.detach(), [leaf.grad for leaf in leaves]))
    (got, got_grads), (want, want_grads) = results
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        assert got_grad.dtype == torch.bfloat16
        torch.testing.assert_close(got_grad, want_grad, rtol=2e-2, atol=2e-2)


def test_a_chunk_is_one_product_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is scored once, with those of the other steps, in calls whose number is that of the chunks."""
    scored: list[int] = []

    class Counting(ModuleType):
        lse_rows = staticmethod(plain_rows.lse_rows)

        @staticmethod
        def score_rows(logits_LW: Tensor, *args: object, training: bool) -> None:
            scored.append(len(logits_LW))
            plain_rows.score_rows(logits_LW, *args, training=training)

    monkeypatch.setattr(fused_loss, "_row_kernels", lambda: Counting("counting"))
    teachers_T = [list(range(24)), list(range(2, 24)), list(range(4, 24))]
    both(teachers_T, "kl")
    assert scored == [24 + 22 + 20]
    scored.clear()
    both(teachers_T, "kl", chunk=8 * STEPS * DRAFT_VOCAB)
    assert len(scored) == 3
    assert sum(scored) == 66


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_added_in_fp32(dtype: torch.dtype) -> None:
    """A total that bf16 cannot hold keeps its last digits."""
    total = torch.full((2, 2), 1.0 + 2**-12)
    ones = torch.ones(2, 2, dtype=dtype)
    add_product(total, ones, ones)
    assert total.tolist() == [[3.0 + 2**-12] * 2] * 2


@pytest.mark.parametrize("loss", WEIGHTS)
def test_a_gpu_is_never_waited_for(gpu: PretendGpu, loss: str) -> None:
    """Not in chunks of one position either, forward or backward."""
    plan = make_plan([list(range(20)), list(range(3, 15)), [4]]).to(torch.device("cuda"))
    head = Head(torch.randn(VOCAB, HIDDEN, device="cuda"))
    draft_ids_W = torch.arange(DRAFT_VOCAB, device="cuda")
    teacher = Teacher(
        torch.randn(SIZE, HIDDEN, device="cuda"),
        torch.arange(SIZE, device="cuda"),
        head.rows(draft_ids_W),
        draft_ids_W,
        None if loss == "kl" else head,
    )
    normed = [torch.randn(n, HIDDEN, device="cuda", requires_grad=True) for n in (20, 12, 1)]
    head_WH = torch.randn(DRAFT_VOCAB, HIDDEN, device="cuda", requires_grad=True)
    gpu.reset()
    for chunk in (1, 10**6):
        total, _ = fused_ttt_loss(normed, head_WH, teacher, plan, WEIGHTS[loss], chunk)
        total.backward()
        best_tokens(normed, head_WH.detach(), draft_ids_W)
    assert not gpu.syncs
    assert head_WH.grad is not None
    assert head_WH.grad.is_cuda


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("loss", WEIGHTS)
def test_a_gpu_computes_what_the_cpu_does(loss: str) -> None:
    """Loss, sums and gradients with the kernels themselves."""
    teachers_T = [list(range(20)), list(range(3, 15)), [4]]
    results = []
    for device in ("cuda", "cpu"):
        generator = torch.Generator().manual_seed(6)
        teacher = make_teacher(generator, whole=loss != "kl")
        on_device = Teacher(
            teacher.last_NH.to(device),
            teacher.answer_N.to(device),
            teacher.head.to(device),
            teacher.draft_ids_W.to(device),
            teacher.whole_head and teacher.whole_head.to(device),
        )
        plan = make_plan(teachers_T).to(torch.device(device))
        states = [torch.randn(len(teachers), HIDDEN, generator=generator) for teachers in teachers_T]
        head_WH = torch.randn(DRAFT_VOCAB, HIDDEN, generator=generator)
        leaves = [x.to(device).requires_grad_() for x in (head_WH, *states)]
        loss_on = fused_ttt_loss if device == "cuda" else ttt_loss
        total, sums = loss_on(leaves[1:], leaves[0], on_device, plan, WEIGHTS[loss], 10 * DRAFT_VOCAB)
        total.backward()
        grads = [leaf.grad.cpu() for leaf in leaves if leaf.grad is not None]
        results.append([total.detach().cpu(), sums.loss_T.cpu(), sums.correct_T.cpu(), sums.rate_T.cpu(), *grads])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
