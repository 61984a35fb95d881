"""Stores in other encodings: same rows, stated loss, resumable."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.data.hidden_states.check import check_store
from eagle3cli.data.hidden_states.convert import convert
from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Quantization, relative_error
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.errors import Stopped
from eagle3cli.runtime.report import Silent
from eagle3cli.runtime.stop import Stop
from tests.data.hidden_states.test_store import contents, fill, make_rows
from tests.failing import fails


def converted(source: Path, folder: Path, encoding: Quantization, stop: Stop | None = None, **other: Any) -> Store:
    options = {"shard_mb": 1, "device": torch.device("cpu"), "report": Silent(), "stop": stop or Stop(), **other}
    return convert(Store(source), folder, encoding, **options)


@pytest.mark.parametrize("before", QUANTIZATIONS)
@pytest.mark.parametrize("after", QUANTIZATIONS)
def test_rows_are_the_same_in_another_encoding(tmp_path: Path, before: Quantization, after: Quantization) -> None:
    rows = make_rows(40)
    fill(tmp_path / "before", rows, before)
    if before == after:
        with fails("conflicting-options", before):
            converted(tmp_path / "before", tmp_path / "after", after)
        return
    made, source = converted(tmp_path / "before", tmp_path / "after", after), Store(tmp_path / "before")
    assert check_store(made, Silent()) == []
    assert made.meta.encoding == after
    assert made.meta.source == f"captured as {before}, converted"
    assert (made.meta.data_hash, made.lengths) == (source.meta.data_hash, source.lengths)
    for number in (0, 7, 39):
        old, new = source[number], made[number]
        assert torch.equal(old.token_ids_S, new.token_ids_S)
        assert torch.equal(old.loss_mask_S, new.loss_mask_S)
        assert torch.equal(old.top_R, new.top_R)
    aux = [torch.cat([store[n].aux_UC for n in range(40)]) for store in (source, made)]
    error = made.manifest["sample"]["error"]["aux"]
    assert relative_error(*aux) == pytest.approx(error, rel=0.3)
    assert error < {"bf16": 0.003, "fp8": 0.04, "int8": 0.02, "int4": 0.16}[after]


@pytest.mark.slow
def test_a_conversion_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    class StopAtThird(Stop):
        left = 3

        def check(self, saved: str) -> None:
            self.left -= 1
            if not self.left:
                self.requested = signal.SIGTERM
            super().check(saved)

    rows = [row for row in make_rows(12) for _ in range(40)]
    fill(tmp_path / "before", rows)
    converted(tmp_path / "before", tmp_path / "whole", "int8")
    with pytest.raises(Stopped):
        converted(tmp_path / "before", tmp_path / "cut", "int8", StopAtThird())
    with fails("made-differently"):
        converted(tmp_path / "before", tmp_path / "cut", "int4")
    converted(tmp_path / "before", tmp_path / "cut", "int8")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_not_in_place(tmp_path: Path) -> None:
    fill(tmp_path / "store", make_rows())
    with fails("conflicting-options"):
        converted(tmp_path / "store", tmp_path / "store", "int8")
