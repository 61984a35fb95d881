"""What a whole model, with its tower of images, reads of one row: the only place that knows families of images apart.

A row of text is its tokens. One with images has what the model's own processor makes of them besides, the positions
that its rotary embedding turns by (M-RoPE), and features in place of tokens where the tower is not the model's.

The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from eagle3cli.backends.target.llama4_tower import Llama4Tower
from eagle3cli.backends.target.target import Tokens
from eagle3cli.data.images.processor import TOKEN_TYPES, ImageProcessor
from eagle3cli.data.images.tokens import ImageTokens
from eagle3cli.errors import UsageError
from eagle3cli.runtime.devices import to_device

OF_TOKENS = ("input_ids", "inputs_embeds", *TOKEN_TYPES)
"""Arguments with a value for each token, ``[1, S, ...]``."""


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of a whole model for one row, as a batch of one."""

    arguments: dict[str, Tensor]
    shift: int = 0
    """What is added to a token's number behind the row for the position that the model turns it by: below zero where
    an image has more tokens than positions."""


@dataclass(frozen=True)
class PromptReader:
    """Makes the arguments of ``model``; without a ``processor`` it is one of text alone."""

    model: PreTrainedModel
    device: torch.device
    dtype: torch.dtype
    processor: ImageProcessor | None = None
    tower: Llama4Tower | None = None
    """What makes features of images, where ``model`` is the text model alone."""
    path: str = ""

    def read(self, tokens: Tokens) -> ModelInputs:
        """Raises DataError for an image that is not what it was, UsageError for one that the target cannot be shown."""
        ids_1S = torch.tensor([list(tokens)], device=self.device)
        if not isinstance(tokens, ImageTokens):
            return ModelInputs({"input_ids": ids_1S})
        if self.processor is None:
            raise UsageError(
                "images-unsupported", "the rows have images, and the target takes text alone", where=self.path
            )
        inputs = self.processor.model_inputs(tokens, tokens.images)
        moved = {name: to_device(_in_type(value, self.dtype), self.device) for name, value in inputs.items()}
        if self.tower is not None:
            embedding = self.model.get_input_embeddings()
            return ModelInputs({"inputs_embeds": self.tower.embed(embedding, ids_1S, moved, self.dtype)})
        moved["input_ids"] = ids_1S
        return self._turned(moved)

    def _turned(self, moved: dict[str, Tensor]) -> ModelInputs:
        """The same with positions, where the model counts those of images in its own way."""
        inner: Any = next((part for part in self.model.modules() if hasattr(part, "get_rope_index")), None)
        if inner is None:
            return ModelInputs(moved)
        named = {name: moved.get(name) for name in ("input_ids", "mm_token_type_ids", "image_grid_thw")}
        positions_31S, shift_11 = inner.get_rope_index(**named)
        return ModelInputs({**moved, "position_ids": positions_31S}, int(shift_11))


def side_by_side(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Arguments of rows with images as those of one batch: what there is of each token padded on the right, where
    causal attention never looks, what there is of images one after the other."""
    batch: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "position_ids":
            batch[name] = pad_sequence([value[:, 0].T for value in values], batch_first=True).permute(2, 0, 1)
        elif name in OF_TOKENS:
            batch[name] = pad_sequence([value[0] for value in values], batch_first=True)
        else:
            batch[name] = torch.cat(values)
    return batch


@contextmanager
def last_states(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block every pass leaves the last hidden states ``[B, S, H]`` of the text model in the list."""
    states: list[Tensor] = []
    handle = decoder.register_forward_hook(lambda _module, _inputs, output: states.append(output[0]))
    try:
        yield states
    finally:
        handle.remove()


def _in_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels in the type of the weights; numbers of tokens as they are."""
    return values.to(dtype) if values.is_floating_point() else values
