"""Rows computed again tell a store of this target from any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle3cli.backends.capture.verify import recompute, target_of
from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Quantization
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.backends.capture.test_capture import make_rows, run
from tests.tiny import tiny_target


@pytest.fixture(scope="module")
def target(tiny: Path) -> HfTarget:
    return load_target(TargetSettings(model_path=str(tiny), device="cpu"), Silent())


@pytest.mark.slow
@pytest.mark.parametrize("encoding", QUANTIZATIONS)
def test_a_store_fits_its_target_and_no_other(target: HfTarget, tmp_path: Path, encoding: Quantization) -> None:
    run(target, make_rows(20), tmp_path / "store", encoding=encoding)
    store = Store(tmp_path / "store")
    found = recompute(store, target, 5, Silent())
    assert found.rows == 5
    assert found.fits
    assert found.same_top == 1.0
    assert found.aux_error == pytest.approx(store.manifest["sample"]["error"]["aux"], rel=0.5)
    other = load_target(TargetSettings(model_path=str(tiny_target(tmp_path / "other", seed=1)), device="cpu"), Silent())
    assert not recompute(store, other, 5, Silent()).fits


def test_one_spoilt_layer_is_enough(target: HfTarget, tmp_path: Path) -> None:
    run(target, make_rows(8), tmp_path / "store")
    with torch.no_grad():
        weight = target.layers[4].mlp.down_proj.weight
        assert isinstance(weight, torch.Tensor)
        kept = weight.clone()
        weight.mul_(1.5)
        found = recompute(Store(tmp_path / "store"), target, 4, Silent())
        weight.copy_(kept)
    assert not found.fits


def test_the_target_is_the_named_one_or_the_stores(target: HfTarget, tmp_path: Path) -> None:
    run(target, make_rows(4), tmp_path / "store")
    store = Store(tmp_path / "store")
    assert target_of(store, TargetSettings()).model_path == target.path
    assert target_of(store, TargetSettings()).dtype == "float32"
    assert target_of(store, TargetSettings(model_path="here", dtype="bfloat16")).model_path == "here"
    assert target_of(store, TargetSettings(model_path="here", dtype="bfloat16")).dtype == "bfloat16"
