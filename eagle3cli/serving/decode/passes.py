"""What decoding runs of a target and of a draft, made ready once: passes over given positions, and their heads.

A target on a CPU whose layers are Llama's runs as :mod:`eagle3cli.serving.decode.layers`, after it was seen to give the
model's own logits; every other one runs as its transformers module.

The shape legend is in ``models/draft.py``; Q query tokens of every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from eagle3cli.backends.target.hf import HfTarget
from eagle3cli.backends.target.positions import PositionCache, cached, grouped
from eagle3cli.backends.target.prompt import last_states
from eagle3cli.backends.target.target import Tokens
from eagle3cli.errors import UsageError
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.devices import memory_of
from eagle3cli.serving.decode.batches import PROBE_TOKENS, same_as_alone, serves_positions
from eagle3cli.serving.decode.layers import Layer, Norm, draft_layer, layer_of, norm_of, place_at
from eagle3cli.serving.decode.products import product

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models of these layers: two norms, projections with or without a bias, norms of queries and keys in Qwen3's."""


class TargetPass(Protocol):
    """A target that reads tokens at given positions."""

    def __call__(self, ids_BQ: Tensor, positions_BQ: Tensor, cache: PositionCache) -> tuple[Tensor, Tensor]:
        """From tokens and positions ``[B, Q]`` to auxiliary and last hidden states, ``[B, Q, C]``, ``[B, Q, H]``."""

    def read_each(self, prompts: Sequence[Tokens], cache: PositionCache) -> tuple[Tensor, Tensor]:
        """The same of whole prompts, with the images that they have, padded on the right with zeros."""


@dataclass
class Passes:
    """A target and a draft, ready to decode."""

    target: HfTarget
    draft: Draft | None
    quick: QuickTarget | None = field(init=False)
    """The target by layers of our own, where it has such."""
    head: Callable[[Tensor], Tensor] = field(init=False)
    """Logits of the target's last hidden states."""
    draft_passes: DraftPasses | None = field(init=False)

    def __post_init__(self) -> None:
        self.quick = quick_target(self.target)
        self.head = self.target.head if self.quick is None else self.quick.head
        self.draft_passes = None if self.draft is None else DraftPasses(self.draft, self.target.embedding_VH)

    @cached_property
    def most_rows(self) -> int | None:
        """How many rows a pass may have: None is any number, 0 that this target cannot be decoded by position."""
        if self.quick is not None or serves_positions(self.target.model):
            return None
        return 1 if serves_positions(self.target.model, rows=1) else 0

    @contextmanager
    def running(self) -> Iterator[TargetPass]:
        """The target's pass, to be used within the block."""
        if self.quick is not None:
            yield self.quick
            return
        with grouped(self.target.model), self.target.recording() as taps:
            yield ModulePass(self.target, taps)


@dataclass(frozen=True)
class ModulePass:
    """A target as transformers has it, of any family; ``taps`` get the outputs of its auxiliary layers."""

    target: HfTarget
    taps: dict[int, Tensor]

    def __call__(self, ids_BQ: Tensor, positions_BQ: Tensor, cache: PositionCache) -> tuple[Tensor, Tensor]:
        """Auxiliary and last hidden states, ``[B, Q, C]`` and ``[B, Q, H]``."""
        decoder = self.target.decoder
        rows_B = torch.arange(len(ids_BQ), device=ids_BQ.device)
        cache.point(rows_B, positions_BQ, int(positions_BQ.max()) + 1)
        turns_BQ = cache.turned_by(rows_B, positions_BQ)
        out = decoder(input_ids=ids_BQ, position_ids=turns_BQ, use_cache=True, **cached(decoder, cache))
        return self._aux(), out.last_hidden_state

    def read_each(self, prompts: Sequence[Tokens], cache: PositionCache) -> tuple[Tensor, Tensor]:
        """One prompt after the other through the whole model."""
        model = self.target.model
        device = self.target.device
        aux: list[Tensor] = []
        last: list[Tensor] = []
        for row, prompt in enumerate(prompts):
            inputs = self.target.reader.read(prompt)
            positions_1Q = torch.arange(len(prompt), device=device)[None]
            cache.point(torch.tensor([row], device=device), positions_1Q, len(prompt))
            arguments = {"position_ids": positions_1Q, **inputs.arguments}
            with last_states(self.target.decoder) as states:
                model(use_cache=True, logits_to_keep=1, **arguments, **cached(model, cache))
            cache.set_shift(row, inputs.shift)
            aux.append(self._aux()[0])
            last.append(states[0][0])
        return pad_sequence(aux, batch_first=True), pad_sequence(last, batch_first=True)

    def _aux(self) -> Tensor:
        return torch.cat([self.taps[layer] for layer in self.target.aux_layers], -1)


@dataclass(frozen=True)
class QuickTarget:
    """A target of Llama's layers on a CPU."""

    embedding_VH: Tensor
    rotary: nn.Module
    layers: tuple[Layer, ...]
    norm: Norm
    head: Callable[[Tensor], Tensor]
    aux_layers: tuple[int, ...]

    def __call__(self, ids_BQ: Tensor, positions_BQ: Tensor, cache: PositionCache) -> tuple[Tensor, Tensor]:
        """Auxiliary and last hidden states, ``[B, Q, C]`` and ``[B, Q, H]``."""
        shape = ids_BQ.shape
        hidden_RH = F.embedding(ids_BQ.flatten(), self.embedding_VH)
        cos_1RD, sin_1RD = self.rotary(hidden_RH, positions_BQ.reshape(1, -1))
        groups = self.layers[0].heads // self.layers[0].kv_heads
        place = place_at(cache, positions_BQ, (cos_1RD[0], sin_1RD[0]), groups)
        states = {}
        for index, layer in enumerate(self.layers):
            hidden_RH = layer(hidden_RH, place, index)
            if index in self.aux_layers:
                states[index] = hidden_RH
        aux_RC = torch.cat([states[index] for index in self.aux_layers], -1)
        return aux_RC.unflatten(0, shape), self.norm(hidden_RH).unflatten(0, shape)

    def read_each(self, prompts: Sequence[Tokens], cache: PositionCache) -> tuple[Tensor, Tensor]:
        """Refused: these are families of text alone."""
        raise UsageError("images-unsupported", "the rows have images, and the target takes text alone")


@torch.inference_mode()
def quick_target(target: HfTarget) -> QuickTarget | None:
    """The target by layers of our own; None where it is none of the families, is not whole in this machine's memory,
    leaves no room for a second copy of its weights, or does not give the model's logits."""
    model = target.model
    config = model.config.get_text_config()
    weights = list(model.parameters())
    plain = all(type(weight) is nn.Parameter and weight.device.type == "cpu" for weight in weights)
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    windows = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if type(model).__name__ not in FAMILIES or not plain or kinds != {"full_attention"} or windows:
        return None
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    if config.hidden_act != "silu" or target.head.softcap is not None or size > (memory_of("cpu") or 0) / 2:
        return None
    decoder: Any = target.decoder
    layers = []
    for module in decoder.layers:
        attention = module.self_attn
        made = layer_of(module, attention.head_dim, module.input_layernorm, scaling=attention.scaling, ordered=True)
        layers.append(made)
    head = product([target.head.weight_VH], [target.head.bias_V])
    quick = QuickTarget(
        target.embedding_VH, decoder.rotary_emb, tuple(layers), norm_of(decoder.norm), head, target.aux_layers
    )
    return quick if _gives_its_logits(quick, target) else None


def _gives_its_logits(quick: QuickTarget, target: HfTarget) -> bool:
    """Two rows that end at different places, read but for their last tokens and then these alone."""
    ids_BS = torch.arange(1, 2 * (PROBE_TOKENS + 1) + 1).reshape(2, -1) % target.vocab_size
    ends_B = torch.tensor([PROBE_TOKENS // 2, PROBE_TOKENS])
    rows_B = torch.arange(2)
    cache = PositionCache(2, PROBE_TOKENS + 1)
    quick(ids_BS[:, :PROBE_TOKENS], torch.arange(PROBE_TOKENS).expand(2, -1), cache)
    _, last_B1H = quick(ids_BS[rows_B, ends_B][:, None], ends_B[:, None], cache)
    texts = [ids_BS[row, : end + 1] for row, end in enumerate(ends_B.tolist())]
    return same_as_alone(target.model, quick.head(last_B1H[:, 0]), texts)


class DraftPasses:
    """A draft's layers and its head, on any device."""

    def __init__(self, draft: Draft, target_VH: Tensor) -> None:
        self.draft = draft
        self.embedding_VH = draft.embedding(target_VH).detach()
        weight = draft.lm_head.weight.detach()
        on_cpu = weight.device.type == "cpu"
        scale_C = draft.aux_scale_C.to(weight.dtype)
        self._fc = product([draft.fc.weight.detach() / scale_C], ordered=on_cpu)
        self.head = product([weight], ordered=on_cpu)
        """Logits over the draft's vocabulary of what :meth:`Draft.head_and_carry` gives for it."""
        self.draft_ids_W = draft.draft_ids
        """Target token of every draft token."""
        self._embedded_norm = norm_of(draft.midlayer.input_layernorm)
        self._layers = [draft_layer(layer, ordered=on_cpu) for layer in draft.stack]

    def first_hidden(self, aux_BQC: Tensor) -> Tensor:
        """``h^0 = fc(a)``, ``[B, Q, H]``."""
        hidden_RH = self._fc(self.draft.fc_input(aux_BQC.flatten(0, 1)))
        out: Tensor = hidden_RH.unflatten(0, aux_BQC.shape[:2])
        return out

    def __call__(self, hidden_BQH: Tensor, next_BQ: Tensor, positions_BQ: Tensor, cache: PositionCache) -> Tensor:
        """The layers once: row p reads ``next`` = token p+1; returns hidden states ``[B, Q, H]``."""
        hidden_RH = hidden_BQH.flatten(0, 1)
        embedded_RH = self._embedded_norm(F.embedding(next_BQ.flatten(), self.embedding_VH))
        rope = self.draft.rope(positions_BQ.flatten(), hidden_RH.dtype)
        groups = self._layers[0].heads // self._layers[0].kv_heads
        place = place_at(cache, positions_BQ, rope, groups, self.draft.config.sliding)
        for index, layer in enumerate(self._layers):
            hidden_RH = layer(hidden_RH, place, index, embedded_RH if index == 0 else None)
        out: Tensor = hidden_RH.unflatten(0, next_BQ.shape)
        return out
