"""Draft folders of other programs, brought to our names: EAGLE's own, SpecForge's, SGLang's and speculators'.

Where a draft of theirs computes something that ours does not, it is refused: read as ours it would be another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eagle3cli.errors import ModelError
from eagle3cli.models.layers.sizes import MODEL_TYPES, is_latent

LEFT_OUT = ("verifier_lm_head.", "verifier_norm.")
"""Tensors of speculators that are its target's."""


def is_speculators(raw: Mapping[str, Any]) -> bool:
    """Whether this is the ``config.json`` of a speculators folder."""
    return "speculators_model_type" in raw


def convert_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A draft's config with its keys where SGLang has them; raises ModelError for a draft that is not EAGLE-3's."""
    if not is_speculators(raw):
        _refuse(raw)
        return dict(raw)
    kind = raw["speculators_model_type"]
    if kind != "eagle3":
        raise ModelError("not-a-draft", f"a {kind} draft, not EAGLE-3")
    layer = raw.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise ModelError("not-a-draft", "no transformer_layer_config: not a whole speculators config")
    _refuse(layer)
    own = ("draft_vocab_size", "target_hidden_size", "eagle_aux_hidden_state_layer_ids", "torch_dtype", "dtype")
    config = {**layer, **{key: raw[key] for key in own if raw.get(key) is not None}}
    # What a server takes where the key is missing.
    config["norm_before_residual"] = raw.get("norm_before_residual", True)
    return config | {key: bool(raw.get(key)) for key in ("norm_before_fc", "fc_norm", "norm_output")}


def _refuse(raw: Mapping[str, Any]) -> None:
    """Raise ModelError for a decoder layer that is not the one this program trains."""
    kind = raw.get("model_type", "llama")
    if kind != "llama" and not (is_latent(raw) and kind in MODEL_TYPES):
        what = f"its layer is {kind}'s; only Llama's and DeepSeek's latent attention are read"
        raise ModelError("not-a-draft", what, fix="train a draft of its target here")
    reasons = [f"{key} is true" for key in ("attention_bias", "mlp_bias", "bias") if raw.get(key)]
    act = raw.get("hidden_act", "silu")
    reasons += [f"hidden_act is {act}"] if act != "silu" else []
    if raw.get("quantization_config"):
        reasons.append("its weights are quantised")
    if raw.get("parallel_drafting") or raw.get("pard_token") is not None:
        reasons.append("it drafts all tokens at once")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        reasons.append(f"partial_rotary_factor is {raw['partial_rotary_factor']}")
    if reasons:
        raise ModelError("not-a-draft", f"not a draft as it is trained here: {', '.join(reasons)}")


def convert_tensors(raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A draft's tensors under our names. Raises ModelError for an EAGLE-1 or -2 draft."""
    renamed = {"aux_norm_low.": "fc_norm.0.", "aux_norm_mid.": "fc_norm.1.", "aux_norm_high.": "fc_norm.2."}
    converted = {}
    for name, value in tensors.items():
        name = name.removeprefix("model.")
        name = f"midlayer.{name.removeprefix('layers.0.')}" if name.startswith("layers.0.") else name
        for old, new in renamed.items():
            name = name.replace(old, new)
        if not name.startswith(LEFT_OUT) and not name.endswith("rotary_emb.inv_freq"):
            converted[name] = value
    fc = converted.get("fc.weight")
    reads_one_state = fc is not None and fc.ndim == 2 and fc.shape[1] == 2 * fc.shape[0]
    if reads_one_state and "midlayer.hidden_norm.weight" not in converted:
        raise ModelError(
            "not-a-draft", "an EAGLE-1 or EAGLE-2 draft: its fc reads the last state alone", fix="give an EAGLE-3 draft"
        )
    if is_speculators(raw):
        # Its later layers follow vLLM: the norm before attention is input_layernorm, and hidden_norm is never read.
        for name in [n for n in converted if n.startswith("layers.") and n.endswith(".input_layernorm.weight")]:
            converted[name.replace("input_layernorm", "hidden_norm")] = converted[name]
    return converted
