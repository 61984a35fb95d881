"""Which layers of a target a draft reads; its text model's config, which says how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagle3cli.errors import ModelError

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads"),
    "intermediate_size": ("n_inner", "ffn_hidden_size", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "seq_length", "model_max_length", "max_seq_len"),
}
"""What families before Llama, and some after it, call their sizes."""
KINDS_OF_LAYERS = ("layers_block_type", "hybrid_override_pattern")
"""One entry for each layer: Nemotron-H's own count of them."""


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """A target's config with its text model's own values on top, under the usual names: of a multi-modal one they stand
    in ``text_config``, or in that of the part that thinks (Qwen3-Omni)."""
    inner = config.get("text_config") or {}
    if not inner and isinstance(config.get("thinker_config"), Mapping):
        inner = config["thinker_config"].get("text_config") or {}
    text = {**config, **inner}
    for name, others in OTHER_NAMES.items():
        named = [text[other] for other in others if isinstance(text.get(other), int)]
        if text.get(name) is None and named:
            text[name] = named[0]
    kinds = next((text[name] for name in KINDS_OF_LAYERS if text.get(name)), None)
    if text.get("num_hidden_layers") is None and kinds is not None:
        text["num_hidden_layers"] = len(kinds)
    return text


def default_aux_layers(layers: int) -> tuple[int, ...]:
    """Layers whose outputs the draft reads: low, middle, high (EAGLE-3's choice ``1, L//2-1, L-4``).

    A target too shallow for three distinct ones gets the nearest ascending layers that it has. The last layer is never
    among them, because SGLang reads a layer's output at the next layer; one of three layers leaves two.
    """
    usual = (1, layers // 2 - 1, layers - 4)
    if sorted(set(usual)) == list(usual):
        return usual
    if layers < 3:
        raise ModelError("aux-layers", f"the target has {layers} layers; EAGLE-3 reads three", where="config.json")
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
