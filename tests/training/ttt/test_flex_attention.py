"""flex_attention's part: its mask and forward on a CPU, all of it on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from eagle3cli.models.window import Window
from eagle3cli.training.ttt.attention import DraftKV, QueryPositions, attend
from eagle3cli.training.ttt.flex_attention import attend_flex, make_block_mask, mask_mod


def inputs(rows: QueryPositions, depths: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, DraftKV]:
    generator = torch.Generator().manual_seed(len(rows.position_R))

    def states(count: int, heads: int) -> Tensor:
        return torch.randn(count, heads, 16, generator=generator).to(device)

    size, count = rows.cu_seqlens[-1], len(rows.position_R)
    own = [(states(count, 2), states(count, 2)) for _ in range(depths)]
    return states(count, 4), states(size, 2), states(size, 2), own


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 1000))
def test_mask_shows_the_own_sequence_up_to_the_own_position(lengths: list[int], seed: int) -> None:
    bounds = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    rows_R = (torch.rand(bounds[-1], generator=torch.Generator().manual_seed(seed)) < 0.6).nonzero()[:, 0]
    visible = mask_mod(QueryPositions(rows_R, bounds))
    zero = torch.tensor(0)
    for q, row in enumerate(rows_R.tolist()):
        begin = max(b for b in bounds if b <= row)
        got = [bool(visible(zero, zero, torch.tensor(q), torch.tensor(k))) for k in range(bounds[-1])]
        assert got == [begin <= k <= row for k in range(bounds[-1])]


@pytest.mark.slow
@pytest.mark.parametrize("depths", [0, 1, 3])
@torch.no_grad()
def test_forward_is_that_of_the_portable_attention(depths: int) -> None:
    rows = QueryPositions(torch.tensor([0, 3, 4, 9, 10, 11, 17, 20]), (0, 5, 12, 21))
    query, keys, values, own = inputs(rows, depths)
    got, want = (f(query, keys, values, own, rows) for f in (attend_flex, attend))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(0, 3),
)
@torch.no_grad()
def test_a_window_is_that_of_the_portable_attention(
    lengths: list[int], seed: int, window: int, sinks: int, step: int
) -> None:
    bounds = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    rows_R = (torch.rand(bounds[-1], generator=torch.Generator().manual_seed(seed)) < 0.6).nonzero()[:, 0]
    if not len(rows_R):
        return
    rows = QueryPositions(rows_R, bounds, step=step, window=Window(window, sinks))
    query, keys, values, own = inputs(rows, step)
    got, want = (f(query, keys, values, own, rows) for f in (attend_flex, attend))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=3),
    st.integers(0, 1000),
    st.sampled_from([1.0, 0.6]),
    st.sampled_from([1, 100, 130, 300]),
    st.sampled_from([0, 4, 200]),
    st.integers(0, 3),
)
def test_blocks_of_a_window_hold_all_that_is_seen(
    lengths: list[int], seed: int, share: float, window: int, sinks: int, step: int
) -> None:
    bounds = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    rows_R = (torch.rand(bounds[-1], generator=torch.Generator().manual_seed(seed)) < share).nonzero()[:, 0]
    if not len(rows_R):
        return
    rows = QueryPositions(rows_R, bounds, step=step, window=Window(window, sinks))
    made = make_block_mask(rows, bounds[-1])
    looked = create_block_mask(mask_mod(rows), None, None, len(rows_R), bounds[-1], device="cpu")
    whole, part = blocks(made.full_kv_num_blocks, made.full_kv_indices), blocks(made.kv_num_blocks, made.kv_indices)
    truly_whole = blocks(looked.full_kv_num_blocks, looked.full_kv_indices)
    assert whole <= truly_whole
    assert not whole & part
    assert whole | part >= truly_whole | blocks(looked.kv_num_blocks, looked.kv_indices)


def test_blocks_of_a_window_are_few_however_long_the_sequence_is() -> None:
    rows = QueryPositions(torch.arange(65_536), (0, 65_536), window=Window(1024, 4))
    made = make_block_mask(rows, 65_536)
    assert made.sparsity() > 97.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("depths", [0, 3])
def test_gradients_on_a_gpu_are_those_of_the_cpu(depths: int) -> None:
    rows = QueryPositions(torch.arange(5, 300, 2), (0, 100, 301))
    results = []
    for device, function in (("cuda", attend_flex), ("cuda", attend), ("cpu", attend)):
        where = QueryPositions(rows.position_R.to(device), rows.cu_seqlens)
        query, keys, values, own = inputs(rows, depths, device)
        leaves = [t.requires_grad_() for t in (query, keys, values, *(x for pair in own for x in pair))]
        out = function(query, keys, values, own, where)
        (out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
        results.append([out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=4), st.integers(0, 1000), st.sampled_from([1.0, 0.6]))
def test_blocks_are_those_that_a_look_at_every_row_and_key_finds(lengths: list[int], seed: int, share: float) -> None:
    bounds = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    rows_R = (torch.rand(bounds[-1], generator=torch.Generator().manual_seed(seed)) < share).nonzero()[:, 0]
    if not len(rows_R):
        return
    rows = QueryPositions(rows_R, bounds)
    made = make_block_mask(rows, bounds[-1])
    looked = create_block_mask(mask_mod(rows), None, None, len(rows_R), bounds[-1], device="cpu")
    whole, part = blocks(made.full_kv_num_blocks, made.full_kv_indices), blocks(made.kv_num_blocks, made.kv_indices)
    assert whole == blocks(looked.full_kv_num_blocks, looked.full_kv_indices)
    assert part >= blocks(looked.kv_num_blocks, looked.kv_indices)  # a gap between two sequences is read, and masked
    if len(lengths) == 1:
        assert part == blocks(looked.kv_num_blocks, looked.kv_indices)
    assert made.seq_lengths == looked.seq_lengths


def blocks(counts: Tensor, numbers: Tensor) -> set[tuple[int, int]]:
    """Block of rows and block of keys, of all that are counted."""
    return {(q, int(k)) for q, n in enumerate(counts[0, 0].tolist()) for k in numbers[0, 0, q, :n]}


def test_a_block_mask_is_small_however_long_the_sequence_is() -> None:
    rows = QueryPositions(torch.arange(65_536), (0, 65_536))
    made = make_block_mask(rows, 65_536)
    assert made.kv_indices.numel() == 512 * 512
    assert made.sparsity() == pytest.approx(50, abs=1)
