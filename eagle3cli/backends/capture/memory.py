"""What a target takes of memory: its weights, and a pass of it over some sequences, from its config alone."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from eagle3cli.backends.capture.passes import PassTooLarge
from eagle3cli.backends.target.auto import choose_backend
from eagle3cli.backends.target.hf import read_auto_config
from eagle3cli.backends.target.hf_load import keeps_quantized, meta_model
from eagle3cli.backends.target.logits import ARGMAX_CHUNK
from eagle3cli.backends.target.weights.quantization import Quantization, quantization_of
from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.layers.sizes import kv_heads_of
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.models import TargetSettings

KEPT = 1.25
"""What quantised weights take with their scales and the parts that are not, over their bits alone."""
Parts = dict[str, int]
"""Bytes by name."""


@dataclass(frozen=True)
class TargetShape:
    """A target as far as its memory goes."""

    weights: int
    """Number of all its weights."""
    layers: int
    hidden: int
    intermediate: int
    """Channels of an MLP that are computed for a token (of the experts that it goes to)."""
    key_value: int
    """Width of keys, and of values."""
    vocab: int
    tied: bool
    """The head is the embedding."""
    kept_bits: int | None = None
    """Bits of a quantised weight where it stays so while it runs; None where it does not, or is not quantised."""

    def weight_bytes(self, each: int) -> int:
        """Bytes of all weights; ``each`` takes one that is not quantised."""
        # A quantised target has scales besides, and parts that are not.
        return self.weights * each if self.kept_bits is None else int(self.weights * KEPT * self.kept_bits / 8)


def target_shape(target: TargetSettings) -> TargetShape:
    """The target's shape from its config; weights are counted on a model without any."""
    raw = read_auto_config(target).to_dict()
    quantization = quantization_of(raw)
    text = text_part(raw)
    heads = int(text["num_attention_heads"])
    size = int(text.get("head_dim") or text["hidden_size"] // heads)
    return TargetShape(
        weights=_count(json.dumps([target.model_path, target.revision, target.trust_remote_code])),
        layers=int(text["num_hidden_layers"]),
        hidden=int(text["hidden_size"]),
        intermediate=_mlp(text),
        key_value=kv_heads_of(text, heads) * size,
        vocab=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings")),
        kept_bits=None if quantization is None else _kept_bits(target, quantization, raw),
    )


def _kept_bits(target: TargetSettings, quantization: Quantization, raw: dict[str, Any]) -> int | None:
    """Bits of a weight that stays quantised: on a GPU, in SGLang, or by kernels of transformers."""
    if target.device == "cpu" or (target.device == "auto" and not torch.cuda.is_available()):
        return None
    with suppress(UsageError):  # a GPU that is planned for, and is not here
        if choose_backend(target, raw)[0] == "sglang":
            return quantization.bits
    return quantization.bits if keeps_quantized(quantization) else None


def _mlp(text: dict[str, Any]) -> int:
    """Channels that an MLP computes for a token; of experts those that it goes to."""
    chosen = text.get("num_experts_per_tok")
    width = text.get("moe_intermediate_size")
    if chosen and width:
        return int(chosen) * int(width)
    return int(chosen or 1) * int(text.get("intermediate_size") or 4 * text["hidden_size"])


@lru_cache(maxsize=4)
def _count(named: str) -> int:
    path, revision, remote = json.loads(named)
    target = TargetSettings(model_path=path, revision=revision, trust_remote_code=remote)
    model = meta_model(read_auto_config(target))
    return sum(weight.numel() for weight in model.parameters())


def pass_parts(
    shape: TargetShape,
    padded: int,
    tokens: int,
    *,
    aux: int,
    each: int,
    tp_size: int = 1,
    shared_prefix: bool = False,
) -> Parts:
    """A pass over ``padded`` positions of which ``tokens`` are real; ``aux`` channels are tapped, ``each`` takes bytes.

    ``each x padded (5H + 3I)`` of a layer, the tapped states and again their sequences side by side, 512 rows of logits
    over the whole vocabulary; with a beginning that sequences share also keys and values of all layers.
    """
    layer = padded * (5 * shape.hidden + 3 * shape.intermediate // tp_size) * each
    states = padded * (2 * aux + shape.hidden) * each + tokens * (aux + shape.hidden) * each
    logits = min(ARGMAX_CHUNK, tokens) * shape.vocab * each
    keys_and_values = 2 * padded * shape.key_value // tp_size * shape.layers * each if shared_prefix else 0
    return {
        "target's forward pass": max(layer + padded * aux * each, states, logits),
        "target's keys and values": keys_and_values,
    }


def explain_pass(error: PassTooLarge, target: TargetSettings, layers: int, each: int) -> Eagle3Error:
    """The error of a pass with its forecast and the first setting to change; ``layers`` are tapped."""
    shape = target_shape(target)

    def size(tokens: int) -> int:
        parts = pass_parts(shape, tokens, tokens, aux=layers * shape.hidden, each=each, tp_size=target.tp_size)
        return sum(parts.values())

    padded = error.rows * error.longest
    weights = shape.weight_bytes(each) // target.tp_size
    forecast = f"forecast: {size_text(weights)} of target weights, {size_text(size(padded))} for the pass"
    half = max(1, padded // 2)
    change = f"--batch-tokens {half}" if error.rows > 1 else f"--max-length {half}"
    fix = f"use {change} ({size_text(size(half))} for a pass), then run the same command again: it goes on"
    return Eagle3Error("out-of-memory", f"{error.message}\n{forecast}", where=error.where, fix=fix)
