"""From the target's last hidden state to its logits: a matrix and what some families do around it.

Shapes: R rows, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.models.config import text_part

MULTIPLIES = ("hyperclovax",)
"""Families whose ``logits_scaling`` is a factor; elsewhere it is a divisor."""


@dataclass(frozen=True)
class Head:
    """The language-model head of a target. A constant factor on the logits is part of ``weight_VH``."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    """Logits are ``cap * tanh(logits / cap)``."""

    def __call__(self, last_RH: Tensor) -> Tensor:
        """Logits ``[R, V]``."""
        logits = F.linear(last_RH, self.weight_VH, self.bias_V)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def __len__(self) -> int:
        return len(self.weight_VH)

    def rows(self, ids: Tensor) -> Head:
        """The head of these tokens alone."""
        return replace(self, weight_VH=self.weight_VH[ids], bias_V=None if self.bias_V is None else self.bias_V[ids])

    def to(self, dtype: torch.dtype) -> Head:
        """The same with weights of another type."""
        bias = None if self.bias_V is None else self.bias_V.to(dtype)
        return replace(self, weight_VH=self.weight_VH.to(dtype), bias_V=bias)


def make_head(config: Mapping[str, Any], weight_VH: Tensor, bias_V: Tensor | None = None) -> Head:
    """The head of the target that ``config`` (its ``config.json``) describes, from the weights in its files."""
    factor, softcap = logit_factor(config), text_part(config).get("final_logit_softcapping")
    if factor != 1.0:
        weight_VH, bias_V = weight_VH * factor, None if bias_V is None else bias_V * factor
    return Head(weight_VH, bias_V, softcap or None)


def logit_factor(config: Mapping[str, Any]) -> float:
    """What a family multiplies its logits by: Cohere's ``logit_scale``, one over Granite's ``logits_scaling``."""
    text = text_part(config)
    factor = float(text.get("logit_scale") or 1.0) * float(text.get("lm_head_multiplier") or 1.0)
    scaling = float(text.get("logits_scaling") or 1.0)
    return factor * scaling if text.get("model_type") in MULTIPLIES else factor / scaling
