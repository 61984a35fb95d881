"""The shape of a draft: derived from any target's config, read from a JSON file, written as SGLang reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError

DEFAULT_DRAFT_VOCAB = 32000
ARCHITECTURE = "LlamaForCausalLMEagle3"
EAGLE31_FLAGS = ("fc_norm", "norm_output")
"""Options of EAGLE-3.1, under the names that SGLang reads; older servers do not know them."""


@dataclass(frozen=True)
class DraftConfig:
    """An EAGLE-3 draft: one decoder layer as wide as the target, over a reduced vocabulary."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    target_hidden_size: int
    aux_layers: tuple[int, ...]
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    dtype: str = "bfloat16"
    fc_norm: bool = False
    """EAGLE-3.1: an RMS norm of its own for every auxiliary layer, before ``fc``."""
    norm_output: bool = False
    """EAGLE-3.1: the next depth gets the normed hidden state."""

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} heads are no multiple of {self.num_key_value_heads} key/value heads",
                where="draft config",
            )
        if self.draft_vocab_size > self.vocab_size:
            raise ModelError(
                f"draft_vocab_size {self.draft_vocab_size} is larger than the target's vocabulary of {self.vocab_size}",
                where="draft config",
                fix="choose a smaller --draft-vocab-size",
            )
        if list(self.aux_layers) != sorted(set(self.aux_layers)) or min(self.aux_layers, default=0) < 0:
            raise ModelError(f"aux layers {list(self.aux_layers)} must ascend from 0 on", where="--aux-layers")

    @classmethod
    def from_target(
        cls,
        target: dict[str, Any],
        *,
        draft_vocab_size: int | None = None,
        aux_layers: tuple[int, ...] | None = None,
    ) -> DraftConfig:
        """The draft that fits a target's ``config.json`` (its text part, for a multi-modal one)."""
        text = text_part(target)
        try:
            hidden, heads, layers = text["hidden_size"], text["num_attention_heads"], text["num_hidden_layers"]
            vocab = text["vocab_size"]
        except KeyError as error:
            raise ModelError(
                f"the target's config has no {error.args[0]}", where="config.json", fix="give --draft-model-config FILE"
            ) from error
        theta, scaling = _rope(text)
        return cls(
            hidden_size=hidden,
            intermediate_size=text.get("intermediate_size") or 4 * hidden,
            num_attention_heads=heads,
            num_key_value_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or hidden // heads,
            vocab_size=vocab,
            draft_vocab_size=draft_vocab_size or min(DEFAULT_DRAFT_VOCAB, vocab),
            target_hidden_size=hidden,
            aux_layers=aux_layers or default_aux_layers(layers),
            rms_norm_eps=text.get("rms_norm_eps") or 1e-5,
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=text.get("max_position_embeddings") or 2048,
            bos_token_id=text.get("bos_token_id"),
            eos_token_id=text.get("eos_token_id"),
            pad_token_id=text.get("pad_token_id"),
            norm_output=True,  # measured: tests/speed/README.md
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, aux_layers: tuple[int, ...] | None = None) -> DraftConfig:
        """Read a draft's own ``config.json`` (SGLang, SpecForge or EAGLE layout).

        ``aux_layers`` stands in where the file does not name them.
        """
        try:
            hidden, heads, vocab = raw["hidden_size"], raw["num_attention_heads"], raw["vocab_size"]
            intermediate = raw["intermediate_size"]
        except KeyError as error:
            raise ModelError(f"the draft config has no {error.args[0]}", where="config.json") from error
        named = raw.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids") or aux_layers
        if not named:
            raise ModelError(
                "the draft config does not say which target layers feed it (eagle_aux_hidden_state_layer_ids)",
                where="config.json",
                fix="give --aux-layers LOW MID HIGH, or --target-model-path to use its default layers",
            )
        theta, scaling = _rope(raw)
        return cls(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or hidden // heads,
            vocab_size=vocab,
            draft_vocab_size=raw.get("draft_vocab_size") or vocab,
            target_hidden_size=raw.get("target_hidden_size") or hidden,
            aux_layers=tuple(named),
            rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            bos_token_id=raw.get("bos_token_id"),
            eos_token_id=raw.get("eos_token_id"),
            pad_token_id=raw.get("pad_token_id"),
            dtype=raw.get("torch_dtype") or raw.get("dtype") or "bfloat16",
            fc_norm=bool(raw.get("fc_norm") or raw.get("use_aux_norm")),
            norm_output=bool(raw.get("norm_output")),
        )

    def to_sglang(self) -> dict[str, Any]:
        """The ``config.json`` that SGLang's EAGLE-3 loader reads; RoPE is written both ways."""
        rope = {"rope_type": "default", **(self.rope_scaling or {}), "rope_theta": self.rope_theta}
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": 1,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "vocab_size": self.vocab_size,
            "draft_vocab_size": self.draft_vocab_size,
            "target_hidden_size": self.target_hidden_size,
            "tie_word_embeddings": False,
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_parameters": rope,
            "rope_theta": self.rope_theta,
            "rope_scaling": dict(self.rope_scaling) if self.rope_scaling else None,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "torch_dtype": self.dtype,
            "dtype": self.dtype,
            "eagle_config": {
                "eagle_aux_hidden_state_layer_ids": list(self.aux_layers),
                "use_aux_hidden_state": True,
            },
            **{flag: True for flag in EAGLE31_FLAGS if getattr(self, flag)},
        }


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """A target's config with its text model's own values on top: of a multi-modal one they stand in ``text_config``."""
    return {**config, **(config.get("text_config") or {})}


def default_aux_layers(layers: int) -> tuple[int, ...]:
    """Layers whose outputs the draft reads: low, middle, high (EAGLE-3's choice ``1, L//2-1, L-4``).

    A target too shallow for three distinct ones gets the nearest ascending layers that it has.
    """
    wanted = (1, layers // 2 - 1, layers - 4)
    if sorted(set(wanted)) == list(wanted) and wanted[0] >= 0:
        return wanted
    if layers < 3:
        raise ModelError(f"the target has {layers} layers; EAGLE-3 reads three", where="config.json")
    return (0, (layers - 1) // 2, layers - 1)


def _rope(text: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """RoPE base and scaling from either way of writing them; scaling is None for plain RoPE."""
    new = text.get("rope_parameters") or {}
    old = text.get("rope_scaling") or {}
    merged = {**old, **new}
    theta = float(merged.pop("rope_theta", None) or text.get("rope_theta") or 10000.0)
    kind = merged.get("rope_type") or merged.pop("type", None) or "default"
    return theta, None if kind == "default" else {**merged, "rope_type": kind}


def read_draft_config(
    source: str, target: dict[str, Any], *, draft_vocab_size: int | None, aux_layers: tuple[int, ...] | None
) -> DraftConfig:
    """The draft config that ``--draft-model-config`` names: ``auto``, or a JSON file checked against the target."""
    if source == "auto":
        return DraftConfig.from_target(target, draft_vocab_size=draft_vocab_size, aux_layers=aux_layers)
    path = Path(source)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError("no such draft config", where=source, fix="give a JSON file, or auto") from error
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ModelError(f"not a JSON draft config: {error}", where=source) from error
    text = text_part(target)
    fallback = aux_layers or default_aux_layers(text["num_hidden_layers"])
    config = DraftConfig.from_dict(raw, aux_layers=fallback)
    if config.vocab_size != text["vocab_size"] or config.target_hidden_size != text["hidden_size"]:
        raise ModelError(
            f"made for a target with vocab_size {config.vocab_size} and hidden_size {config.target_hidden_size}; this "
            f"one has {text['vocab_size']} and {text['hidden_size']}",
            where=source,
            fix="use --draft-model-config auto",
        )
    config = replace(config, draft_vocab_size=draft_vocab_size or config.draft_vocab_size)
    return replace(config, aux_layers=aux_layers or config.aux_layers)
