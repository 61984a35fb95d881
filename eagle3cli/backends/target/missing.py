"""Which of the weights that a model's files lack are really missing: not those that are another weight, nor buffers
that the model computes from its config.

transformers fills all of them: the rest with random numbers or zeros, which nobody would notice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eagle3cli.errors import ModelError

COMPUTED = ("inv_freq", "token_type_ids", "masked_bias")
"""Endings of buffers that no training changes, though all their numbers may be the same."""
Load = Callable[[Any], tuple[PreTrainedModel, Mapping[str, Any]]]
"""Loads a model, with another config than its own where one is given; returns what transformers says of the loading,
too."""


def load_whole(load: Load, config: Any, where: str) -> PreTrainedModel:
    """The model with all of its weights from its files; ``config`` is its own. Raises ModelError where they lack
    some."""
    model, loaded = load(None)
    missing = _without_shared(model, set(loaded["missing_keys"]))
    if not missing:
        return model
    buffers = missing & {name for name, _ in model.named_buffers()}
    if _is_head(model, missing - buffers) and _says_tied(config):
        # A wrapper and its text model say different things, and transformers listens to one of them.
        del model
        model, loaded = load(_tied(config))
        missing = _without_shared(model, set(loaded["missing_keys"]))
    if buffers:
        missing -= _compute(model, buffers)
    if missing:
        what = f"{len(missing)} weights are missing, {min(missing)} among them"
        raise ModelError("damaged-file", what, where=where, fix="copy the model again")
    return model


def _without_shared(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """Those that are not one with a weight that was read."""
    named = dict(model.named_parameters(remove_duplicate=False))
    read = {id(weight) for name, weight in named.items() if name not in missing}
    return {name for name in missing if id(named.get(name)) not in read}


def _is_head(model: PreTrainedModel, missing: set[str]) -> bool:
    head = model.get_output_embeddings()
    named = dict(model.named_parameters(remove_duplicate=False))
    return head is not None and {id(named.get(name)) for name in missing} == {id(head.weight)}


def _says_tied(config: Any) -> bool:
    """Whether the model or its text part says that the head is the embedding."""
    return any(getattr(part, "tie_word_embeddings", False) for part in (config, config.get_text_config()))


def _tied(config: Any) -> Any:
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = True
    return config


def _compute(model: PreTrainedModel, buffers: set[str]) -> set[str]:
    """Fill those of the buffers that follow from the config; returns their names. One whose numbers are all the same,
    or drawn, is where something trained belongs (the biases of DeepSeek's router)."""
    values, others = (_fresh(model, buffers, seed) for seed in range(2))
    own = dict(model.named_buffers())
    filled = set()
    for name, value in values.items():
        is_drawn = not torch.equal(value, others[name])
        is_constant = not name.endswith(COMPUTED) and bool((value == value.flatten()[0]).all())
        if is_drawn or is_constant or own[name].is_meta:  # off-loaded ones are not here to be filled
            continue
        own[name].copy_(value)
        filled.add(name)
    return filled


def _fresh(model: PreTrainedModel, buffers: set[str], seed: int) -> dict[str, Tensor]:
    """The buffers of a new model of this config, whose parameters take no memory."""
    with torch.random.fork_rng(devices=[]), _without_parameters():
        torch.manual_seed(seed)
        made = dict(type(model)(model.config).named_buffers())
    return {name: made[name].clone() for name in buffers}


@contextmanager
def _without_parameters() -> Iterator[None]:
    """Within the block the parameters of new modules have shapes alone; buffers have their numbers."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else nn.Parameter(param.to("meta"), requires_grad=False))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
