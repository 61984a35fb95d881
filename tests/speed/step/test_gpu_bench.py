"""The benchmark of a GPU runs, small, on a pretend one: every section finds something or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.training.ttt import flex_attention
from tests.dense_flex import dense_flex
from tests.pretend_gpu import pretend_gpu
from tests.speed.step import gpu_bench
from tests.speed.step.gpu_sections import SECTIONS


@pytest.mark.slow
def test_it_runs_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_compiled", lambda: dense_flex)
    with pretend_gpu():
        assert gpu_bench.main(["--small", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == list(SECTIONS)
    assert found["a step against the CPU"]["kl"]["loss"][0] > 0
    assert sum(found["host syncs of a step"].values()) <= 2
    assert found["steps by shape"]["llama-3.1-8b kl"]["tokens_per_s"] > 0


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_bench.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err
