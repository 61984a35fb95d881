"""Rotary position embeddings of drafts: read from either way of writing them, reduced to what every server does alike.

Nothing here computes an angle; see ``models/draft.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_THETA = 10000.0
KEPT = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Kinds of scaling that transformers, SGLang and vLLM compute alike, and the keys that all three read."""
FAR_LAYERS = ("full_attention", "compress")
YARN_OF_VENDORS = ("deepseek_yarn", "telechat3-yarn")
"""YaRN under names that only the models' own code has."""


def read_rope(raw: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """RoPE base and scaling of a config, from either way of writing them; scaling is None for plain RoPE.

    Where the layers of a model differ, those count that see all of a text: Gemma 3's of full attention, DeepSeek-V4's
    that compress it. The sections of a multi-modal RoPE are left out: on text all three positions are the same, so it
    is plain RoPE.
    """
    merged = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    far = next((merged[kind] for kind in FAR_LAYERS if isinstance(merged.get(kind), dict)), None)
    merged = merged if far is None else dict(far)
    own = raw.get("compress_rope_theta") or raw.get("rope_theta")
    theta = float(merged.pop("rope_theta", None) or own or DEFAULT_THETA)
    kind = merged.get("rope_type") or merged.get("type") or "default"
    kind = "yarn" if kind in YARN_OF_VENDORS else kind
    merged = {key: value for key, value in merged.items() if key != "type" and not key.startswith("mrope_")}
    return theta, None if kind in ("default", "mrope") else {**merged, "rope_type": kind}


def reduced_rope(text: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """RoPE of a new draft for a target: the target's, where all servers compute it alike, else the nearest such one.

    - LongRoPE has two tables. Transformers changes over by the length of a sequence, SGLang by its newest position and
      vLLM by the server's context, so a draft that saw one table in training may be served with the other. It becomes
      YaRN of the same stretch, which has one table.
    - Dynamic NTK changes with the length, too; inside the context it was made for it is plain RoPE. HunYuan's has an
      ``alpha``, which is a larger base at any length.
    - Partial rotation is the target's own affair: a draft turns all of its head.
    """
    theta, scaling = read_rope(text)
    if scaling is None:
        return theta, None
    kind = scaling["rope_type"]
    if kind == "longrope":
        return theta, _yarn_of(scaling, text)
    if kind == "dynamic" and scaling.get("alpha"):
        size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return theta * float(scaling["alpha"]) ** (size / (size - 2)), None
    if kind not in KEPT:
        return theta, None
    kept = {key: scaling[key] for key in KEPT[kind] if scaling.get(key) is not None}
    if kind == "yarn" and "original_max_position_embeddings" not in kept:
        kept["original_max_position_embeddings"] = text["max_position_embeddings"]
    return theta, {**kept, "rope_type": kind}


def _yarn_of(longrope: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any] | None:
    context = int(text["max_position_embeddings"])
    original = int(
        longrope.get("original_max_position_embeddings") or text.get("original_max_position_embeddings") or context
    )
    if context <= original:
        return None
    return {"factor": context / original, "original_max_position_embeddings": original, "rope_type": "yarn"}
