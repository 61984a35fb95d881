"""Rows of unlike length: which run together, and packed rows with the states that each has alone."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eagle3cli.backends.target.hf import MIN_SHARED, HfTarget, load_target, packed_kernel
from eagle3cli.backends.target.packed import BLOCK_ATTENTION, VARLEN_ATTENTION, packed_kernels, varlen_attention
from eagle3cli.backends.target.padding import PASS_TOKENS, similar_lengths
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from eagle3cli.training.batches import micro_batches
from tests.conftest import SharedTarget
from tests.families import FAMILIES, by_family, family_target
from tests.gpu_tensor import PretendGpu

VARLEN = "torch.nn.attention.varlen"
NEEDS_VARLEN = pytest.mark.skipif(find_spec(VARLEN) is None, reason="this torch has no kernel of rows in one sequence")
LENGTHS = [int(line) for line in (Path(__file__).parents[2] / "speed" / "step" / "lengths.txt").read_text().split()]


@given(
    st.lists(st.integers(1, 3000), max_size=40),
    st.none() | st.integers(1, 9000),
    st.none() | st.integers(0, 900),
)
def test_groups_hold_every_row_once_within_their_bounds(
    lengths: list[int], max_tokens: int | None, max_padding: int | None
) -> None:
    groups = similar_lengths(lengths, max_tokens=max_tokens, max_padding=max_padding)
    assert sorted(at for group in groups for at in group) == list(range(len(lengths)))
    assert groups == similar_lengths(lengths, max_tokens=max_tokens, max_padding=max_padding)
    order = [lengths[at] for group in groups for at in group]
    assert order == sorted(lengths, reverse=True)
    for group in groups:
        tokens = sum(lengths[at] for at in group)
        assert max_tokens is None or tokens <= max_tokens or len(group) == 1
        assert max_padding is None or len(group) * lengths[group[0]] - tokens <= max_padding


@pytest.mark.parametrize("max_tokens", [None, 4096, 8192, 16384, 32768])
def test_a_gpu_that_has_to_pad_runs_at_most_three_percent_of_padding(max_tokens: int | None) -> None:
    padded = passes = 0
    for rows in micro_batches(range(len(LENGTHS)), None, LENGTHS, max_tokens):
        lengths = [LENGTHS[row] for row in rows]
        for group in similar_lengths(lengths, max_padding=PASS_TOKENS):
            padded += len(group) * lengths[group[0]]
            passes += 1
    assert 1 - sum(LENGTHS) / padded <= 0.03
    assert passes <= 8


def row_by_row(
    query_NAD: Tensor, key_NKD: Tensor, value_NKD: Tensor, bounds: Tensor, *_: Any, scale: float, **options: Any
) -> Tensor:
    """What the kernel computes, one row after the other."""
    assert options == {"window_size": (-1, 0), "enable_gqa": True}
    assert query_NAD.shape[-1] == value_NKD.shape[-1]
    cuts = tuple(bounds[1:-1].tolist())
    parts = zip(*(states.tensor_split(cuts) for states in (query_NAD, key_NKD, value_NKD)), strict=True)
    out = []
    for part in parts:
        query_AND, key_KND, value_KND = (states.transpose(0, 1) for states in part)
        groups = len(query_AND) // len(key_KND)
        scores = query_AND @ key_KND.repeat_interleave(groups, 0).mT * scale
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        weights = scores.float().masked_fill(future, float("-inf")).softmax(-1).to(value_KND.dtype)
        out.append((weights @ value_KND.repeat_interleave(groups, 0)).transpose(0, 1))
    return torch.cat(out)


def loaded(folder: Path) -> HfTarget:
    return load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())


def random_rows(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 290, (length,), generator=generator).tolist() for length in lengths]


def assert_states_of_each_alone(target: HfTarget, rows: list[list[int]]) -> None:
    for row, states in zip(rows, target.capture(rows), strict=True):
        ((aux_SC, last_SH),) = target.capture_padded([row])
        torch.testing.assert_close(states[0], aux_SC, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states[1], last_SH, rtol=1e-4, atol=1e-4)


@NEEDS_VARLEN
@pytest.mark.parametrize("name", by_family(FAMILIES))
def test_packed_rows_have_the_states_of_each_alone(
    shared_target: SharedTarget, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{VARLEN}.varlen_attn", row_by_row)
    target = loaded(shared_target(name))
    before = target.model.config._attn_implementation
    packed = packed_kernel(target, "cuda")
    if name in ("llama", "llama-tied", "qwen2", "qwen3", "qwen3-moe", "deepseek-v2", "deepseek-v3", "phi4-mini"):
        assert packed == VARLEN_ATTENTION
    if name in ("gpt-oss", "gemma2", "mistral", "llama4", "qwen2-window"):
        assert packed is None
    assert (target.packed == BLOCK_ATTENTION) == (packed == VARLEN_ATTENTION)
    for implementation in (packed, target.packed):
        assert_states_of_each_alone(replace(target, packed=implementation), random_rows([20, 1, 33, 5]))
    assert target.model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("class_name", "own"),
    [
        ("DogeConfig", {"keep_window_size": 8}),  # each layer makes a mask of the keys that count most
        ("Llama4TextConfig", {**FAMILIES["llama4"][1], "layer_types": ["full_attention"] * 8}),  # scales by place
    ],
)
def test_what_four_tokens_do_not_show_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_name: str, own: dict[str, Any]
) -> None:
    monkeypatch.setitem(FAMILIES, "other", (class_name, own))
    target = loaded(family_target(tmp_path / "other", "other"))
    assert target.packed is None
    assert_states_of_each_alone(target, random_rows([20, 1, 33, 5]))


def test_a_model_that_masks_packed_rows_itself_is_not_packed(tmp_path: Path) -> None:
    """Falcon's layers take no kernel, and the mask that it makes of packed rows hides what all of them begin with."""
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(vocab_size=320, hidden_size=32, num_hidden_layers=5, num_attention_heads=2, bias=False)
    FalconForCausalLM(config).save_pretrained(tmp_path)
    target = loaded(tmp_path)
    begin = random_rows([MIN_SHARED])[0]
    assert_states_of_each_alone(target, [[*begin, *row] for row in random_rows([20, 1, 33, 5])])


@pytest.mark.slow
def test_the_states_of_the_sixteen_rows_are_those_of_each_alone(tiny: Path) -> None:
    target = loaded(tiny)
    assert_states_of_each_alone(target, random_rows([length // 4 for length in LENGTHS]))


@pytest.mark.parametrize("name", ["llama", "qwen3", "deepseek-v3"])
def test_on_a_cpu_rows_are_packed_behind_what_all_begin_with(
    shared_target: SharedTarget, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass, over no more tokens than there are; blocks of queries end inside of rows."""
    target = loaded(shared_target(name))
    assert target.packed == BLOCK_ATTENTION
    monkeypatch.setattr("eagle3cli.backends.target.packed.QUERY_BLOCK", 16)
    seen: list[int] = []
    target.decoder.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    begin = random_rows([MIN_SHARED])[0]
    rows = [[*begin, *row] for row in random_rows([50, 1, 33, 16])]
    states = target.capture(rows)
    assert seen == [MIN_SHARED + 100]
    for row, (aux_SC, last_SH) in zip(rows, states, strict=True):
        ((alone_SC, alone_SH),) = target.capture_padded([row])
        torch.testing.assert_close(aux_SC, alone_SC, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last_SH, alone_SH, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_that_has_to_pad_rows_of_unlike_length_do_not_meet(shared_target: SharedTarget) -> None:
    target = loaded(shared_target("gemma2"))
    assert target.packed is None
    passes: list[int] = []
    target.decoder.register_forward_hook(lambda *_: passes.append(1))
    target.capture(random_rows([50, 3, 51, 90]))
    assert len(passes) == 3


@NEEDS_VARLEN
def test_torchs_kernel_takes_what_it_is_given() -> None:
    """Its shapes alone: it computes on CUDA only."""
    with torch.device("meta"):
        query = torch.empty(1, 8, 100, 24, dtype=torch.bfloat16)
        key = torch.empty(1, 2, 100, 24, dtype=torch.bfloat16)
        value = torch.empty(1, 2, 100, 16, dtype=torch.bfloat16)
        bounds = torch.empty(4, dtype=torch.int32)
        out, _ = varlen_attention(
            torch.nn.Module(), query, key, value, None, cu_seq_lens_q=bounds, max_length_q=50, scaling=0.2
        )
    assert out.shape == (1, 100, 8, 16)


@NEEDS_VARLEN
def test_without_a_kernel_rows_are_padded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = loaded(tiny)
    assert list(packed_kernels(target.model, "cuda")) == [VARLEN_ATTENTION]
    assert packed_kernel(target, "cuda") is None, "torch has this kernel for CUDA alone"

    def leaking(query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Tensor:
        bounds = torch.tensor([0, len(query)])
        return row_by_row(query, key, value, bounds, **options)

    monkeypatch.setattr(f"{VARLEN}.varlen_attn", leaking)
    assert packed_kernel(target, "cuda") is None, "the second row saw the first"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [pytest.param(True, marks=NEEDS_VARLEN), False])
def test_on_a_gpu_rows_are_packed_where_there_is_a_kernel(
    tiny: Path, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    """Either way has the states of each row alone, and waits for nothing of ours."""
    if kernel:
        monkeypatch.setattr(f"{VARLEN}.varlen_attn", row_by_row)
    target = load_target(TargetSettings(model_path=str(tiny), device="cuda"), Silent())
    assert (target.packed is not None) == kernel
    rows = random_rows([300, 4, 280, 9])
    passes: list[int] = []
    target.decoder.register_forward_hook(lambda *_: passes.append(1))
    gpu.reset()
    states = target.capture(rows)
    # The twin of the kernel reads where its rows begin.
    assert gpu.syncs.total() == (len(target.layers) if kernel else 0), gpu.syncs
    assert len(passes) == (1 if kernel else 2)
    for row, (aux_SC, last_SH) in zip(rows, states, strict=True):
        ((alone_SC, alone_SH),) = target.capture_padded([row])
        torch.testing.assert_close(aux_SC.cpu(), alone_SC.cpu(), rtol=0.05, atol=0.05)
        torch.testing.assert_close(last_SH.cpu(), alone_SH.cpu(), rtol=0.05, atol=0.05)
