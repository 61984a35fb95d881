"""How long one GPU takes for the draft's forward and backward passes over a batch: a roofline in closed form.

Matrix products, attention and what only moves memory each go at a share of the GPU's peak; shares are those that H100s
reach. ``tests/speed/step/roofline.py`` counts the same on the product's own step, operator by operator, and the tests
hold the two together. Symbols as in :mod:`eagle3cli.training.forecast.memory`, with O = Q + 2K; a product with W
weights is 2 W FLOP a row forward and 4 W backward, 2 W where its input needs no gradient.
"""

from __future__ import annotations

from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.forecast.throughput import Gpu

PRODUCTS = 0.657
"""Share of the peak FLOP/s that large bf16 products reach."""
ATTENTION_FORWARD = 0.404
ATTENTION_BACKWARD = 0.354
MEMORY = 0.836
"""Share of the peak bandwidth."""
BLOCK = 128
"""Keys that attention reads at once: half of them too many, on average."""
OPTIMISER_BYTES = 60
"""Bytes moved a weight: its bf16 gradient becomes fp32 (6), is divided, measured and clipped (20), AdamW (28), and the
master is rounded into the weight (6)."""


def draft_seconds(work: Workload, gpu: Gpu, keys: float) -> float:
    """Seconds; ``keys`` are those that a position sees on average, of its sequence up to itself."""
    forward, backward = product_flops(work)
    again = layer_flops(work) if work.recompute else 0.0
    products = (forward + backward + again) / (PRODUCTS * gpu.peak_flops)
    pairs = work.positions * work.ttt_steps * work.draft.num_hidden_layers * (keys + BLOCK / 2) * work.draft.query_width
    passes = 2 if work.recompute else 1
    attention = passes * 4 * pairs / ATTENTION_FORWARD + 10 * pairs / ATTENTION_BACKWARD
    moved = moved_bytes(work) / (MEMORY * gpu.memory_bandwidth)
    return products + attention / gpu.peak_flops + moved


def layer_flops(work: Workload) -> float:
    """Forward FLOP of the layers over the positions of all steps."""
    draft = work.draft
    hidden = draft.hidden_size
    queries = draft.query_weights(hidden) + draft.output_weights
    own = draft.key_weights(hidden) * (work.ttt_steps - 1) / work.ttt_steps
    layer = queries + own + 3 * hidden * draft.intermediate_size
    return 2.0 * work.positions * work.ttt_steps * draft.num_hidden_layers * layer


def product_flops(work: Workload) -> tuple[float, float]:
    """FLOP of all products, forward (the loss makes the gradients of the head there) and backward."""
    draft = work.draft
    hidden = draft.hidden_size
    fc = 2.0 * work.tokens * hidden * draft.aux_width
    # The token's half of what q, k and v (or their latents) are made of, and the keys and values of step 0.
    of_tokens = 2.0 * work.tokens * (hidden * draft.qkv_width + draft.key_weights(hidden))
    layers = layer_flops(work)
    head = 6.0 * work.positions * work.ttt_steps * hidden * draft.draft_vocab_size
    vocab = draft.draft_vocab_size + (work.target.vocab if work.full_head else 0)
    teacher = 2.0 * work.positions * work.target.hidden * vocab
    return fc + of_tokens + layers + head + teacher, fc + 2 * of_tokens + 2 * layers


def moved_bytes(work: Workload) -> float:
    """Bytes that norms, gates, residuals, rotations, gathers, own keys, the loss's rows and sums of gradients move."""
    draft = work.draft
    e = work.compute_bytes
    hidden = draft.hidden_size
    steps = work.ttt_steps
    width = draft.query_width + 2 * draft.key_width
    own = 6 * draft.key_width * (steps - 1) / 2
    forward = 17 * hidden + 3 * draft.intermediate_size + 20 * draft.query_width + own
    backward = 40 * hidden + 5 * draft.intermediate_size + 40 * draft.query_width + 2 * own
    loss = (4 if work.full_head else 3) * draft.draft_vocab_size + 8 * hidden
    again = forward if work.recompute else 0
    rows = work.positions * steps * (forward + again + backward + loss)
    tokens = work.tokens * (5 * draft.aux_width + 20 * hidden + 10 * width)
    layer = hidden * (2 * width + draft.query_width + 3 * draft.intermediate_size)
    return e * (rows + tokens + 3 * steps * layer)
