"""Layers of our own give what transformers' give, and are used only where they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.backends.target.positions import PositionCache
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode import passes
from eagle3cli.serving.decode.decode import decode
from eagle3cli.serving.decode.passes import Passes, quick_target
from eagle3cli.serving.decode.products import product
from eagle3cli.settings.models import TargetSettings
from tests.serving.decode.test_batches import config_of
from tests.tiny import tiny_target

PROMPTS = [[5, 9, 30], [7, 8, 9, 10, 11, 12, 13], [40, 41]]


def loaded(folder: Path, dtype: str = "float32") -> HfTarget:
    return load_target(TargetSettings(model_path=str(folder), dtype=dtype), Silent())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_product_is_that_of_all_its_layers(dtype: torch.dtype, ordered: bool) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(rows, 48).to(dtype) for rows in (32, 8)]
    bias = torch.randn(8).to(dtype)
    x = torch.randn(3, 48).to(dtype)
    made = product(weights, [None, bias], ordered=ordered)(x)
    expected = torch.cat((F.linear(x, weights[0]), F.linear(x, weights[1], bias)), -1)
    torch.testing.assert_close(made, expected, rtol=1.6e-2, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_products_without_ordered_weights_are_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such instructions\nat some place")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuses, raising=False)
    weight = torch.randn(8, 48)
    x = torch.randn(3, 48)
    for _ in range(2):
        assert torch.equal(product([weight])(x), F.linear(x, weight))
    (said,) = [record.message for record in caplog.records if "oneDNN" in record.message]
    assert "does not order weights of torch.float32 here (no such instructions)" in said


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_states_are_the_models_own(tmp_path: Path, kind: str) -> None:
    target = loaded(tiny_target(tmp_path / kind, kind))
    quick = quick_target(target)
    assert quick is not None
    texts = torch.tensor([[5, 9, 30, 7, 8, 9], [7, 8, 9, 10, 11, 12]])
    cache = PositionCache(2, 8)
    with torch.inference_mode():
        first = quick(texts[:, :4], torch.arange(4).expand(2, -1), cache)
        # The rows go on from different places: what stands behind is written anew.
        last = quick(torch.stack((texts[0, 2:5], texts[1, 3:6])), torch.tensor([[2, 3, 4], [3, 4, 5]]), cache)
        for row, (begin, end) in enumerate(((2, 5), (3, 6))):
            aux, states = target.capture([texts[row].tolist()])[0]
            for own, of_pass in zip((aux, states), range(2), strict=True):
                torch.testing.assert_close(first[of_pass][row], own[:4], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(last[of_pass][row], own[begin:end], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_other_families_run_as_they_are(tmp_path: Path, kind: str) -> None:
    model = AutoModelForCausalLM.from_config(config_of(kind), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert quick_target(loaded(tmp_path)) is None


def test_a_model_that_computes_something_else_runs_as_it_is(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = loaded(tiny)
    assert quick_target(target) is not None
    layers: Any = target.layers
    layers[0].self_attn.scaling *= 0.5  # read by the layers of our own, too
    assert quick_target(target) is not None
    norm = layers[0].input_layernorm
    monkeypatch.setattr(norm, "forward", lambda states: torch.nn.functional.layer_norm(states, states.shape[-1:]))
    assert quick_target(target) is None
    plain = decode(target, None, PROMPTS, k=0, max_new_tokens=4, eos_ids=frozenset(), batch_size=3)
    assert [len(reply.token_ids) for reply in plain] == [4, 4, 4]


def test_without_room_for_a_copy_the_model_runs_as_it_is(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = loaded(tiny)
    plain = decode(target, None, PROMPTS, k=0, max_new_tokens=8, eos_ids=frozenset(), batch_size=3)
    monkeypatch.setattr(passes, "memory_of", lambda device: 1)
    assert Passes(target, None).quick is None
    as_it_is = decode(target, None, PROMPTS, k=0, max_new_tokens=8, eos_ids=frozenset(), batch_size=3)
    assert [reply.token_ids for reply in as_it_is] == [reply.token_ids for reply in plain]
