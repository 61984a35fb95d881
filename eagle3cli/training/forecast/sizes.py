"""What decides the memory of a process that trains."""

from __future__ import annotations

from dataclasses import dataclass

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.models.config import DraftConfig


@dataclass(frozen=True)
class Workload:
    """What decides the memory of one process that trains; sizes are those of its largest micro batch."""

    draft: DraftConfig
    target: TargetShape
    online: bool
    tokens: int
    sequences: int
    longest_sequence: int
    """Tokens of the longest sequence: a live target's pass may be padded to it."""
    positions: int
    """Rows that carry loss at depth 0."""
    ttt_steps: int
    cpu: bool = True
    compute_bytes: int = 4
    """Bytes of an element in the type that the draft computes in."""
    state_bytes: int = 4
    """Bytes of an element of the target's states and weights."""
    recompute: bool = False
    accumulates: bool = False
    """A step has several micro batches."""
    full_head: bool = False
    """The loss reads the target's whole vocabulary."""
    chunk: int | None = None
    """Logits that exist at once in the loss; None is what suits the device."""
    shards: int = 1
    """Ranks that share the draft's weights."""
    world_size: int = 1
    tp_size: int = 1
    """Ranks that share the target."""
    shared_prefix: bool = False
    """Sequences begin alike, so that the target's pass keeps keys and values."""
    muon: bool = False
    ema: bool = False
    """The weights' average is kept."""
    initial_rows: int = 0
    """Rows that the initial weights are solved from; 0 where they are not."""
    kept_tokens: int = 0
    """Tokens whose states are kept for echoes, in the computer's memory."""
    prefetched: int = 0
    """Encoded states that are read ahead, in the computer's memory."""
    ahead: int = 0
    """Batches of states that come from the target's own ranks while the draft trains on another."""
    process_bytes: int = 0
    """What the process takes before it loads anything."""
    shared_tokens: int = 0
    """Tokens of the sequences that are dealt to several processes, whose keys and values each has; 0: ``tokens``."""

    context: int = 1
    """Processes that they are dealt to."""

    @property
    def keys(self) -> int:
        """Tokens whose depth-0 keys and values are here."""
        return self.shared_tokens or self.tokens

    @property
    def pass_tokens(self) -> int:
        """Tokens of one pass of a target that runs beside the draft: of all that share it, or of its share of the rows
        that several targets read for a group."""
        if self.tp_size >= self.context:
            return self.keys * (self.tp_size // self.context)
        return max(self.longest_sequence, self.keys * self.tp_size // self.context)
