"""The shapes of target and draft: from the target's config, else from the packaged draft config of its name."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eagle3cli.backends.capture.memory import TargetShape, target_shape
from eagle3cli.backends.target.gguf.folder import find_gguf
from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.cli.local_target import planned_target
from eagle3cli.errors import Eagle3Error, ModelError
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.packaged import packaged_configs
from eagle3cli.models.serve import with_window
from eagle3cli.pipeline.forecast.ranges import Range
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.plan import planned_draft
from eagle3cli.training.forecast.speed import active_weights

MIXTURES = {
    "deepseek-r1": (671e9, 37e9),
    "deepseek-v2-lite": (15.7e9, 2.4e9),
    "deepseek-v3": (671e9, 37e9),
    "deepseek-v3.2": (671e9, 37e9),
    "gemma-4-26b-a4b": (26e9, 4e9),
    "glm-4.5-air": (106e9, 12e9),
    "glm-4.7-flash": (30e9, 3e9),
    "glm-5": (744e9, 40e9),
    "gpt-oss-120b": (117e9, 5.1e9),
    "gpt-oss-20b": (20.9e9, 3.6e9),
    "kimi-k2": (1e12, 32e9),
    "kimi-k2.5": (1e12, 32e9),
    "ling-lite-1.5": (16.8e9, 2.75e9),
    "llama-4-maverick": (400e9, 17e9),
    "llama-4-scout": (109e9, 17e9),
    "mimo-v2-flash": (309e9, 15e9),
    "minimax-m2.5": (230e9, 10e9),
    "minimax-m3": (423e9, 24e9),
    "mixtral-8x22b": (141e9, 39e9),
    "mixtral-8x7b": (46.7e9, 12.9e9),
    "nemotron-3-nano-30b-a3b": (31.6e9, 3.6e9),
    "qwen2-57b-a14b": (57.4e9, 14.2e9),
    "qwen3-235b-a22b": (235e9, 22e9),
    "qwen3-30b-a3b": (30.5e9, 3.3e9),
    "qwen3-coder-30b-a3b": (30.5e9, 3.3e9),
    "qwen3-coder-480b-a35b": (480e9, 35e9),
    "qwen3-next-80b-a3b": (80e9, 3e9),
    "qwen3-vl-30b-a3b": (31e9, 3.3e9),
    "qwen3.5-122b-a10b": (122e9, 10e9),
    "qwen3.5-35b-a3b": (35e9, 3e9),
}
"""Weights of the mixtures of experts among the packaged configs, all and those that a token passes, as their makers
state them (MiniMax-M3's by its config): a draft config does not tell them."""
LAST_TAP = 4
"""The highest tapped layer is this many before the end of the target."""


@dataclass(frozen=True)
class Shapes:
    """Target and draft as far as their sizes go."""

    draft: DraftConfig
    target: TargetShape
    config: dict[str, Any]
    """The target's config.json; empty where it could not be read."""
    is_read: bool
    source: str
    """Where the sizes are from, for people."""
    checkpoint: Range
    """Bytes of the target's own files, where they have to be fetched or converted; 0 where they are here."""
    is_converted: bool = False
    """They come from a .gguf file."""

    @property
    def active(self) -> float:
        """Weights that a token of the target passes."""
        return active_weights(self.target)


def find_shapes(settings: Settings) -> Shapes | str:
    """The shapes, or why there are none. Raises UsageError as the run would for settings that cannot be."""
    try:
        with planned_target(settings) as local:
            config = read_target_config(local.target)
            target = target_shape(local.target)
            draft = planned_draft(local.updated("draft", path=None))
    except ModelError as error:
        return _packaged(settings, error)
    path = settings.target.model_path
    is_converted = find_gguf(path) is not None
    checkpoint = Range(0, 0 if Path(path).is_dir() else 2.05 * target.weights)  # of the hub's, some may be here
    if is_converted:
        checkpoint = Range(4 * target.weights, 4.2 * target.weights)  # to fp32
    return Shapes(draft, target, config, True, "the target's own config", checkpoint, is_converted)


def _packaged(settings: Settings, error: Eagle3Error) -> Shapes | str:
    configs = packaged_configs()
    named = Path(settings.target.model_path).name.lower()
    name = settings.draft.config
    if name not in configs:
        name = max((each for each in configs if named.startswith(each)), key=len, default="")
    if not name or Path(settings.target.model_path).exists() or settings.target.model_path.endswith(".gguf"):
        return f"the target's config cannot be read ({error.message}), and no packaged draft config has its name"
    raw = json.loads(configs[name].read_text(encoding="utf-8"))
    if "hidden_size" not in raw:
        return (
            f"the target's config cannot be read ({error.message}), and the draft config {name} takes its sizes from it"
        )
    draft = DraftConfig.from_dict(raw)
    draft = replace(
        draft,
        draft_vocab_size=settings.draft.vocab_size or draft.draft_vocab_size,
        aux_layers=settings.draft.aux_layers or draft.aux_layers,
    )
    draft = with_window(draft, settings.draft)
    family = name.removesuffix("-mla")
    target = _target_of(draft, family)
    least = 0.5 if family in MIXTURES else 2.0  # some mixtures come in four or eight bits
    source = f"the packaged draft config {name}: the target's own cannot be read here without a network"
    if family in MIXTURES:
        source += "; its number of weights as its makers state it"
    return Shapes(draft, target, {}, False, source, Range(least * target.weights, 2.05 * target.weights))


def _target_of(draft: DraftConfig, name: str) -> TargetShape:
    """A target as wide as its draft; that its head is not its embedding makes a small one too large by the head."""
    hidden = draft.target_hidden_size
    layers = max(draft.aux_layers) + LAST_TAP
    attention = draft.query_weights(hidden) + draft.key_weights(hidden) + draft.output_weights
    ends = draft.vocab_size * hidden
    dense = 2 * ends + layers * (attention + 3 * hidden * draft.intermediate_size)
    total, active = MIXTURES.get(name, (dense, dense - ends))
    computed = max(1, round((active - ends - layers * attention) / (3 * hidden * layers)))
    return TargetShape(
        weights=round(total),
        layers=layers,
        hidden=hidden,
        intermediate=computed if name in MIXTURES else draft.intermediate_size,
        key_value=draft.key_width,
        vocab=draft.vocab_size,
        tied=False,
    )
