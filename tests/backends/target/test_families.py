"""Every family's states and logits are what its own model says, live and from its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from eagle3cli.backends.target import hf_load
from eagle3cli.backends.target.head import read_head, read_target_tensors
from eagle3cli.backends.target.hf import NEEDS_TRANSFORMERS_5, load_target, read_target_config
from eagle3cli.backends.target.positions import NoCache, cached, keeps_positions
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.conftest import SharedTarget
from tests.failing import fails
from tests.families import DECODED, FAMILIES, WRAPPERS, by_family, family_config
from tests.young_families import ALSO_DECODED

OLD = transformers.__version__.startswith("4.")
NORMS = ("norm", "final_layernorm", "final_layer_norm")
LAST_LAYER = 7


ELSEWHERE = () if OLD else DECODED
"""Families whose states ``test_young_families.py`` compares too, which transformers 4 does not run."""


@pytest.mark.parametrize(
    "name", by_family(name for name in (*FAMILIES, *WRAPPERS) if name not in (*ALSO_DECODED, *ELSEWHERE))
)
def test_states_and_logits_are_the_models_own(shared_target: SharedTarget, name: str) -> None:
    folder = shared_target(name)
    if OLD and read_target_config(TargetSettings(model_path=str(folder)))["model_type"] in NEEDS_TRANSFORMERS_5:
        with fails("too-old"):
            load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())
        return
    target = load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())
    generator = torch.Generator().manual_seed(1)
    begin = torch.randint(5, 290, (10,), generator=generator).tolist()
    rows = [begin + torch.randint(5, 290, (n,), generator=generator).tolist() for n in (20, 5, 11)]
    from_files = read_head(str(folder), read_target_config(TargetSettings(model_path=str(folder))))
    for row, (aux, last) in zip(rows, target.capture(rows), strict=True):
        ((alone, _),) = target.capture([row])
        with torch.no_grad():
            out = target.model(input_ids=torch.tensor([row]), output_hidden_states=True)
            if keeps_positions(target.model):  # how a GPU runs it
                keeps_none = cached(target.decoder, NoCache())
                states = target.decoder(input_ids=torch.tensor([row]), use_cache=False, **keeps_none)
                torch.testing.assert_close(states.last_hidden_state[0], last, rtol=1e-4, atol=1e-4)
        want = torch.cat([out.hidden_states[layer + 1][0] for layer in target.aux_layers], -1)
        torch.testing.assert_close(aux, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone, want, rtol=1e-4, atol=1e-4)
        for head in (target.head, from_files):
            torch.testing.assert_close(head(last), out.logits[0], rtol=1e-4, atol=1e-4)
        assert target.head.top_tokens(last).tolist() == out.logits[0].argmax(-1).tolist()
    norm = next(getattr(target.decoder, part) for part in NORMS if hasattr(target.decoder, part))
    final_norm = read_target_tensors(str(folder), LAST_LAYER)["final_norm"]
    torch.testing.assert_close(final_norm, gain_of(norm), rtol=1e-4, atol=1e-4)


def test_an_old_transformers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family_config("falcon-h1").save_pretrained(tmp_path)
    monkeypatch.setattr("eagle3cli.backends.target.hf.transformers.__version__", "4.57.1")
    with fails("package-too-old", "falcon_h1", "5", "4.57.1"):
        load_target(TargetSettings(model_path=str(tmp_path), device="cpu"), Silent())


def test_groups_of_processes_need_a_newer_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    monkeypatch.setitem(sys.modules, "transformers.distributed.configuration_utils", None)
    assert hf_load._tensor_parallel(4) == {"tp_plan": "auto"}
    with fails("package-too-old", "2"):
        hf_load._tensor_parallel(2)


def gain_of(norm: Any) -> torch.Tensor:
    """What a norm multiplies by."""
    signs = torch.ones(1, 64)
    signs[:, ::2] = -1  # a mean of 0 and a square of 1, so that both kinds of norm only multiply and add
    gain: torch.Tensor = (norm(signs) - norm(-signs))[0] / 2 * signs[0]
    return gain


def test_logits_that_would_be_wrong_are_refused(shared_target: SharedTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_target("granite")
    monkeypatch.setattr("eagle3cli.backends.target.logits.logit_factor", lambda _: 1.0)
    with fails("unloadable-target", "eagle3"):
        load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())
