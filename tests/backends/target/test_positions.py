"""The cache by positions: what a pass wrote stays with its row."""

from __future__ import annotations

import torch

from eagle3cli.backends.target.positions import PositionCache

ROWS, HEADS, SLOTS, WIDTH = 3, 2, 6, 4


def filled() -> tuple[PositionCache, torch.Tensor]:
    """A cache of three rows after one pass of four tokens, and the keys that it wrote; values are their negatives."""
    cache = PositionCache(ROWS, SLOTS)
    states = torch.arange(ROWS * HEADS * 4 * WIDTH, dtype=torch.float32).view(ROWS, HEADS, 4, WIDTH) + 1
    cache.point(torch.arange(ROWS), torch.arange(4).expand(ROWS, 4), extent=4)
    keys, values = cache.update(states, -states, 0)
    assert torch.equal(keys, states)
    assert torch.equal(values, -states)
    assert cache.get_mask_sizes() == (4, 0)
    assert cache.get_seq_length() == 0
    return cache, states


def test_rows_that_are_kept_have_their_keys_and_values_in_the_order_given() -> None:
    cache, states = filled()
    cache.set_shift(2, -5)
    cache.keep(torch.tensor([2, 0]))
    more = torch.zeros(2, HEADS, 1, WIDTH)
    cache.point(torch.arange(2), torch.full((2, 1), 4), extent=5)
    keys, values = cache.update(more, more, 0)
    assert torch.equal(keys[:, :, :4], states[[2, 0]])
    assert torch.equal(values[:, :, :4], -states[[2, 0]])
    assert cache.get_seq_length() == 4
    assert cache.turned_by(torch.arange(2), torch.full((2, 1), 4)).tolist() == [[-1], [4]]


def test_a_part_of_the_rows_goes_on_and_a_rejected_token_is_written_over() -> None:
    cache, states = filled()
    cache.grow(SLOTS + 2)
    again = torch.full((1, HEADS, 2, WIDTH), 7.0)
    cache.point(torch.tensor([1]), torch.tensor([[3, 4]]), extent=5)
    keys, values = cache.update(again, again, 0)
    for seen, written in ((keys, states), (values, -states)):
        assert torch.equal(seen[0, :, :3], written[1, :, :3])
        assert torch.equal(seen[0, :, 3:], again[0])
    cache.point(torch.tensor([0, 2]), torch.tensor([[4], [2]]), extent=5)
    assert cache.get_seq_length() == 0  # rows begin at different places


def test_without_shifts_positions_are_slots() -> None:
    cache, _ = filled()
    cache.set_shift(1, 0)
    cache.keep(torch.tensor([1]))
    assert cache.shift_B is None
    assert cache.turned_by(torch.tensor([0]), torch.tensor([[9]])).tolist() == [[9]]
