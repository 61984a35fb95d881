"""Llama 4's tower of images, beside its text model: transformers' auto class for causal LMs leaves it out.

With it goes what the whole model does between tower and text: the projection, and the features in the places of their
tokens. It is read from the target's files when the first row with images comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eagle3cli.backends.target.weights.checkpoint import Checkpoint
from eagle3cli.errors import ModelError

PARTS = ("vision_model", "multi_modal_projector")
"""Names of the tower and its projection among the target's tensors."""


class Llama4Tower:
    """The tower of the target at ``model_path``; ``config`` is its whole config."""

    def __init__(self, model_path: str, config: Any, revision: str | None) -> None:
        self.model_path = model_path
        self.config = config
        self.revision = revision

    def embed(
        self, embedding: Callable[[Tensor], Tensor], ids_1S: Tensor, inputs: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Tensor:
        """What the text model reads of a row, ``[1, S, H]``: embeddings, and the features of images at their tokens."""
        tower, projector = (_moved(part, ids_1S.device, dtype) for part in self._parts)
        embeds_1SH = embedding(ids_1S)
        features = tower(inputs["pixel_values"]).last_hidden_state
        features_FH = projector(features.reshape(-1, features.shape[-1])).to(embeds_1SH.dtype)
        is_image_1S1 = (ids_1S == self.config.image_token_index)[..., None]
        if int(is_image_1S1.sum()) != len(features_FH):
            what = f"{int(is_image_1S1.sum())} tokens of images for {len(features_FH)} features of its tower"
            raise ModelError(
                "unloadable-target", what, where=self.model_path, fix="take the model's own processor files"
            )
        return embeds_1SH.masked_scatter(is_image_1S1, features_FH)

    @cached_property
    def _parts(self) -> tuple[nn.Module, nn.Module]:
        from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionModel

        tensors = Checkpoint(self.model_path, self.config.to_dict(), revision=self.revision)
        tower, projector = Llama4VisionModel(self.config.vision_config), Llama4MultiModalProjector(self.config)
        for name, part in zip(PARTS, (tower, projector), strict=True):
            own = {key.partition(f"{name}.")[2]: tensors[key] for key in tensors if f"{name}." in key}
            missing = part.load_state_dict(own, strict=False).missing_keys
            if missing:
                raise ModelError("missing-tensor", f"no {name}.{missing[0]} among its tensors", where=self.model_path)
        return tower.eval().requires_grad_(False), projector.eval().requires_grad_(False)


def _moved(part: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The same with its weights in a type; the turns of its positions are complex numbers, and stay so."""
    for parameter in part.parameters():
        parameter.data = parameter.data.to(dtype)
    return part.to(device)
