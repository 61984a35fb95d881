"""From the target's last hidden state to its logits: a matrix and what some families do around it.

The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.models.aux_layers import text_part

MULTIPLIES = ("hyperclovax",)
"""Families whose ``logits_scaling`` is a factor; elsewhere it is a divisor."""
ARGMAX_CHUNK = 512
"""Rows of full-vocabulary logits that exist at once."""


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

    @torch.no_grad()
    def top_tokens(self, last_RH: Tensor) -> Tensor:
        """The most likely tokens, ``[R]``, in chunks of rows."""
        top = [self(part).argmax(-1) for part in last_RH.split(ARGMAX_CHUNK)]
        return torch.cat(top) if top else torch.zeros(0, dtype=torch.long, device=last_RH.device)

    @torch.no_grad()
    def judge(self, last_RH: Tensor, answer_R: Tensor) -> tuple[Tensor, Tensor]:
        """From the same logits the most likely tokens ``[R]``, as :meth:`top_tokens`, and, ``[2, R]`` in fp32, the
        log-probability of ``answer`` and the probability of the most likely one."""
        top: list[Tensor] = []
        judged: list[Tensor] = []
        for part_RH, part_R in zip(last_RH.split(ARGMAX_CHUNK), answer_R.split(ARGMAX_CHUNK), strict=True):
            logits_RV = self(part_RH)
            most_R, best_R = logits_RV.max(-1)
            # exp in place: the logits of 512 rows do not stay in a processor's cache, and a copy is a pass over memory.
            chosen_R = logits_RV.gather(1, part_R[:, None])[:, 0].float()
            sum_R = logits_RV.sub_(most_R[:, None]).exp_().sum(-1, dtype=torch.float32)
            top.append(best_R)
            judged.append(torch.stack((chosen_R - most_R.float() - sum_R.log(), 1 / sum_R)))
        if not top:
            return answer_R, answer_R.float().expand(2, 0)
        return torch.cat(top), torch.cat(judged, 1)

    def rows(self, ids: Tensor) -> Head:
        """The head of these tokens alone."""
        return replace(self, weight_VH=self.weight_VH[ids], bias_V=None if self.bias_V is None else self.bias_V[ids])

    def to(self, *place: Any) -> Head:
        """The same with weights of another type or on another device, as ``Tensor.to`` takes them."""
        bias = None if self.bias_V is None else self.bias_V.to(*place)
        return replace(self, weight_VH=self.weight_VH.to(*place), bias_V=bias)


def make_head(config: Mapping[str, Any], weight_VH: Tensor, bias_V: Tensor | None = None) -> Head:
    """The head of the target that ``config`` (its ``config.json``) describes, from the weights in its files."""
    factor = logit_factor(config)
    if factor != 1.0:
        weight_VH = weight_VH * factor
        bias_V = None if bias_V is None else bias_V * factor
    text = text_part(config)
    softcap = text.get("final_logit_softcapping") or text.get("logits_soft_cap")  # the latter is RecurrentGemma's
    return Head(weight_VH, bias_V, softcap or None)


def logit_factor(config: Mapping[str, Any]) -> float:
    """What a family multiplies its logits by: Cohere's ``logit_scale``, one over Granite's ``logits_scaling`` ..."""
    text = text_part(config)
    factor = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        factor *= float(text.get(name) or 1.0)
    scaling = float(text.get("logits_scaling") or 1.0)
    if text.get("dim_model_base"):  # MiniCPM
        scaling *= float(text["hidden_size"]) / float(text["dim_model_base"])
    return factor * scaling if text.get("model_type") in MULTIPLIES else factor / scaling
