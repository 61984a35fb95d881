"""The packed, pruned, chunked step equals the dense one: losses, counts and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle3cli.backends.target.logits import Head
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.models.layers.sizes import Latent
from eagle3cli.models.window import Window
from eagle3cli.training.ttt import attention, loss
from eagle3cli.training.ttt.attention import QueryPositions
from eagle3cli.training.ttt.loss import LossWeights, Teacher, ttt_loss
from eagle3cli.training.ttt.unroll import draw_anchors, masked_positions, plan_positions, unroll
from tests.training.ttt.dense import dense_first_hidden, dense_loss, dense_step, serving_counts

VOCAB, DRAFT_VOCAB, HIDDEN, DEPTHS = 48, 24, 16, 4
DECAY = [0.8**i for i in range(DEPTHS)]
ZEROS = [0.0] * DEPTHS
KL = LossWeights.of_cross_entropy(DECAY)
TERMS = {
    "kl": KL,
    "tv": LossWeights(ZEROS, DECAY, ZEROS),
    "lk": LossWeights(ZEROS, ZEROS, DECAY),
    "mix": LossWeights([0.7, 0.5, 0.3, 0.1], [0.3, 0.2, 0.3, 0.4], [0.0, 0.1, 0.0, 0.2]),
}
CONFIG = DraftConfig(
    hidden_size=HIDDEN,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=VOCAB,
    draft_vocab_size=DRAFT_VOCAB,
    target_hidden_size=HIDDEN,
    aux_layers=(0, 1, 2),
)
NEWER = replace(CONFIG, fc_norm=True, norm_output=True, head_dim=4, rope_theta=500.0)
WIDE = replace(CONFIG, num_hidden_layers=3, norm_before_fc=True, norm_before_residual=True, own_embedding=True)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 0.7, "mscale_all_dim": 1.1}
LATENT = replace(
    CONFIG,
    num_key_value_heads=4,
    head_dim=10,
    latent=Latent(7, 6, 6, 4, 5),
    rope_scaling=YARN,
    rope_theta=100.0,
    max_position_embeddings=32,
)
WIDE_LATENT = replace(WIDE, num_key_value_heads=4, head_dim=8, latent=Latent(5, None, 4, 4, 9), num_hidden_layers=2)
USUAL = {"plain": CONFIG, "fc_norm, norm_output": NEWER, "wide": WIDE}
CONFIGS = {**USUAL, "latent": LATENT, "wide latent": WIDE_LATENT}
masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=14), min_size=1, max_size=3)


def random_draft(seed: int, config: DraftConfig = CONFIG) -> Draft:
    torch.manual_seed(seed)
    draft = Draft(config)
    ids = torch.randperm(VOCAB)[:DRAFT_VOCAB].sort().values
    t2d = torch.zeros(VOCAB, dtype=torch.bool)
    t2d[ids] = True
    draft.set_vocab(ids - torch.arange(DRAFT_VOCAB), t2d)
    draft.set_aux_scale(torch.rand(3 * HIDDEN) + 0.5)
    for weight in draft.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return draft


def both_ways(
    sequences: list[list[bool]],
    seed: int,
    *,
    terms: LossWeights = KL,
    config: DraftConfig = CONFIG,
    anchored: bool = False,
    recompute: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, sums and every gradient: by the product, and sequence by sequence by the dense reference."""
    generator = torch.Generator().manual_seed(seed)
    draft = random_draft(seed, config)
    embedding, head = (torch.randn(VOCAB, HIDDEN, generator=generator) for _ in range(2))
    rows = []
    for mask in sequences:
        size = len(mask)
        last = torch.randn(size, HIDDEN, generator=generator)
        ids = torch.randint(VOCAB, (size,), generator=generator)
        aux = torch.randn(size, 3 * HIDDEN, generator=generator)
        rows.append((ids, torch.tensor(mask), aux, last, (last @ head.T).argmax(-1)))
    bounds = tuple(torch.tensor([0, *(len(s) for s in sequences)]).cumsum(0).tolist())
    mask = torch.cat([row[1] for row in rows])
    anchors = draw_anchors(range(len(rows)), bounds, 0.5, seed=seed, step=3) if anchored else None
    want = {name: torch.zeros(DEPTHS) for name in ("depths", "right", "rates")} | {"loss": torch.zeros(())}
    for row, begin, end in zip(rows, bounds[:-1], bounds[1:], strict=True):
        own = None if anchors is None else anchors[begin:end]
        found = dense_loss(draft, *row, embedding, head, terms, own)
        if found.total.requires_grad:
            found.total.backward()
        want["loss"] += found.total.detach()
        want["depths"] += torch.tensor(found.losses)
        want["right"] += torch.tensor(found.right)
        want["rates"] += torch.tensor(found.rates)
    want |= {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in draft.named_parameters()}
    draft.zero_grad()
    ids, _, aux, last, top = (torch.cat(parts) for parts in zip(*rows, strict=True))
    plan = plan_positions(mask, bounds, draft.t2d[top], DEPTHS, "serving", anchors)
    got = {name: torch.zeros(DEPTHS) for name in ("depths", "right", "rates")} | {"loss": torch.zeros(())}
    if not plan.empty:
        normed = unroll(draft, ids, aux, embedding, plan, recompute=recompute)
        teacher = Teacher(last, top, Head(head[draft.draft_ids]), draft.draft_ids, whole_head=Head(head))
        total, sums = ttt_loss(normed, draft.lm_head.weight, teacher, plan, terms)
        total.backward()
        got = {"loss": total.detach(), "depths": sums.loss_T, "right": sums.correct_T, "rates": sums.rate_T}
    got |= {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in draft.named_parameters()}
    return got, want


def assert_equal(pair: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    got, want = pair
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(masks, st.integers(0, 1000))
def test_equals_the_dense_step(sequences: list[list[bool]], seed: int) -> None:
    assert_equal(both_ways(sequences, seed))


@settings(max_examples=20, deadline=None)
@given(masks, st.integers(0, 1000), st.sampled_from(sorted(TERMS)), st.sampled_from(sorted(CONFIGS)), st.booleans())
def test_other_losses_drafts_and_anchors_equal_the_dense_step(
    sequences: list[list[bool]], seed: int, loss: str, config: str, anchored: bool
) -> None:
    assert_equal(both_ways(sequences, seed, terms=TERMS[loss], config=CONFIGS[config], anchored=anchored))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(masks, st.integers(0, 1000), st.integers(1, 9), st.integers(0, 5), st.sampled_from(sorted(CONFIGS)))
def test_a_window_equals_the_dense_step(
    sequences: list[list[bool]], seed: int, window: int, sinks: int, config: str
) -> None:
    """Windows from one key on, narrower than the unroll, too, with sinks and without, over packed sequences."""
    assert_equal(both_ways(sequences, seed, config=replace(CONFIGS[config], window=window, sinks=sinks)))


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (2, 3), (5, 0), (5, 2)])
def test_a_window_over_small_blocks_equals_the_dense_step(monkeypatch, window: int, sinks: int) -> None:
    """Blocks of 3 queries begin behind the window's first key, and the sinks stand apart from their keys."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    config = replace(CONFIG, window=window, sinks=sinks)
    sequences = [[False] * 3 + [True] * 17, [True] * 11, [False] * 12 + [True] * 6]
    assert_equal(both_ways(sequences, 5, config=config))
    assert_equal(both_ways(sequences, 6, config=config, recompute=True))


def test_a_window_as_long_as_the_text_is_none() -> None:
    sequences = [[False] * 3 + [True] * 9, [True] * 11]
    without, _ = both_ways(sequences, 7)
    within, _ = both_ways(sequences, 7, config=replace(CONFIG, window=11 + DEPTHS, sinks=1))
    for name in without:
        assert torch.equal(without[name], within[name]), name


def test_a_window_reads_the_keys_that_it_shows_alone() -> None:
    """The blocks of a row of 64k tokens hold a window's keys each, and not all before them."""
    size = 65_536
    queries = QueryPositions(torch.arange(size), (0, size), torch.arange(size), window=Window(1024, 4))
    widest = max(block.keys.stop - block.keys.start for block in attention.make_blocks(queries))
    assert widest == attention.QUERY_BLOCK + 1024 - 1


@pytest.mark.parametrize("config", [WIDE, LATENT, WIDE_LATENT], ids=["wide", "latent", "wide latent"])
def test_another_draft_equals_the_dense_step(config: DraftConfig) -> None:
    assert_equal(both_ways([[False] * 3 + [True] * 9, [True] * 8], 3, config=config))


@pytest.mark.parametrize("config", USUAL.values(), ids=USUAL)
def test_recomputed_activations_change_nothing(config: DraftConfig) -> None:
    sequences = [[False] * 3 + [True] * 9, [True] * 11]
    kept, _ = both_ways(sequences, 7, config=config)
    again, _ = both_ways(sequences, 7, config=config, recompute=True)
    for name in kept:
        assert torch.equal(kept[name], again[name]), name


def test_small_blocks_and_chunks_change_nothing(monkeypatch) -> None:
    """A query block of 3 rows and a chunk of 2 positions: the same numbers as in one piece."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 2 * VOCAB)
    sequences = [[False] * 3 + [True] * 9, [True] * 11]
    assert_equal(both_ways(sequences, 5))
    assert_equal(both_ways(sequences, 5, terms=TERMS["mix"]))


def test_keys_repeated_for_older_kernels_change_nothing(monkeypatch) -> None:
    """Torch before 2.13 gets as many heads of keys as of queries: the same numbers."""
    monkeypatch.setattr(attention, "GROUPED_ON_CPU", False)
    assert_equal(both_ways([[False] * 3 + [True] * 9, [True] * 11], 5))


def test_portable_kernel_equals_the_flash_one(monkeypatch) -> None:
    """The path for devices without the CPU flash kernel gives the same output and gradients."""
    torch.manual_seed(0)
    q, k, v, g = torch.randn(1, 4, 5, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8), torch.randn(1, 4, 5, 8)
    hidden = torch.arange(9) > torch.tensor([1, 3, 4, 7, 8])[:, None]
    mask = torch.zeros(5, 9).masked_fill_(hidden, float("-inf"))
    out, lse = attention._flash(q, k, v, mask)
    grads = attention._flash_backward(g, q, k, v, out, lse, mask)
    weights = (attention._dense_scores(q, k, mask) - lse[..., None]).exp()
    torch.testing.assert_close(weights @ v.transpose(0, 1)[None].repeat_interleave(2, 1), out)
    monkeypatch.setattr(attention, "_on_cpu", lambda _: False)
    torch.testing.assert_close(attention._flash(q, k, v, mask), (out, lse))
    for mine, theirs in zip(attention._flash_backward(g, q, k, v, out, lse, mask), grads, strict=True):
        torch.testing.assert_close(mine, theirs.reshape(mine.shape))


@settings(max_examples=100, deadline=None)
@given(masks)
def test_serving_rows(sequences: list[list[bool]]) -> None:
    mask = torch.tensor([m for s in sequences for m in s])
    bounds = tuple(torch.tensor([0, *(len(s) for s in sequences)]).cumsum(0).tolist())
    rows = masked_positions(mask, bounds, DEPTHS, "serving")
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        for i in range(DEPTHS):
            want = [serving_counts(mask[begin:end], p, i) for p in range(end - begin)]
            assert rows[i, begin:end].tolist() == want


@settings(max_examples=50, deadline=None)
@given(masks, st.integers(0, 100))
def test_alive_rows_are_those_with_a_loss_ahead(sequences: list[list[bool]], seed: int) -> None:
    mask = torch.tensor([m for s in sequences for m in s])
    bounds = tuple(torch.tensor([0, *(len(s) for s in sequences)]).cumsum(0).tolist())
    expressible = torch.rand(len(mask), generator=torch.Generator().manual_seed(seed)) < 0.7
    plan = plan_positions(mask, bounds, expressible, DEPTHS, "serving")
    masked = masked_positions(mask, bounds, DEPTHS, "serving")
    for i, positions in enumerate(plan.steps):
        alive = [p for p in range(len(mask)) if any(masked[j, p] and expressible[p + 1 + j] for j in range(i, DEPTHS))]
        assert positions.position_R.tolist() == alive
        assert positions.position_R[positions.loss_L].tolist() == [
            p for p in alive if masked[i, p] and expressible[p + 1 + i]
        ]


def test_blocks_of_a_long_sequence_hold_a_number_a_row_and_no_masks() -> None:
    blocks = attention.make_blocks(attention.QueryPositions(torch.arange(1, 50_001), (0, 50_002)))
    held = [value for block in blocks for value in vars(block).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in held) == 50_000
    mask = blocks[-1].mask(torch.float32)
    assert mask is not None
    assert mask.shape == (50_000 % attention.queries_at_once(50_002, None), 50_001)
    assert max(len(range(*block.queries.indices(50_000))) for block in blocks) * 50_002 <= attention.MASK_ELEMENTS
    assert not mask[-1].any()


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_plain_forward_pass_is_the_first_step(name: str, window: int | None) -> None:
    """Logits and next hidden states of ``Draft.forward`` are the dense reference's, and the unroll's."""
    draft = random_draft(7, replace(CONFIGS[name], window=window, sinks=window and 1 or 0))
    generator = torch.Generator().manual_seed(7)
    size = 9
    ids = torch.randint(VOCAB, (size,), generator=generator)
    aux = torch.randn(size, 3 * HIDDEN, generator=generator)
    embedding = draft.embedding(torch.randn(VOCAB, HIDDEN, generator=generator))
    following = torch.cat((ids[1:], ids[:1]))
    with torch.no_grad():
        logits, carried = draft(following, draft.first_hidden(aux), embedding)
        empty = [[] for _ in draft.stack], [[] for _ in draft.stack]
        want, carried_too = dense_step(draft, following, dense_first_hidden(draft, aux), 0, embedding, *empty)
        torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(carried, carried_too, rtol=1e-4, atol=1e-5)
        every = torch.ones(size, dtype=torch.bool)
        plan = plan_positions(every, (0, size), every, 1, "serving")
        (normed,) = unroll(draft, ids, aux, embedding, plan)
    positions = plan.steps[0].position_R[plan.steps[0].loss_L]
    torch.testing.assert_close(draft.lm_head(normed), logits[positions], rtol=1e-4, atol=1e-5)
