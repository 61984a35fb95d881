"""Which layers of a target a draft reads; its text model's config, which says how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagle3cli.errors import ModelError


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """A target's config with its text model's own values on top: of a multi-modal one they stand in ``text_config``."""
    return {**config, **(config.get("text_config") or {})}


def default_aux_layers(layers: int) -> tuple[int, ...]:
    """Layers whose outputs the draft reads: low, middle, high (EAGLE-3's choice ``1, L//2-1, L-4``).

    A target too shallow for three distinct ones gets the nearest ascending layers that it has. The last layer is never
    among them, because SGLang reads a layer's output at the next layer; one of three layers leaves two.
    """
    usual = (1, layers // 2 - 1, layers - 4)
    if sorted(set(usual)) == list(usual):
        return usual
    if layers < 3:
        raise ModelError(f"the target has {layers} layers; EAGLE-3 reads three", where="config.json")
    return tuple(sorted({0, (layers - 1) // 2, layers - 2}))


def deepstack_layers(target: Mapping[str, Any]) -> int:
    """The first layers of a multi-modal target behind which it adds features of images (Qwen3-VL); 0 for others."""
    return len((target.get("vision_config") or {}).get("deepstack_visual_indexes") or ())


def chosen_aux_layers(target: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers that a new draft reads: :func:`default_aux_layers`, the low one behind those to which images are
    added, whose outputs are not yet what the layers above see."""
    usual = default_aux_layers(int(text_part(target)["num_hidden_layers"]))
    moved = (max(usual[0], deepstack_layers(target)), *usual[1:])
    return moved if list(moved) == sorted(set(moved)) else usual
