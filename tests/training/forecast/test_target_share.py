"""What a live target may take of a GPU is what the draft's training leaves of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.errors import ModelError
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.settings.load import load
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training import inputs
from eagle3cli.training.forecast import inputs as known
from eagle3cli.training.forecast import target_share
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.forecast.target_share import LARGEST_SHARE, OF_TARGET, share_beside
from tests.conftest import RunCli

GB = 10**9
LLAMA_8B = Workload(
    draft=DraftConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        draft_vocab_size=32000,
        target_hidden_size=4096,
        aux_layers=(1, 15, 28),
        norm_output=True,
    ),
    target=TargetShape(
        weights=8_030_000_000, layers=32, hidden=4096, intermediate=14336, key_value=1024, vocab=128256, tied=False
    ),
    online=True,
    tokens=8192,
    sequences=4,
    longest_sequence=2048,
    positions=4096,
    ttt_steps=7,
    cpu=False,
    compute_bytes=2,
    state_bytes=2,
    process_bytes=GB // 2,
)
WEIGHTS = 16.06 * GB


@pytest.mark.parametrize("room", [80, 94, 141])
@pytest.mark.parametrize("tokens", [4096, 8192, 16384])
def test_training_and_target_fit_side_by_side(room: int, tokens: int) -> None:
    work = replace(LLAMA_8B, tokens=tokens, positions=tokens // 2, sequences=tokens // 2048)
    share = share_beside(work, room * GB)
    assert share * room * GB > WEIGHTS
    assert share <= LARGEST_SHARE
    for phase in forecast(work).phases:
        training = sum(size for name, size in phase.parts.items() if name not in OF_TARGET)
        assert share * room * GB + training < room * GB, phase.name


def test_a_larger_batch_leaves_less() -> None:
    shares = [
        share_beside(replace(LLAMA_8B, tokens=t, positions=t // 2, sequences=t // 2048), 80 * GB)
        for t in (8192, 32768, 65536)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2]


def test_a_target_over_two_gpus_needs_half_of_each() -> None:
    small = 32 * GB
    one, two = (share_beside(replace(LLAMA_8B, tp_size=size, tokens=65536), small) for size in (1, 2))
    assert one * small > WEIGHTS  # there is no room for training: the target gets what it needs, and no more
    assert WEIGHTS / 2 < two * small < WEIGHTS


def test_a_quantised_target_needs_less() -> None:
    crowded = replace(LLAMA_8B, tokens=65536, positions=65536, sequences=32)
    shares = [share_beside(crowded, 40 * GB, bits) for bits in (None, 8, 4)]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 3


class Uneven(Ranks):
    """One of two ranks; the other one has less room."""

    def all_reduce_max(self, values: Any) -> list[float]:
        return [max(values[0], -0.4)]


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[TargetSettings]:
    """A machine that seems to have an 80 GB GPU, until a target is opened; the settings that are opened with."""
    opened: list[TargetSettings] = []

    def open_target(target: TargetSettings, *_: Any) -> Any:
        opened.append(target)
        raise ModelError("unloadable-target", "as far as this goes", where="test")

    monkeypatch.setattr(inputs, "open_target", open_target)
    monkeypatch.setattr(known, "memory_of", lambda _: 80 * GB)
    for module in (known, target_share):
        monkeypatch.setattr(module, "device_of", lambda _: "cuda")
    return opened


def test_a_run_hands_it_to_the_target(place: Path, run_cli: RunCli, on_gpu: list[TargetSettings]) -> None:
    assert run_cli("train", "--output-dir", "run").code == 1
    assert run_cli("train", "--output-dir", "run", "--sglang-mem-fraction-static", "0.5").code == 1
    assert [target.mem_fraction_static for target in on_gpu] == [LARGEST_SHARE, 0.5]


def test_ranks_agree_on_the_least(
    place: Path, run_cli: RunCli, on_gpu: list[TargetSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("cache").code == 0
    monkeypatch.chdir(place)
    assert target_share.target_share(load().settings, Uneven(0, 2)) == 0.4


def test_a_cpu_leaves_it_to_the_backend(
    place: Path, run_cli: RunCli, on_gpu: list[TargetSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (known, target_share):
        monkeypatch.setattr(module, "device_of", lambda _: "cpu")
    assert run_cli("train", "--output-dir", "run").code == 1
    assert [target.mem_fraction_static for target in on_gpu] == [None]
