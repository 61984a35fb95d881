"""Drafts in the format of speculators: what ``vllm serve DRAFT`` reads, which names the target and the steps itself.

Their ``config.json`` holds the decoder layer's config inside, counts layers from 0, and names a target layer by the one
whose input it is. Reading theirs stands in ``models/converters.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from eagle3cli.models.config import AUX_LAYERS, FLAGS, DraftConfig

T = TypeVar("T")
USUAL_AUX_LAYERS = 3
"""What vLLM takes for the number of auxiliary layers where the decoder layer's config says nothing."""


@dataclass(frozen=True)
class Verifier:
    """The target as a speculators config names it, and the draft steps that a server makes unless told otherwise."""

    name_or_path: str
    architectures: tuple[str, ...]
    steps: int


def to_speculators(config: DraftConfig, verifier: Verifier) -> dict[str, Any]:
    """The ``config.json`` of a draft in the format of speculators.

    Every flag is written, false ones, too: theirs do not all default to false.
    """
    raw = config.to_sglang()
    outside = {"architectures", "draft_vocab_size", "target_hidden_size", "eagle_config", AUX_LAYERS, *FLAGS}
    layer = {key: value for key, value in raw.items() if key not in outside}
    if len(config.aux_layers) != USUAL_AUX_LAYERS:
        layer["num_aux_hidden_states"] = len(config.aux_layers)
    method = {"proposal_type": "greedy", "speculative_tokens": verifier.steps}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{**method, "accept_tolerance": 0.0, "verifier_accept_k": 1}],
            "verifier": {"name_or_path": verifier.name_or_path, "architectures": list(verifier.architectures)},
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size,
        AUX_LAYERS: raw[AUX_LAYERS],
        **{flag: getattr(config, flag) for flag in FLAGS if flag != "own_embedding"},
        "embed_requires_grad": config.own_embedding,
        "tie_word_embeddings": False,
        "dtype": config.dtype,
    }


def renamed(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors (or shapes) of :func:`eagle3cli.models.contract.expected_shapes` under the names of speculators.

    Later layers are those of plain Llama there: the norm before their attention is ``input_layernorm``.
    """
    names = {}
    for name, value in tensors.items():
        if name.startswith("midlayer."):
            name = f"layers.0.{name.removeprefix('midlayer.')}"
        elif name.startswith("layers."):
            name = name.replace(".hidden_norm.", ".input_layernorm.")
        names[name] = value
    return names


def speculators_problems(raw: Mapping[str, Any]) -> list[str]:
    """What vLLM would miss in a speculators config."""
    problems = []
    if raw.get("speculators_model_type") != "eagle3":
        problems.append(f"config: speculators_model_type is {raw.get('speculators_model_type')!r}, must be 'eagle3'")
    if not isinstance(raw.get("transformer_layer_config"), dict):
        problems.append("config: transformer_layer_config is missing")
    if verifier_of(raw) is None:
        problems.append("config: speculators_config.verifier.name_or_path is missing; vLLM loads the target from there")
    if not isinstance(steps_of(raw), int):
        problems.append("config: speculators_config.proposal_methods name no speculative_tokens")
    if not isinstance(raw.get(AUX_LAYERS), list):
        problems.append(f"config: {AUX_LAYERS} is missing; a server would guess the auxiliary layers")
    return problems


def verifier_of(raw: Mapping[str, Any]) -> str | None:
    """The target that a speculators config names: a folder or a hub id; None where it names none."""
    match raw.get("speculators_config"):
        case {"verifier": {"name_or_path": str(name)}} if name:
            return name
    return None


def steps_of(raw: Mapping[str, Any]) -> int | None:
    """The draft steps that a speculators config asks for; None where it says nothing."""
    match raw.get("speculators_config"):
        case {"proposal_methods": [{"speculative_tokens": int(steps)}, *_]}:
            return steps
    return None
