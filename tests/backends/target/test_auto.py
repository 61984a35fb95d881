"""The backend that auto chooses, and why; versions of SGLang are checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target import auto, sglang
from eagle3cli.backends.target.auto import choose_backend, open_target
from eagle3cli.backends.target.sglang import split_to_fit, state_warnings
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.failing import fails

KNOWN = sglang.VERSIONS[-1]


@pytest.mark.parametrize(
    ("target", "version", "gpu", "kind", "wanted", "why"),
    [
        ({}, KNOWN, True, "llama", "sglang", f"a GPU, SGLang {KNOWN} and a model type that it captures (llama)"),
        ({}, KNOWN, False, "llama", "hf", "no GPU"),
        ({}, None, True, "llama", "hf", "SGLang is not installed"),
        ({}, "0.1.0", True, "llama", "hf", f"SGLang 0.1.0 is installed; known is {KNOWN}"),
        ({}, KNOWN, True, "cohere", "hf", "SGLang captures no auxiliary layers of cohere"),
        ({}, KNOWN, True, "gemma3_text", "hf", "SGLang captures no auxiliary layers of gemma3_text"),
        ({"device_map": "auto"}, KNOWN, True, "llama", "hf", "transformers alone spreads a target"),
        ({"backend": "hf"}, KNOWN, True, "llama", "hf", "as named"),
        ({"backend": "custom"}, KNOWN, True, "llama", "hf", "as named"),
        ({"backend": "sglang"}, None, False, "cohere", "sglang", "as named"),
    ],
)
def test_the_choice_and_its_reason(
    monkeypatch: pytest.MonkeyPatch,
    target: dict[str, Any],
    version: str | None,
    gpu: bool,
    kind: str,
    wanted: str,
    why: str,
) -> None:
    monkeypatch.setattr(auto, "installed_version", lambda name: version)
    monkeypatch.setattr(auto, "pick_device", lambda _: torch.device("cuda" if gpu else "cpu"))
    name, said = choose_backend(TargetSettings(model_path="m", **target), {"text_config": {"model_type": kind}})
    assert (name, why in said) == (wanted, True), said


def test_the_choice_is_told(tiny: Path) -> None:
    class Told(Silent):
        lines: list[str] = []

        def info(self, text: str) -> None:
            self.lines.append(text)

    report = Told()
    target = open_target(TargetSettings(model_path=str(tiny), device="cpu"), report)
    assert report.lines[0] == "target backend hf: no GPU"
    assert target.aux_layers == (1, 3, 4)


@pytest.mark.parametrize("version", [None, "0.4.9"])
def test_a_named_sglang_that_is_not_there_says_what_to_install(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    monkeypatch.setattr(sglang, "installed_version", lambda name: version)
    with fails("missing-package", version or "SGLang", f"pip install sglang=={KNOWN}"):
        open_target(TargetSettings(model_path=str(tiny), backend="sglang", device="cpu"), Silent())


def test_rows_go_into_parts_that_the_pools_hold() -> None:
    rows = [[1] * n for n in (5, 3, 8, 2, 8)]
    assert list(split_to_fit(rows, tokens=10, page=1)) == [rows[:2], rows[2:4], rows[4:]]
    assert list(split_to_fit(rows, tokens=16, page=4)) == [rows[:2], rows[2:4], rows[4:]]
    assert [len(part) for part in split_to_fit([[1]] * 150, tokens=1000, page=1)] == [64, 64, 22]
    with fails("out-of-memory", "11", "10"):
        list(split_to_fit([[1] * 11], tokens=10, page=1))


def test_where_sglang_differs_is_said() -> None:
    class Windowed:
        def get_attention_sliding_window_size(self) -> int:
            return 8

    text = {"model_type": "mistral", "sliding_window": 8, "max_position_embeddings": 512}
    assert list(state_warnings(object(), text)) == ["SGLang runs mistral without its sliding window of 8 tokens"]
    assert list(state_warnings(Windowed(), text)) == []
    assert list(state_warnings(object(), {**text, "sliding_window": None})) == []
    assert "fits SGLang only" in next(state_warnings(Windowed(), {**text, "model_type": "gemma3_text"}))
