"""The shape of a draft: derived from any target's config, read from a JSON file, written as SGLang reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from eagle3cli.errors import ModelError
from eagle3cli.models.aux_layers import chosen_aux_layers, text_part
from eagle3cli.models.layers import sizes
from eagle3cli.models.layers.sizes import (
    Latent,
    check_latent_rope,
    heads_of,
    is_latent,
    latent_of,
    mlp_width,
    read_latent,
)
from eagle3cli.models.packaged import read_config_file
from eagle3cli.models.rope import read_rope, reduced_rope
from eagle3cli.models.window import SLIDING, Window, check_window, read_window

DEFAULT_DRAFT_VOCAB = 32000
ARCHITECTURE = "LlamaForCausalLMEagle3"
EAGLE31_FLAGS = ("fc_norm", "norm_output")
"""Options of EAGLE-3.1, under the names that servers read; older ones do not know them."""
FLAGS = (*EAGLE31_FLAGS, "norm_before_fc", "norm_before_residual", "own_embedding")
"""All that a draft's config.json says by a key of its own, written where it is true."""

OTHER_KINDS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What Python raises for values of other kinds than a config has."""

SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("draft_vocab_size", "target_hidden_size", "max_position_embeddings", "num_hidden_layers"),
)
ROPE_KEYS = ("rope_parameters", "rope_theta", "rope_scaling")
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
LARGEST_SIZE = 2**31
TARGET_SIZES = {"vocab_size": "vocab_size", "target_hidden_size": "hidden_size", "hidden_size": "hidden_size"}
"""Sizes of a draft that are its target's, and their names there."""

AUX_LAYERS = "eagle_aux_hidden_state_layer_ids"
"""Within ``eagle_config`` the layers whose outputs are read; outside of it, for vLLM, those whose inputs they are."""

COUNTED_FOR = "target_architectures"
"""Written where SGLang's class of the target takes other numbers for its layers than the usual ones: that class."""


@dataclass(frozen=True)
class DraftConfig:
    """An EAGLE-3 draft: decoder layers (usually one) as wide as the target, over a reduced vocabulary."""

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
    norm_before_fc: bool = False
    """One RMS norm over all auxiliary states together, before ``fc``."""
    norm_before_residual: bool = False
    """The first layer's residual starts from the normed hidden state; a habit of speculators, which vLLM follows."""
    num_hidden_layers: int = 1
    own_embedding: bool = False
    """An embedding that is trained with the draft, in place of the target's."""
    window: int | None = None
    """Newest keys that a position sees, its own included; None: all of its text."""
    sinks: int = 0
    """First positions of a text that every position sees besides."""
    latent: Latent | None = None
    """Latent attention (MLA) in place of the usual one; ``head_dim`` is then that of queries and keys, and every head
    has a key and a value of its own."""

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < LARGEST_SIZE:
                raise ModelError("draft-config", f"{name} is {value!r}, which is no size", where="draft config")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                "draft-config",
                f"{self.num_attention_heads} heads are no multiple of {self.num_key_value_heads} key/value heads",
                where="draft config",
            )
        if self.draft_vocab_size > self.vocab_size:
            raise ModelError(
                "invalid-value",
                f"draft_vocab_size {self.draft_vocab_size} is larger than the target's vocabulary of {self.vocab_size}",
                where="draft config",
                fix="choose a smaller --draft-vocab-size",
            )
        check_window(self.window, self.sinks)
        if self.latent is not None:
            heads = (self.num_key_value_heads, self.head_dim)
            if heads != (self.num_attention_heads, self.latent.qk_head_dim):
                raise ModelError(
                    "draft-config",
                    "latent attention has a key for every head, as wide as its query",
                    where="draft config",
                )
            check_latent_rope(self.rope_scaling)
        if list(self.aux_layers) != sorted(set(self.aux_layers)) or min(self.aux_layers, default=0) < 0:
            raise ModelError(
                "aux-layers", f"aux layers {list(self.aux_layers)} must ascend from 0 on", where="--aux-layers"
            )

    @property
    def sliding(self) -> Window | None:
        """What a position sees; None: all of its text up to itself."""
        return None if self.window is None else Window(self.window, self.sinks)

    @property
    def aux_width(self) -> int:
        """Width of the target's auxiliary states side by side."""
        return len(self.aux_layers) * self.target_hidden_size

    @property
    def attended_dim(self) -> int:
        """Channels of a head in the attention's kernels, where those of latent attention are padded to one width."""
        return self.head_dim if self.latent is None else self.latent.width

    @property
    def query_width(self) -> int:
        """Width of all query heads in the attention."""
        return self.num_attention_heads * self.attended_dim

    @property
    def key_width(self) -> int:
        """Width of all key heads in the attention, and of all value heads."""
        return self.num_key_value_heads * self.attended_dim

    @property
    def qkv_width(self) -> int:
        """Channels of what the attention's input is multiplied by: q, k and v, or their latents, side by side."""
        return (
            self.query_width + 2 * self.key_width
            if self.latent is None
            else self.latent.read_width(self.num_attention_heads)
        )

    def query_weights(self, width: int) -> int:
        """Weights that make an attention's queries of ``width`` channels."""
        latent = self.latent
        return width * self.query_width if latent is None else latent.query_weights(self.num_attention_heads, width)

    def key_weights(self, width: int) -> int:
        """Weights that make an attention's keys and values of ``width`` channels."""
        latent = self.latent
        return width * 2 * self.key_width if latent is None else latent.key_weights(self.num_attention_heads, width)

    @property
    def output_weights(self) -> int:
        """Weights of an attention's output projection."""
        size = self.head_dim if self.latent is None else self.latent.v_head_dim
        return self.num_attention_heads * size * self.hidden_size

    @classmethod
    def from_target(
        cls,
        target: dict[str, Any],
        *,
        draft_vocab_size: int | None = None,
        aux_layers: tuple[int, ...] | None = None,
        latent: Mapping[str, Any] | None = None,
    ) -> DraftConfig:
        """The draft that fits a target's ``config.json`` (its text part, for a multi-modal one), its vocabulary at most
        the target's; ``latent`` asks for the target's latent attention instead, with the sizes that it names."""
        text = text_part(target)
        try:
            hidden = text["hidden_size"]
            heads = text["num_attention_heads"]
            aux_layers = aux_layers or chosen_aux_layers(target)
            vocab = text["vocab_size"]
        except KeyError as error:
            raise ModelError(
                "draft-config",
                f"the target's config has no {error.args[0]}",
                where="config.json",
                fix="give --draft-model-config FILE",
            ) from error
        theta, scaling = reduced_rope(text)
        sizes_of_latent = None if latent is None else latent_of(text, latent)
        if sizes_of_latent and scaling and scaling["rope_type"] != "yarn":
            scaling = None  # servers have no other RoPE in latent attention
        heads, kv_heads, head_dim = (
            (heads, heads, sizes_of_latent.qk_head_dim) if sizes_of_latent else heads_of(text, hidden, heads)
        )
        return cls(
            hidden_size=hidden,
            intermediate_size=mlp_width(text, hidden),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=vocab,
            draft_vocab_size=min(draft_vocab_size or DEFAULT_DRAFT_VOCAB, vocab),
            target_hidden_size=hidden,
            aux_layers=aux_layers,
            rms_norm_eps=text.get("rms_norm_eps") or 1e-5,
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=text.get("max_position_embeddings") or 2048,
            **_special_tokens(text),
            norm_output=True,  # measured: tests/speed/README.md
            latent=sizes_of_latent,
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any], *, aux_layers: tuple[int, ...] | None = None) -> DraftConfig:
        """Read a draft's own ``config.json`` (SGLang, vLLM, SpecForge or EAGLE layout).

        ``aux_layers`` stands in where the file does not name them.
        """
        try:
            return cls._read(raw, aux_layers)
        except OTHER_KINDS as error:
            what = f"the draft config is none: {type(error).__name__}: {error}"
            raise ModelError(
                "draft-config", what, where="config.json", fix="compare it with that of a draft that works"
            ) from error

    @classmethod
    def _read(cls, raw: dict[str, Any], aux_layers: tuple[int, ...] | None) -> DraftConfig:
        try:
            hidden = raw["hidden_size"]
            heads = raw["num_attention_heads"]
            vocab = raw["vocab_size"]
            intermediate = raw["intermediate_size"]
        except KeyError as error:
            raise ModelError("draft-config", f"the draft config has no {error.args[0]}", where="config.json") from error
        aux_layers = named_aux_layers(raw) or aux_layers
        if not aux_layers:
            raise ModelError(
                "aux-layers",
                "the draft config does not say which target layers feed it (eagle_aux_hidden_state_layer_ids)",
                where="config.json",
                fix="give --aux-layers LOW MID HIGH, or --target-model-path to use its default layers",
            )
        theta, scaling = read_rope(raw)
        latent = read_latent(raw)
        return cls(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=heads if latent else raw.get("num_key_value_heads") or heads,
            head_dim=latent.qk_head_dim if latent else raw.get("head_dim") or hidden // heads,
            vocab_size=vocab,
            draft_vocab_size=raw.get("draft_vocab_size") or vocab,
            target_hidden_size=raw.get("target_hidden_size") or hidden,
            aux_layers=tuple(aux_layers),
            rms_norm_eps=raw.get("rms_norm_eps", 1e-5),
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            **_special_tokens(raw),
            dtype=raw.get("torch_dtype") or raw.get("dtype") or "bfloat16",
            fc_norm=bool(raw.get("fc_norm") or raw.get("use_aux_norm")),
            norm_output=bool(raw.get("norm_output")),
            norm_before_fc=bool(raw.get("norm_before_fc") or (raw.get("eagle_config") or {}).get("norm_before_fc")),
            norm_before_residual=bool(raw.get("norm_before_residual")),
            num_hidden_layers=raw.get("num_hidden_layers") or 1,
            own_embedding=bool(raw.get("own_embedding")),
            **read_window(raw),
            latent=latent,
        )

    def to_sglang(self) -> dict[str, Any]:
        """The ``config.json`` that the EAGLE-3 loaders of SGLang and vLLM read; RoPE is written both ways.

        So are the auxiliary layers: SGLang takes ``eagle_config`` and means the layer whose output is read, vLLM takes
        the outer list first and means the layer whose input that is.
        """
        scaling = dict(self.rope_scaling or {})
        return {
            "architectures": [ARCHITECTURE if self.latent is None else sizes.ARCHITECTURE],
            "model_type": "llama" if self.latent is None else sizes.MODEL_TYPE,
            **self._fields("hidden_size", "intermediate_size", "num_hidden_layers"),
            **self._fields("num_attention_heads", "num_key_value_heads"),
            **({"head_dim": self.head_dim} if self.latent is None else self.latent.keys()),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            **self._fields("vocab_size", "draft_vocab_size", "target_hidden_size"),
            "tie_word_embeddings": False,
            **self._fields("rms_norm_eps", "max_position_embeddings"),
            "rope_parameters": {"rope_type": "default", **scaling, "rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling or None,
            **self._fields(*SPECIAL_TOKENS),
            "torch_dtype": self.dtype,
            "dtype": self.dtype,
            "eagle_config": {AUX_LAYERS: list(self.aux_layers), "use_aux_hidden_state": True},
            AUX_LAYERS: [layer + 1 for layer in self.aux_layers],
            **{flag: True for flag in FLAGS if getattr(self, flag)},
            **({} if self.sliding is None else self.sliding.keys(self.num_hidden_layers)),
        }

    def _fields(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


def named_aux_layers(raw: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Layers whose outputs feed a draft, as its config names them for SGLang or for vLLM; None where it does not.

    A folder for a class that SGLang counts in a way of its own (``models/engines.py``) says so, and vLLM's list counts.
    """
    inner = (raw.get("eagle_config") or {}).get(AUX_LAYERS)
    outer = raw.get(AUX_LAYERS)
    if inner and not (outer and raw.get(COUNTED_FOR)):
        return tuple(inner)
    return tuple(layer - 1 for layer in outer) if outer else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config.get(name) for name in SPECIAL_TOKENS}


def read_draft_config(
    source: str, target: dict[str, Any], *, draft_vocab_size: int | None, aux_layers: tuple[int, ...] | None
) -> DraftConfig:
    """The draft config that ``--draft-model-config`` names: ``auto``, a packaged one, or a JSON file.

    A file or packaged config is checked against the target; what it leaves out is derived from it.
    """
    if source == "auto":
        return DraftConfig.from_target(target, draft_vocab_size=draft_vocab_size, aux_layers=aux_layers)
    raw = read_config_file(source)
    text = text_part(target)
    try:
        config = DraftConfig.from_dict(_with_defaults(raw, target))
    except OTHER_KINDS as error:
        raise ModelError(
            "draft-config", f"not a draft config: {error}", where=source, fix="numbers and names as in auto's"
        ) from error
    theta, scaling = reduced_rope(config._fields("max_position_embeddings", "rope_theta", "rope_scaling"))
    problems = [
        f"{key} is {getattr(config, key)}, the target's is {text[target_key]}"
        for key, target_key in TARGET_SIZES.items()
        if text.get(target_key) and getattr(config, key) != text[target_key]
    ]
    if problems:
        same_kind = "mla" if is_latent(raw) and text.get("kv_lora_rank") else "auto"
        fix = f"use --draft-model-config {same_kind}; a draft here is as wide as its target"
        raise ModelError("other-target", f"made for another target: {'; '.join(problems)}", where=source, fix=fix)
    return replace(
        config,
        draft_vocab_size=draft_vocab_size or config.draft_vocab_size,
        aux_layers=aux_layers or config.aux_layers,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def _with_defaults(raw: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """A draft's JSON with what it leaves out derived from the target.

    A whole one (it names its width) says itself which options it has; one of a few keys changes those of ``auto``.
    """
    named = named_aux_layers(raw)
    inner = {"eagle_config": {AUX_LAYERS: list(named)}} if named else {}
    latent = raw if is_latent(raw) else None
    try:
        derived = DraftConfig.from_target(target, latent=latent).to_sglang()
    except ModelError:
        if named and "hidden_size" in raw:
            return raw | inner
        raise
    whole = {*FLAGS, *sizes.KEYS, "head_dim", "num_key_value_heads", "intermediate_size"}
    own = whole if "hidden_size" in raw else set()
    if "sliding_window" in raw and "hidden_size" not in raw:  # of a whole config the layers' types say it
        raw = {"layer_types": [SLIDING], **raw}
    if any(key in raw for key in ROPE_KEYS):
        own |= set(ROPE_KEYS)
    return {key: value for key, value in derived.items() if key not in own} | raw | inner
