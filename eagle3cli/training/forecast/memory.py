"""What training takes of memory on one device, forecast from shapes alone, before anything is loaded.

A run passes through a few moments (loading, initial weights, the target's pass, the end of a forward pass, the begin
of a backward pass, the update, an evaluation, a checkpoint); each holds some of the terms below at the same time, and
the largest sum is the peak. ``tests/speed/memory_forecast.py`` holds the forecast against real runs.

Symbols: N packed tokens of a micro batch, R rows that are alive at depth 0, T depths, H hidden, C auxiliary states,
I MLP, Q and K widths of queries and of keys, O = Q + 2K, V and Vd vocabularies, P weights of the draft, ``e`` bytes of
an element in the type that the draft computes in, ``t`` bytes in the type of the states. What autograd keeps is
counted tensor by tensor, as :mod:`eagle3cli.training.ttt.unroll` makes them; ``n`` are the bytes an element that a norm
keeps (:func:`norm_bytes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from eagle3cli.backends.capture.memory import Parts, TargetShape, pass_parts
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.units import size_text
from eagle3cli.training.ttt.attention import QUERY_BLOCK
from eagle3cli.training.ttt.loss import CHUNK_ELEMENTS

MASTER = 4
"""Bytes of a master weight, of a moment and of the head's gradient in a loss."""


@dataclass(frozen=True)
class Load:
    """What decides the memory of one process that trains; sizes are those of its largest micro batch."""

    draft: DraftConfig
    target: TargetShape
    online: bool
    tokens: int
    sequences: int
    longest: int
    """Tokens of the longest sequence: a live target's pass is padded to it."""
    rows: int
    """Rows that carry loss at depth 0."""
    depths: int
    cpu: bool = True
    compute: int = 4
    """Bytes of an element in the type that the draft computes in."""
    states: int = 4
    """Bytes of an element of the target's states and weights."""
    recompute: bool = False
    accumulates: bool = False
    """A step has several micro batches."""
    whole_head: bool = False
    """The loss reads the target's whole vocabulary."""
    chunk: int = CHUNK_ELEMENTS
    shards: int = 1
    """Ranks that share the draft's weights."""
    ranks: int = 1
    tp_size: int = 1
    """Ranks that share the target."""
    shared_prefix: bool = False
    """Sequences begin alike, so that the target's pass keeps keys and values."""
    muon: bool = False
    initial_rows: int = 0
    """Rows that the initial weights are solved from; 0 where they are not."""
    waiting: int = 0
    """Encoded states that are read ahead, in the computer's memory."""
    process: int = 0
    """What the process takes before it loads anything."""


@dataclass(frozen=True)
class Moment:
    """What is in memory at one moment of a run, by name, in bytes."""

    name: str
    parts: Parts = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Forecast:
    """The moments of a run on one device."""

    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        """The moment that takes most."""
        return max(self.moments, key=lambda moment: moment.bytes)

    @property
    def bytes(self) -> int:
        """What the device must have."""
        return self.peak.bytes


def part_lines(found: Forecast) -> list[str]:
    """The parts of the peak for people, the largest first; those below a hundredth of it are not named."""
    parts = sorted(found.peak.parts.items(), key=lambda part: -part[1])
    return [f"  {size_text(size):>9}  {name}" for name, size in parts if size >= 0.01 * found.bytes]


def forecast(load: Load) -> Forecast:
    """What every moment of a run takes on one device."""
    standing = standing_parts(load)
    moments = [Moment("loading", loading_parts(load))]
    if load.initial_rows:
        moments.append(Moment("initial weights", initial_parts(load)))
    if load.online:
        moments.append(Moment("the target's pass", {**standing, **_gradients(load), **target_pass_parts(load)}))
    moments += [
        Moment("end of a forward pass", {**standing, **_gradients(load), **forward_parts(load)}),
        Moment("begin of a backward pass", {**standing, **_gradients(load), **backward_parts(load)}),
        Moment("update", {**standing, **update_parts(load)}),
    ]
    if load.cpu:
        saved = {"copies for a checkpoint": checkpoint_bytes(load)}  # a thread's own heap: it reuses nothing
        moments = [Moment(moment.name, {**moment.parts, **saved}) for moment in moments]
    return Forecast(tuple(moments))


def draft_weights(draft: DraftConfig) -> int:
    """Number of a draft's weights: ``CH + (layers)(xO + QH + 3HI) + VdH`` and norms, x = 2H in the first layer."""
    hidden, query, key = draft.hidden_size, *_widths(draft)
    layer = query * hidden + 3 * hidden * draft.intermediate_size + 2 * hidden
    inner = draft.num_hidden_layers - 1
    attention = (2 + inner) * hidden * (query + 2 * key)
    ends = draft.draft_vocab_size * hidden + (draft.vocab_size * hidden if draft.own_embedding else 0)
    return _aux(draft) * hidden + attention + draft.num_hidden_layers * layer + 2 * hidden + ends


def standing_parts(load: Load) -> Parts:
    """What stays from the first step to the last."""
    draft, count = load.draft, draft_weights(load.draft)
    hidden, shared = load.target.hidden, count // load.shards
    whole = count * load.compute if load.shards > 1 else 0  # gathered for a step, and let go after it
    own = shared * (MASTER if load.shards > 1 else load.compute)
    embedding = 0 if load.online and load.tp_size == 1 else load.target.vocab * hidden * load.states
    head = 0 if load.target.tied or not load.whole_head else load.target.vocab * hidden * load.states
    return {
        "process": load.process,
        "draft weights": own + whole,
        "fp32 masters": shared * MASTER if load.compute != MASTER and load.shards == 1 else 0,
        "moments": shared * MASTER * (1 if load.muon else 2),
        "target weights": _target_bytes(load) if load.online else 0,
        "target embedding and head": embedding + head,
        "teacher head": draft.draft_vocab_size * hidden * load.compute,
        "states read ahead": load.waiting if load.cpu else 0,
    }


def loading_parts(load: Load) -> Parts:
    """Weights come in file by file, and the ends of the target are read once more from its files."""
    ends = load.target.vocab * load.target.hidden * load.states * (1 if load.target.tied else 2)
    return {"process": load.process, "target weights": _target_bytes(load) if load.online else 0, "its ends": ends}


def target_pass_parts(load: Load) -> Parts:
    """The live target over a micro batch; a group of ranks that shares it runs it on the rows of all of them."""
    return pass_parts(
        load.target,
        load.sequences * load.longest * load.tp_size,
        load.tokens,
        aux=_aux(load.draft),
        each=load.states,
        tp_size=load.tp_size,
        shared_prefix=load.shared_prefix,
    )


def forward_parts(load: Load) -> Parts:
    """What is alive when the loss has been computed: activations of all depths, and what the backward will read."""
    normed = load.rows * load.depths * load.draft.hidden_size * load.compute
    return {
        **_states(load),
        **_activations(load),
        "mask of a block": mask_bytes(load),
        "rows for the head and their gradients": 2 * normed,
        "head's gradient": load.draft.draft_vocab_size * load.draft.hidden_size * MASTER,
        "chunk of the head": chunk_bytes(load),
    }


def backward_parts(load: Load) -> Parts:
    """The first moments of a backward pass, where all activations are still there.

    The gradients of the rows and of the head are scaled into copies; then the last depth's MLP and attention need
    ``R (4I + 4Q)`` and the shared keys' gradients ``N (2K + 2O)``; one depth is made again with ``recompute``.
    """
    draft, e = load.draft, load.compute
    hidden, (query, key) = draft.hidden_size, _widths(draft)
    normed, head = load.rows * load.depths * hidden * e, draft.draft_vocab_size * hidden * MASTER
    scaling = normed + head
    again = depth_bytes(load, load.depths - 1) if load.recompute else 0
    layer = load.rows * (4 * draft.intermediate_size + 4 * query) * e + load.tokens * (4 * query + 8 * key) * e
    weights = 2 * 2 * hidden * (query + 2 * key) * e
    return {
        **_states(load),
        **_activations(load),
        "mask of a block": mask_bytes(load),
        "rows for the head and their gradients": normed,
        "head's gradient": head,
        "backward of a depth": max(scaling, again + layer + weights),
    }


def update_parts(load: Load) -> Parts:
    """Gradients in the type of the weights, their fp32 copies where that is another, and the ranks' message."""
    shared = draft_weights(load.draft) // load.shards
    copies = shared * MASTER if load.compute != MASTER and load.shards == 1 else 0
    message = shared * MASTER if load.ranks > 1 and load.shards == 1 else 0
    return {"gradients": shared * (MASTER if load.shards > 1 else load.compute) + copies, "message": message}


def initial_parts(load: Load) -> Parts:
    """Solving the initial weights from M rows, in fp32, before there are moments and a teacher's head.

    ``4 M (2C + 5H + 4I)`` while the MLP is fitted, with the Gram matrix of C + H three times in fp64.
    """
    draft, aux, rows = load.draft, _aux(load.draft), load.initial_rows
    sample = 4 * rows * (2 * aux + 5 * draft.hidden_size + 4 * draft.intermediate_size)
    weights = draft_weights(draft) * MASTER
    states = {"sample of the target's states": sample, "equations": 3 * 8 * (aux + draft.hidden_size) ** 2}
    return {**loading_parts(load), "draft weights": weights, **states}


def evaluation_forecast(load: Load) -> Forecast:
    """An evaluation without training: no gradients, so that one depth's activations are there at a time."""
    draft, e = load.draft, load.compute
    hidden, (query, key) = draft.hidden_size, _widths(draft)
    each = 4 * hidden + 3 * draft.intermediate_size + 3 * query + 2 * key * load.depths
    kept = load.rows * (each + load.depths * hidden) * e
    zero = load.tokens * (2 * _aux(draft) + 4 * hidden + query + 4 * key) * e
    logits = min(load.chunk, load.rows * draft.draft_vocab_size) * e
    standing = {
        "process": load.process,
        "draft weights": draft_weights(draft) * e,
        "target weights": _target_bytes(load) if load.online else 0,
        "target embedding and head": 0 if load.online else load.target.vocab * hidden * load.states,
    }
    parts = {**_states(load), "activations of a depth": kept, "depth-0 states": zero, "chunk of the head": logits}
    passing = [Moment("the target's pass", {**standing, **target_pass_parts(load)})] if load.online else []
    return Forecast((*passing, Moment("simulated acceptance", {**standing, **parts})))


def checkpoint_bytes(load: Load) -> int:
    """In the computer's memory while a checkpoint is written: weights for servers, and masters and moments twice."""
    count = draft_weights(load.draft)
    resumable = count // load.shards * MASTER * (2 if load.muon else 3)
    return count * load.compute + 2 * resumable


def chunk_bytes(load: Load) -> int:
    """One chunk of the head: teacher's and draft's logits, probabilities and error, in fp32 and in ``e`` bytes."""
    width = load.target.vocab if load.whole_head else load.draft.draft_vocab_size
    positions = min(load.rows + load.depths, max(1, load.chunk // width))
    one = positions * load.draft.draft_vocab_size
    low = load.compute if load.compute != MASTER else 0
    whole = positions * load.target.vocab * (MASTER + low) if load.whole_head else 0
    return one * (5 * MASTER + 2 * low) + whole


def mask_bytes(load: Load) -> int:
    """Attention in blocks of query rows, as on a CPU: one block's mask over the longest sequence, and what it is made
    of. Compiled attention has none."""
    rows = min(QUERY_BLOCK, load.rows)
    return rows * load.longest * (MASTER + 1) if load.cpu and load.rows < load.tokens - 2 * load.sequences else 0


def depth_bytes(load: Load, depth: int) -> int:
    """What autograd keeps of one depth, for each row: ``3nH`` of norms, ``e (2H + 3I + 2Q)`` of projections and
    attention with its log-sum-exp, ``2eK`` for it and for each depth before, and the rotary tables ``4eD``."""
    draft, e = load.draft, load.compute
    hidden, (query, key) = draft.hidden_size, _widths(draft)
    own = 2 * key * depth * e
    tables = (4 if depth else 2) * draft.head_dim * e
    layer = norm_bytes(load) * 2 * hidden + e * (2 * hidden + 3 * draft.intermediate_size + 2 * query)
    layers = 1 if depth == 0 else draft.num_hidden_layers
    each = layers * (layer + own + tables + 4 * draft.num_attention_heads) + norm_bytes(load) * hidden
    return load.rows * each


def norm_bytes(load: Load) -> int:
    """Bytes that a norm keeps of an element: its input in fp32, and what is multiplied by the weight (CUDA's own fp32
    kernel makes that again)."""
    return 4 + load.compute if load.cpu or load.compute != MASTER else 4


def _activations(load: Load) -> Parts:
    """What the backward pass of all depths will read; with ``recompute`` only each depth's inputs."""
    draft, e = load.draft, load.compute
    hidden, (query, key) = draft.hidden_size, _widths(draft)
    depths = range(load.depths)
    if load.recompute:
        kept = sum(load.rows * e * (2 * hidden + 2 * key * depth) for depth in depths)
    else:
        kept = sum(depth_bytes(load, depth) for depth in depths)
    inner = (draft.num_hidden_layers - 1) * load.tokens * (query + 3 * draft.intermediate_size + 8 * hidden) * e
    shared = load.tokens * 2 * key * e * draft.num_hidden_layers
    zero = load.tokens * ((norm_bytes(load) + 3 * e) * hidden + (_aux(draft) + 2 * draft.head_dim) * e) + inner
    side_by_side = 2 * hidden * (query + 2 * key) * e  # the weights of q, k and v
    return {"activations": kept + zero + side_by_side, "depth-0 keys and values": shared}


def _states(load: Load) -> Parts:
    """The packed batch: auxiliary and last states, and the first in the draft's type where that is another."""
    aux = _aux(load.draft)
    copy = load.tokens * aux * load.compute if load.compute != load.states else 0
    return {"batch of states": load.tokens * (aux + load.target.hidden) * load.states + copy}


def _gradients(load: Load) -> Parts:
    """Gradients of the micro batches before this one."""
    kept = draft_weights(load.draft) // load.shards * (MASTER if load.shards > 1 else load.compute)
    return {"gradients": kept if load.accumulates else 0}


def _target_bytes(load: Load) -> int:
    return load.target.weights * load.states // load.tp_size


def _aux(draft: DraftConfig) -> int:
    return len(draft.aux_layers) * draft.target_hidden_size


def _widths(draft: DraftConfig) -> tuple[int, int]:
    """Widths of queries and of keys."""
    return draft.num_attention_heads * draft.head_dim, draft.num_key_value_heads * draft.head_dim
