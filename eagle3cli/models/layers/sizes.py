"""The sizes of a draft's attention: its heads, and those of latent attention (MLA) as servers read them.

SGLang (``kimi_k25_eagle3.py``) and vLLM (``deepseek_eagle3.py``) load a draft of latent attention under one
architecture's name. Both rotate interleaved channels, and take any RoPE that is not plain for DeepSeek's YaRN. Nothing
here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from eagle3cli.errors import ModelError

ARCHITECTURE = "Eagle3DeepseekV2ForCausalLM"
ARCHITECTURES = (ARCHITECTURE, "Eagle3DeepseekV3ForCausalLM")
"""Names of the draft's class; the second is vLLM's alone."""
MODEL_TYPE = "deepseek_v2"
"""vLLM makes an MTP draft of ``deepseek_v3``, and no latent attention of ``kimi_k2`` in an EAGLE config."""
MODEL_TYPES = (MODEL_TYPE, "deepseek_v3", "kimi_k2")
"""Those that drafts of other programs name."""
QUERY_RATIO = 3
"""Rank of the queries over that of keys and values where the target has none: DeepSeek-V3's and Kimi K2's."""
YARN_NEEDS = ("factor", "original_max_position_embeddings")
KEYS = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


@dataclass(frozen=True)
class Latent:
    """Keys and values of all heads from one latent of ``kv_lora_rank`` channels a token.

    A head's query and key are ``qk_nope_head_dim`` channels from the latents and ``qk_rope_head_dim`` that turn with
    the position; of the keys all heads share the latter. ``q_lora_rank`` None: queries without a latent of their own.
    """

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (name == "q_lora_rank" and value is None) and (type(value) is not int or value < 1):
                raise ModelError("draft-config", f"{name} is {value!r}, which is no size", where="draft config")
        if self.qk_rope_head_dim % 2:
            what = f"qk_rope_head_dim is {self.qk_rope_head_dim}; RoPE turns channels in pairs"
            raise ModelError("draft-config", what, where="draft config", fix="give an even number")

    @property
    def qk_head_dim(self) -> int:
        """Channels of a query or a key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def width(self) -> int:
        """Channels to which queries, keys and values are padded, so that one kernel takes them all."""
        return max(self.qk_head_dim, self.v_head_dim)

    def read_width(self, heads: int) -> int:
        """Channels of what the input is multiplied by."""
        queries = heads * self.qk_head_dim if self.q_lora_rank is None else self.q_lora_rank
        return queries + self.kv_lora_rank + self.qk_rope_head_dim

    def query_weights(self, heads: int, width: int) -> int:
        """Weights that make queries of ``width`` channels."""
        queries = heads * self.qk_head_dim
        return width * queries if self.q_lora_rank is None else self.q_lora_rank * (width + queries)

    def key_weights(self, heads: int, width: int) -> int:
        """Weights that make keys and values of ``width`` channels."""
        expanded = heads * (self.qk_nope_head_dim + self.v_head_dim)
        return width * (self.kv_lora_rank + self.qk_rope_head_dim) + self.kv_lora_rank * expanded

    @property
    def norm_weights(self) -> int:
        """Weights of the norms of the latents: their ranks."""
        return self.kv_lora_rank + (self.q_lora_rank or 0)

    def keys(self) -> dict[str, Any]:
        """What the config of such a draft says of it."""
        return {**asdict(self), "rope_interleave": True}


def is_latent(raw: Mapping[str, Any]) -> bool:
    """Whether a draft's config is one of latent attention: by its class, or where that says nothing by its latent.

    A Llama draft's may have been copied from its target's, latent and all.
    """
    names = raw.get("architectures")
    named = set(map(str, names)) if isinstance(names, list) else set()
    if named & set(ARCHITECTURES):
        return True
    return bool(raw.get("kv_lora_rank")) and not any("Llama" in name for name in named)


def read_latent(raw: Mapping[str, Any]) -> Latent | None:
    """The latent attention of a draft's own config; None where it has the usual one.

    Raises ModelError for one of its sizes that is missing: servers would take a default for it.
    """
    if not is_latent(raw):
        return None
    missing = [key for key in KEYS if key not in raw]
    if missing:
        fix = "give it; q_lora_rank is null where queries have no latent"
        raise ModelError(
            "draft-config", f"latent attention without {', '.join(missing)}", where="draft config", fix=fix
        )
    if raw.get("rope_interleave") is False:
        fix = "train a draft of its target here"
        raise ModelError(
            "draft-config", "rope_interleave is false; vLLM turns neighbouring channels all the same", fix=fix
        )
    return Latent(**{key: raw[key] for key in KEYS})


def latent_of(target: Mapping[str, Any], given: Mapping[str, Any]) -> Latent:
    """That of a draft for this target: the target's own but for the sizes that are given, with a rank of the queries
    where neither has one.

    Raises ModelError for a target without latent attention.
    """
    target = {**target, **{key: given[key] for key in KEYS if key in given}}
    missing = [key for key in KEYS if key != "q_lora_rank" and not target.get(key)]
    if missing:
        what = f"the target has no latent attention to take {', '.join(missing)} from"
        raise ModelError(
            "draft-config",
            what,
            where="draft config",
            fix="use --draft-model-config auto, a draft of the usual attention",
        )
    # SGLang's drafts have one always; only the layout of keys and values need be the target's.
    query_rank = target.get("q_lora_rank") or QUERY_RATIO * target["kv_lora_rank"]
    return Latent(**{**{key: target[key] for key in KEYS if key != "q_lora_rank"}, "q_lora_rank": query_rank})


def check_latent_rope(scaling: Mapping[str, Any] | None) -> None:
    """Raise ModelError for a RoPE of which servers make another in latent attention."""
    if scaling is None:
        return
    kind = scaling.get("rope_type")
    reasons = [f"rope_type is {kind!r}"] if kind != "yarn" else []
    for key in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        value = scaling.get(key)
        if not isinstance(value, int | float) and not (value is None and key not in YARN_NEEDS):
            reasons.append(f"{key} is {value!r}")
    reasons += ["attention_factor is given"] if scaling.get("attention_factor") is not None else []
    reasons += ["truncate is false"] if scaling.get("truncate") is False else []
    if reasons:
        what = f"latent attention with another RoPE than plain or DeepSeek's YaRN: {', '.join(reasons)}"
        fix = "give a rope_scaling of type yarn, or null: SGLang and vLLM would compute that one"
        raise ModelError("draft-config", what, where="draft config", fix=fix)


def rope_factor(scaling: Mapping[str, Any] | None) -> float:
    """What DeepSeek's YaRN multiplies cosines and sines by."""
    if scaling is None:
        return 1.0
    mscale = scaling.get("mscale")
    return _magnitude(scaling, 1.0 if mscale is None else mscale) / _magnitude(scaling, scaling.get("mscale_all_dim"))


def softmax_factor(scaling: Mapping[str, Any] | None) -> float:
    """What DeepSeek's YaRN multiplies scores by."""
    return 1.0 if scaling is None else _magnitude(scaling, scaling.get("mscale_all_dim")) ** 2


def _magnitude(scaling: Mapping[str, Any], mscale: float | None) -> float:
    factor = float(scaling["factor"])
    return 1.0 if factor <= 1 else 0.1 * float(mscale or 0) * math.log(factor) + 1.0


def heads_of(text: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, int, int]:
    """Heads, key/value heads and head size of a draft for this target.

    Latent attention (DeepSeek; V4 has one wide key for all heads) has no heads that a draft could copy: it gets as many
    of the values' size as fill the hidden state, and at most eight of keys and values. A Llama layer, which the draft
    is, wants a number of heads that divides its width (GLM-4.5 has 96 heads on 4096).
    """
    if text.get("kv_lora_rank") or text.get("o_lora_rank"):
        size = text.get("v_head_dim") or 128
        heads = max(1, hidden // size)
        return heads, max(n for n in range(1, 9) if heads % n == 0), size
    kv_heads = kv_heads_of(text, heads)
    size = text.get("head_dim") or hidden // heads
    if hidden % heads:
        heads = max(n for n in range(1, heads + 1) if hidden % n == 0)
        kv_heads = max(n for n in range(1, kv_heads + 1) if heads % n == 0)
    return heads, kv_heads, size


def kv_heads_of(text: Mapping[str, Any], heads: int) -> int:
    """The target's key/value heads, under the names that families have for them."""
    own = text.get("num_key_value_heads")
    if own is None and text.get("new_decoder_architecture"):  # Falcon-40B and 180B; its other models ignore the number
        own = text.get("num_kv_heads") or text.get("n_head_kv")
    elif own is None and isinstance(text.get("attn_config"), Mapping):  # DBRX
        own = text["attn_config"].get("kv_n_heads")
    return int(own or (1 if text.get("multi_query") else heads))


def mlp_width(text: Mapping[str, Any], hidden: int) -> int:
    """Width of the draft's MLP: the target's dense one, or four times hidden where there are only narrow experts."""
    width = int(text.get("intermediate_size_mlp") or text.get("intermediate_size") or 4 * hidden)
    return width if width >= 2 * hidden else 4 * hidden
