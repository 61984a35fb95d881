"""States of the transformers target equal its own ``output_hidden_states``, however the rows are batched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle3cli.backends.target.hf import LONGEST_SHARED, load_target, shared_prefix
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.failing import fails
from tests.tiny import tiny_target


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("common", [0, 12])
def test_capture_is_the_models_own(tmp_path: Path, kind: str, common: int) -> None:
    folder = tiny_target(tmp_path / kind, kind)
    target = load_target(TargetSettings(model_path=str(folder)), Silent())
    generator = torch.Generator().manual_seed(1)
    begin = torch.randint(5, 300, (common,), generator=generator).tolist()
    rows = [begin + torch.randint(5, 300, (n,), generator=generator).tolist() for n in (3, 9, 1)]
    assert shared_prefix(rows) == common
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for row, (aux, last) in zip(rows, target.capture(rows), strict=True):
        with torch.no_grad():
            out = model(torch.tensor([row]), output_hidden_states=True)
        want = torch.cat([out.hidden_states[layer + 1][0] for layer in target.aux_layers], -1)
        torch.testing.assert_close(aux, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(target.head(last), out.logits[0], rtol=1e-3, atol=1e-3)
        assert target.head.top_tokens(last).tolist() == out.logits[0].argmax(-1).tolist()


def test_a_shared_beginning_leaves_a_token_to_each_row() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_prefix([[1, 2, 3]]) == 0
    assert shared_prefix([[1], [1, 2]]) == 0


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with fails("not-a-model"):
        load_target(TargetSettings(model_path=str(tmp_path)), Silent())
    with fails("no-such-path"):
        load_target(TargetSettings(model_path=str(tmp_path / "absent")), Silent())
    with fails("missing-target"):
        load_target(TargetSettings(), Silent())


def test_a_common_beginning_is_run_once_unless_the_sequences_are_long() -> None:
    begin = list(range(20))
    assert shared_prefix([[*begin, 1, 2], [*begin, 3, 4]]) == 20
    assert shared_prefix([[*begin, *range(LONGEST_SHARED)], [*begin, 3, 4]]) == 0
