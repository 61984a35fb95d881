"""The sliding window of a draft: which keys a position sees, in training, in decoding and on a server.

Positions are those of the text: the key that row p makes at step i of a chain stands at p + i, where its RoPE puts it.
So one rule says it all, for the keys of the first step and for those that a chain adds: the query at position q sees
the key at position k where ``q - size < k <= q``, or where k is among the first ``sinks`` positions of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eagle3cli.errors import ModelError

if TYPE_CHECKING:  # configs are read where torch is not imported
    from torch import Tensor

WINDOW_KEYS = ("layer_types", "sliding_window", "draft_sinks")
"""How a draft's config says its window: as vLLM reads it, and ``draft_sinks``, which no engine knows."""
SLIDING = "sliding_attention"
LONGEST = 2**31


@dataclass(frozen=True)
class Window:
    """What a position sees: the ``size`` newest keys, its own included, and the first ``sinks`` of its text."""

    size: int
    sinks: int = 0

    def shows(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at a position of a text sees the key at another; bool, broadcast."""
        return (key <= query) & ((key > query - self.size) | (key < self.sinks))

    def keys(self, layers: int) -> dict[str, Any]:
        """What the config of a draft with so many layers says of it."""
        sinks = {"draft_sinks": self.sinks} if self.sinks else {}
        return {"layer_types": [SLIDING] * layers, "sliding_window": self.size, **sinks}


def read_window(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The window that a draft's config names by the types of its layers, as fields of ``DraftConfig``.

    A ``sliding_window`` without them is no window: many configs were copied from a target's, and no engine reads it.
    """
    kinds = set(raw.get("layer_types") or ())
    if SLIDING not in kinds:
        return {}
    if len(kinds) > 1:
        what = f"layers of different kinds in one draft: {', '.join(sorted(map(str, kinds)))}"
        raise ModelError("draft-config", what, where="config.json", fix=f"all of layer_types {SLIDING}, or none")
    return {"window": raw.get("sliding_window") or 0, "sinks": raw.get("draft_sinks") or 0}


def check_window(window: object, sinks: object) -> None:
    """Raise ModelError for what is no window."""
    for name, value, least in (("window", window, 1), ("sinks", sinks, 0)):
        if (value is not None or name == "sinks") and not (type(value) is int and least <= value < LONGEST):
            what = f"a draft's {name} of {value!r} is no number of tokens"
            raise ModelError("draft-config", what, where=f"--draft-{name}", fix=f"give a whole number from {least} on")
    if sinks and window is None:
        what = f"{sinks} sink tokens without a window: all tokens are seen"
        raise ModelError("draft-config", what, where="--draft-sinks", fix="give --draft-window, too, or leave it out")
