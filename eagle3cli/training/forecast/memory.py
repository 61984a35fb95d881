"""What training takes of memory on one device, forecast from shapes alone, before anything is loaded.

A run passes through a few phases (loading, initial weights, the target's pass, the end of a forward pass, the begin
of a backward pass, the update, an evaluation, a checkpoint); each holds some of the terms below at the same time, and
the largest sum is the peak. ``tests/training/forecast/test_memory.py`` holds the forecast against real runs.

Symbols: N packed tokens of a micro batch, R positions that are alive at ttt step 0, T ttt steps, H hidden, C auxiliary
states, I MLP, Q and K widths of queries and of keys, O = Q + 2K, V and Vd vocabularies, P weights of the draft, ``e``
bytes of an element in the type that the draft computes in, ``t`` bytes in the type of the states. What autograd keeps
is counted tensor by tensor, as :mod:`eagle3cli.training.ttt.unroll` makes them; ``n`` are the bytes an element that a
norm keeps (:func:`norm_bytes`).
"""

from __future__ import annotations

from eagle3cli.backends.capture.memory import Parts, pass_parts
from eagle3cli.backends.target.padding import PASS_TOKENS
from eagle3cli.models.config import DraftConfig
from eagle3cli.training.forecast.phases import Forecast, Phase
from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.ttt.attention import queries_at_once
from eagle3cli.training.ttt.fused_loss import positions_at_once
from eagle3cli.training.ttt.loss import chunk_elements

MASTER = 4
"""Bytes of a master weight, of a moment and of the head's gradient in a loss."""


def forecast(work: Workload) -> Forecast:
    """What every phase of a run takes on one device."""
    standing = standing_parts(work)
    phases = [Phase("loading", loading_parts(work))]
    if work.initial_rows:
        phases.append(Phase("initial weights", initial_parts(work)))
    if work.online:
        phases.append(Phase("the target's pass", {**standing, **_gradients(work), **target_pass_parts(work)}))
    phases += [
        Phase("end of a forward pass", {**standing, **_gradients(work), **forward_parts(work)}),
        Phase("begin of a backward pass", {**standing, **_gradients(work), **backward_parts(work)}),
        Phase("update", {**standing, **update_parts(work)}),
    ]
    if work.cpu:
        saved = {"copies for a checkpoint": checkpoint_bytes(work)}  # a thread's own heap: it reuses nothing
        phases = [Phase(phase.name, {**phase.parts, **saved}) for phase in phases]
    return Forecast(tuple(phases))


def draft_weights(draft: DraftConfig) -> int:
    """Number of a draft's weights: ``CH + (layers)(xO + QH + 3HI) + VdH`` and norms, x = 2H in the first layer."""
    hidden = draft.hidden_size
    layer = draft.output_weights + 3 * hidden * draft.intermediate_size + 2 * hidden
    widths = [2 * hidden] + [hidden] * (draft.num_hidden_layers - 1)
    attention = sum(draft.query_weights(width) + draft.key_weights(width) for width in widths)
    attention += draft.num_hidden_layers * (draft.latent.norm_weights if draft.latent else 0)
    ends = (draft.draft_vocab_size + (draft.vocab_size if draft.own_embedding else 0)) * hidden
    return draft.aux_width * hidden + attention + draft.num_hidden_layers * layer + 2 * hidden + ends


def standing_parts(work: Workload) -> Parts:
    """What stays from the first step to the last."""
    weights = draft_weights(work.draft)
    local = weights // work.shards
    sharded = work.shards > 1
    gathered = weights * work.compute_bytes if sharded else 0  # for a step; released after it
    masters = local * MASTER if work.compute_bytes != MASTER and not sharded else 0
    vocab = work.target.vocab * work.target.hidden * work.state_bytes
    embedding = 0 if work.online and work.tp_size == 1 else vocab
    head = vocab if work.full_head and not work.target.tied else 0
    return {
        "process": work.process_bytes,
        "draft weights": local * _weight_bytes(work) + gathered,
        "fp32 masters": masters,
        "moments": local * MASTER * (1 if work.muon else 2),
        "average of the weights": local * MASTER * work.ema,
        "target weights": _target_bytes(work),
        "target embedding and head": embedding + head,
        "teacher head": work.draft.draft_vocab_size * work.target.hidden * work.compute_bytes,
        "states read ahead": work.prefetched if work.cpu else 0,
        "states for echoes": kept_bytes(work) if work.cpu else 0,
    }


def kept_bytes(work: Workload) -> int:
    """What a process keeps for echoes: of each token its states, its number, the target's best next token, its mask."""
    return work.kept_tokens * ((work.draft.aux_width + work.draft.hidden_size) * work.state_bytes + 8 + 8 + 1)


def loading_parts(work: Workload) -> Parts:
    """Weights come in file by file, and the ends of the target are read once more from its files."""
    ends = work.target.vocab * work.target.hidden * work.state_bytes * (1 if work.target.tied else 2)
    return {"process": work.process_bytes, "target weights": _target_bytes(work), "its ends": ends}


def target_pass_parts(work: Workload) -> Parts:
    """The live target over a micro batch; a group of ranks that shares it runs it on the rows of all of them."""
    padded = work.sequences * work.longest_sequence * max(1, work.tp_size // work.context)
    padded = min(padded, work.pass_tokens + PASS_TOKENS)  # rows of unlike length are not padded to another
    dealt = _states(work) if work.context > 1 else {}  # they are cut while the whole rows' are there
    of_pass = pass_parts(
        work.target,
        padded,
        work.pass_tokens if work.context > 1 else work.tokens,
        aux=work.draft.aux_width,
        each=work.state_bytes,
        tp_size=work.tp_size,
        shared_prefix=work.shared_prefix,
    )
    return {**of_pass, **dealt}


def forward_parts(work: Workload) -> Parts:
    """What is alive when the loss has been computed: activations of all depths, and what the backward will read."""
    return {
        **_states(work),
        **_activations(work),
        "mask of a block": mask_bytes(work),
        "rows for the head and their gradients": 2 * _normed_bytes(work),
        "head's gradient": _head_gradient(work),
        "chunk of the head": chunk_bytes(work),
    }


def backward_parts(work: Workload) -> Parts:
    """The begin of a backward pass, where all activations are still there.

    The gradients of the rows and of the head are scaled into copies; then the last depth's MLP and attention need
    ``R (4I + 4Q)`` and the shared keys' gradients ``N (2K + 2O)``; one depth is made again with ``recompute``.
    """
    draft = work.draft
    if not work.cpu:
        return _gpu_backward_parts(work)
    recomputed = depth_bytes(work, work.ttt_steps - 1) if work.recompute else 0
    of_positions = work.positions * (4 * draft.intermediate_size + 4 * draft.query_width)
    of_tokens = work.tokens * 4 * draft.query_width + work.keys * 8 * draft.key_width
    of_weights = 2 * 2 * draft.hidden_size * draft.qkv_width
    layer = (of_positions + of_tokens + of_weights) * work.compute_bytes
    return {
        **_states(work),
        **_activations(work),
        "mask of a block": mask_bytes(work),
        "rows for the head and their gradients": _normed_bytes(work),
        "head's gradient": _head_gradient(work),
        "backward of a depth": max(_normed_bytes(work) + _head_gradient(work), recomputed + layer),
    }


def _gpu_backward_parts(work: Workload) -> Parts:
    """The same on a GPU: copies of the rows' gradients and the head's in ``e`` bytes, the fp32 one gone thereafter.

    With ``recompute`` the last depth is there a second time when the gradients of its gate and of the gated product,
    ``R 3I``, are there; what its last norm kept is gone by then.
    """
    draft = work.draft
    e = work.compute_bytes
    scaled = _normed_bytes(work) + draft.draft_vocab_size * draft.hidden_size * e
    begin = _normed_bytes(work) + _head_gradient(work)
    again = 0
    if work.recompute:
        of_gate = work.positions * (3 * draft.intermediate_size - draft.hidden_size) * e
        again = depth_bytes(work, work.ttt_steps - 1) + of_gate
    return {
        **_states(work),
        **_activations(work),
        "rows for the head and their gradients": scaled,
        "backward of a depth": max(begin, again),
    }


def update_parts(work: Workload) -> Parts:
    """Gradients in the type of the weights, their fp32 copies where that is another, and the ranks' message."""
    local = draft_weights(work.draft) // work.shards
    copies = local * MASTER if work.compute_bytes != MASTER and work.shards == 1 else 0
    message = local * MASTER if work.world_size > 1 and work.shards == 1 else 0
    return {"gradients": local * _weight_bytes(work) + copies, "message": message}


def initial_parts(work: Workload) -> Parts:
    """Solving the initial weights from M rows, in fp32, before there are moments and a teacher's head.

    ``4 M (2C + 5H + 4I)`` while the MLP is fitted, with the Gram matrix of C + 2H three times in fp64.
    """
    draft = work.draft
    row = 2 * draft.aux_width + 5 * draft.hidden_size + 4 * draft.intermediate_size
    return {
        **loading_parts(work),
        "draft weights": draft_weights(draft) * MASTER,
        "sample of the target's states": 4 * work.initial_rows * row,
        "equations": 3 * 8 * (draft.aux_width + 2 * draft.hidden_size) ** 2,
    }


def evaluation_forecast(work: Workload) -> Forecast:
    """An evaluation without training: no gradients, so that one depth's activations are there at a time."""
    draft = work.draft
    e = work.compute_bytes
    hidden = draft.hidden_size
    keys = 2 * draft.key_width * work.ttt_steps
    position = 4 * hidden + 3 * draft.intermediate_size + 3 * draft.query_width + keys + work.ttt_steps * hidden
    token = 2 * draft.aux_width + 4 * hidden + draft.query_width + 4 * draft.key_width
    standing = {
        "process": work.process_bytes,
        "draft weights": draft_weights(draft) * e,
        "target weights": _target_bytes(work),
        "target embedding and head": 0 if work.online else work.target.vocab * hidden * work.state_bytes,
    }
    simulation = {
        **_states(work),
        "activations of a depth": work.positions * position * e,
        "depth-0 states": work.tokens * token * e,
        "chunk of the head": min(logits_at_once(work), work.positions * draft.draft_vocab_size) * e,
    }
    phases = [Phase("the target's pass", {**standing, **target_pass_parts(work)})] if work.online else []
    return Forecast((*phases, Phase("simulated acceptance", {**standing, **simulation})))


def checkpoint_bytes(work: Workload) -> int:
    """In memory while a checkpoint is written: weights for servers, and the optimizer's tensors twice, in fp32."""
    weights = draft_weights(work.draft)
    resumable = weights // work.shards * MASTER * ((2 if work.muon else 3) + work.ema)
    return weights * work.compute_bytes + 2 * resumable


def logits_at_once(work: Workload) -> int:
    """Logits that exist at once in the loss."""
    return work.chunk or chunk_elements("cpu" if work.cpu else "cuda")


def chunk_bytes(work: Workload) -> int:
    """One chunk of the head.

    On a CPU the teacher's probabilities, those of a step's positions, the draft's logits and probabilities, in fp32 and
    in ``e`` bytes, and with the whole head one more. On a GPU, in ``e``
    bytes, the logits of all steps' rows, which their gradient replaces, those rows' states and gradients, and the
    teacher's logits.
    """
    chunk = logits_at_once(work)
    if not work.cpu:
        whole = work.target.vocab if work.full_head else 0
        at_once = positions_at_once(chunk, work.draft.draft_vocab_size, whole, work.ttt_steps)
        at_once = min(at_once, work.positions + work.ttt_steps)
        row = work.draft.draft_vocab_size + 2 * work.draft.hidden_size
        teacher = work.draft.draft_vocab_size + whole + work.target.hidden
        return at_once * (work.ttt_steps * row + teacher) * work.compute_bytes
    width = work.target.vocab if work.full_head else work.draft.draft_vocab_size
    positions = min(work.positions + work.ttt_steps, max(1, chunk // width))
    low = work.compute_bytes if work.compute_bytes != MASTER else 0
    full = positions * work.target.vocab * (MASTER + low) if work.full_head else 0
    tables = 5 if work.full_head else 4
    return positions * work.draft.draft_vocab_size * (tables * MASTER + 2 * low) + full


def mask_bytes(work: Workload) -> int:
    """Attention in blocks of queries, as on a CPU: one block's mask over the longest sequence, and what it is made
    of. Compiled attention has none."""
    window = work.draft.sliding
    if not work.cpu or (window is None and work.positions >= work.keys - 2 * work.sequences):
        return 0
    queries = min(queries_at_once(work.longest_sequence, window), work.positions)
    keys = work.longest_sequence if window is None else queries + window.size + window.sinks
    return queries * min(work.longest_sequence, keys) * (MASTER + 1)


def depth_bytes(work: Workload, depth: int) -> int:
    """What autograd keeps of one depth, for each row: ``3nH`` of norms, ``e (2H + 3I + 2Q)`` of projections and
    attention with its log-sum-exp, ``2eK`` for it and for each depth before, and the rotary tables ``4eD``.

    On a GPU also ``2eQ`` and a log-sum-exp where own keys are merged into what the kernel gave, whose queries were
    padded to whole blocks, and at every depth the padded keys and values of depth 0, ``2eK`` a token; and I less, since
    the gated product is made again.
    """
    draft = work.draft
    hidden = draft.hidden_size
    merged = not work.cpu and depth > 0
    projections = 2 * hidden + _mlp_widths(work) + (4 if merged else 2) * draft.query_width
    keys = 2 * draft.key_width * depth
    tables = (4 if depth and work.cpu else 2) * draft.head_dim
    layer = norm_bytes(work) * 2 * hidden + work.compute_bytes * (projections + keys + tables)
    log_sums = 4 * draft.num_attention_heads * (2 if merged else 1)
    if draft.latent is not None:
        layer += latent_bytes(work, draft.latent.q_lora_rank or 0)
        layer += latent_bytes(work, draft.latent.kv_lora_rank) if depth else 0
    layers = 1 if depth == 0 else draft.num_hidden_layers
    padded = 0 if work.cpu else work.keys * layers * 2 * draft.key_width * work.compute_bytes
    return work.positions * (layers * (layer + log_sums) + norm_bytes(work) * hidden) + padded


def latent_bytes(work: Workload, rank: int) -> int:
    """What autograd keeps of a latent of latent attention: for its norm, and for the product that expands it."""
    return rank * (norm_bytes(work) + work.compute_bytes)


def _mlp_widths(work: Workload) -> int:
    return (3 if work.cpu else 2) * work.draft.intermediate_size


def norm_bytes(work: Workload) -> int:
    """Bytes that a norm keeps of an element: its input in fp32, and what is multiplied by the weight. A GPU's kernel
    keeps the input as it is."""
    return 4 + work.compute_bytes if work.cpu else work.compute_bytes


def _activations(work: Workload) -> Parts:
    """What the backward pass of all depths will read; with ``recompute`` only each depth's inputs."""
    draft = work.draft
    e = work.compute_bytes
    hidden = draft.hidden_size
    depths = range(work.ttt_steps)
    if work.recompute:
        states = 2 if work.cpu else 1  # a GPU's memory has no use for what a depth passed on: the next one copied it
        unrolled = sum(work.positions * e * (states * hidden + 2 * draft.key_width * depth) for depth in depths)
    else:
        unrolled = sum(depth_bytes(work, depth) for depth in depths)
    inner_layer = draft.query_width + _mlp_widths(work) + 8 * hidden
    inner = (draft.num_hidden_layers - 1) * inner_layer * e
    kept = draft.aux_width if work.cpu or draft.fc_norm else 0  # of the auxiliary states a copy, scaled or normed
    zero = (norm_bytes(work) + 3 * e) * hidden + (kept + 2 * draft.head_dim) * e + inner
    zero += 0 if draft.latent is None else draft.num_hidden_layers * latent_bytes(work, draft.latent.kv_lora_rank)
    side_by_side = 2 * hidden * draft.qkv_width * e  # the weights of q, k and v
    if not work.cpu:
        side_by_side += hidden * draft.aux_width * e  # and that of fc, scaled
    return {
        "activations": unrolled + work.tokens * zero + side_by_side,
        "depth-0 keys and values": work.keys * 2 * draft.key_width * e * draft.num_hidden_layers,
    }


def _states(work: Workload) -> Parts:
    """The packed batch: auxiliary and last states, and the first in the draft's type where that is another; and on a
    GPU the batch behind it, where it comes from disk."""
    aux = work.draft.aux_width
    copy = aux * work.compute_bytes if work.compute_bytes != work.state_bytes else 0
    batch = work.tokens * (aux + work.target.hidden) * work.state_bytes
    following = batch if work.prefetched and not work.cpu and not work.online else work.ahead * batch
    return {"batch of states": batch + work.tokens * copy, "following batch of states": following}


def _gradients(work: Workload) -> Parts:
    """Gradients of the micro batches before this one."""
    return {"gradients": draft_weights(work.draft) // work.shards * _weight_bytes(work) if work.accumulates else 0}


def _normed_bytes(work: Workload) -> int:
    return work.positions * work.ttt_steps * work.draft.hidden_size * work.compute_bytes


def _head_gradient(work: Workload) -> int:
    return work.draft.draft_vocab_size * work.draft.hidden_size * MASTER


def _target_bytes(work: Workload) -> int:
    return work.target.weight_bytes(work.state_bytes) // work.tp_size if work.online else 0


def _weight_bytes(work: Workload) -> int:
    """Of a weight that is trained, and of its gradient; shards stay in fp32."""
    return MASTER if work.shards > 1 else work.compute_bytes
