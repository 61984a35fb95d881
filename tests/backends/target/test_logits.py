"""A head gives its family's logits, whole and of some tokens alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from eagle3cli.backends.target.logits import make_head

LAST, WEIGHT, BIAS = torch.randn(3, 4), torch.randn(6, 4), torch.randn(6)
PLAIN = F.linear(LAST, WEIGHT)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, PLAIN),
        ({"model_type": "cohere", "logit_scale": 0.25}, PLAIN * 0.25),
        ({"model_type": "granite", "logits_scaling": 8.0}, PLAIN / 8),
        ({"model_type": "hyperclovax", "logits_scaling": 0.5}, PLAIN / 2),
        ({"final_logit_softcapping": 2.0}, torch.tanh(PLAIN / 2) * 2),
        ({"model_type": "recurrent_gemma", "logits_soft_cap": 2.0}, torch.tanh(PLAIN / 2) * 2),
        ({"model_type": "wrapper", "text_config": {"model_type": "gemma2", "final_logit_softcapping": 2.0}},
         torch.tanh(PLAIN / 2) * 2),
        ({"final_logit_softcapping": None}, PLAIN),
    ],
)  # fmt: skip
def test_logits_of_a_family(config: dict[str, Any], wanted: torch.Tensor) -> None:
    head = make_head(config, WEIGHT)
    torch.testing.assert_close(head(LAST), wanted)
    ids = torch.tensor([4, 1])
    torch.testing.assert_close(head.rows(ids)(LAST), wanted[:, ids])
    assert len(head.rows(ids)) == 2


def test_a_bias_is_scaled_with_the_weights() -> None:
    head = make_head({"logits_scaling": 4.0}, WEIGHT, BIAS)
    torch.testing.assert_close(head(LAST), (PLAIN + BIAS) / 4)
    torch.testing.assert_close(head.rows(torch.tensor([5]))(LAST), ((PLAIN + BIAS) / 4)[:, 5:])
    assert head.to(torch.bfloat16)(LAST.bfloat16()).dtype == torch.bfloat16
