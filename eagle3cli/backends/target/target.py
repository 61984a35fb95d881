"""What a live target is to those who read its states, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagle3cli.backends.target.logits import Head
from eagle3cli.data.images.tokens import ImageTokens
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import UsageError

Tokens = Sequence[int] | npt.NDArray[np.int32]
States = list[tuple[Tensor, Tensor]]


def tokens_of(row: TokenRow) -> Tokens:
    """What a target reads of a row."""
    return ImageTokens.of(row.token_ids.tolist(), row.images) if row.images else row.token_ids


def refuse_images(sequences: Sequence[Tokens], who: str) -> None:
    """Raise UsageError where a sequence has images, which ``who`` would take for text."""
    if any(isinstance(tokens, ImageTokens) for tokens in sequences):
        fix = "use --target-model-backend hf on one device, without target ranks; or leave rows with images out"
        raise UsageError(
            "images-unsupported",
            f"the rows have images, which {who} is not shown",
            where="--target-model-backend",
            fix=fix,
        )


class LiveTarget(Protocol):
    """The frozen target: batches of token ids in, hidden states out, on its device."""

    @property
    def path(self) -> str:
        """The folder or hub id it was loaded from."""

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The layers whose outputs are captured."""

    @property
    def embedding_VH(self) -> Tensor:
        """Weight of the input embedding, ``[V, H]``."""

    @property
    def device(self) -> torch.device:
        """Where it leaves states."""

    @property
    def head(self) -> Head:
        """From last hidden states to logits."""

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """Auxiliary states ``[S, C]`` and last hidden states ``[S, H]`` of each sequence."""


class ProcessTarget:
    """What a target in several processes says of itself: what this process's part of it says."""

    def __init__(self, inner: LiveTarget) -> None:
        self.inner = inner
        self.path = inner.path
        self.aux_layers = inner.aux_layers
        self.embedding_VH = inner.embedding_VH
        self.device = inner.device
        self.head = inner.head
