"""Draft folders: what is written loads again, and every way in which a folder can be wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle3cli.errors import ModelError
from eagle3cli.models.checkpoint import check_folder, load_draft, save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.contract import expected_shapes, vocab_problems
from eagle3cli.models.draft import Draft
from tests.failing import fails

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIG = DraftConfig(
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=40,
    draft_vocab_size=12,
    target_hidden_size=16,
    aux_layers=(1, 3, 4),
    rope_theta=5e5,
    rope_scaling=dict(ROPE),
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=[2, 3],
)
TARGET = {"vocab_size": 40, "hidden_size": 16, "max_position_embeddings": 512, "num_hidden_layers": 8}


def draft_state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    draft = Draft(CONFIG)
    ids = torch.randperm(CONFIG.vocab_size)[: CONFIG.draft_vocab_size].sort().values
    t2d = torch.zeros(CONFIG.vocab_size, dtype=torch.bool)
    t2d[ids] = True
    draft.set_vocab(ids - torch.arange(len(ids)), t2d)
    return draft.serving_state()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_draft(tmp_path / "draft", draft_state(), CONFIG)
    return tmp_path / "draft"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "DROP"}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def problem(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        check_folder(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_saved_loads_again_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    state = draft_state()
    save_draft(tmp_path, state, CONFIG, dtype=dtype)
    config, loaded = load_draft(tmp_path)
    assert config.aux_layers == CONFIG.aux_layers
    assert config.rope_scaling == ROPE
    assert config.dtype == str(dtype).removeprefix("torch.")
    assert loaded.keys() == state.keys() == expected_shapes(CONFIG).keys()
    for name, value in state.items():
        wanted = value.to(dtype) if value.is_floating_point() else value
        assert loaded[name].dtype == wanted.dtype
        assert torch.equal(loaded[name], wanted)
    Draft(config).load_state_dict(loaded)


def test_config_has_every_key_a_server_needs(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForCausalLMEagle3"]
    assert raw["model_type"] == "llama"
    assert raw["num_hidden_layers"] == 1
    assert raw["tie_word_embeddings"] is False
    assert raw["max_position_embeddings"] == 512
    assert raw["torch_dtype"] == raw["dtype"] == "bfloat16"
    assert raw["rope_theta"] == raw["rope_parameters"]["rope_theta"] == 5e5
    assert raw["rope_scaling"]["rope_type"] == raw["rope_parameters"]["rope_type"] == "llama3"
    assert raw["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]  # vLLM's way of counting
    assert raw["eagle_config"] == {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True}
    assert {"bos_token_id", "eos_token_id", "pad_token_id", "draft_vocab_size", "target_hidden_size"} <= raw.keys()
    assert check_folder(folder, target=TARGET).head_dim == 4


def test_legacy_leaves_out_the_newer_keys(tmp_path: Path) -> None:
    save_draft(tmp_path, draft_state(), CONFIG, layout="legacy")
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" not in raw
    assert "dtype" not in raw
    check_folder(tmp_path, layout="legacy")
    assert "rope_parameters is missing" in problem(tmp_path)
    assert load_draft(tmp_path)[0].rope_scaling == ROPE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, must be a positive"),
        ({"num_hidden_layers": 2}, "layers.1.self_attn.q_proj.weight: missing"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}, "must be [2, 4, 5]: vLLM counts the layer after"),
        ({"norm_before_residual": True}, "the sglang layout cannot hold this draft: norm_before_residual"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"draft_vocab_size": "DROP"}, "draft_vocab_size is None"),
        ({"head_dim": "DROP"}, "head_dim is None"),
        ({"max_position_embeddings": "DROP"}, "max_position_embeddings is None"),
        ({"pad_token_id": "DROP"}, "pad_token_id is missing"),
        ({"rope_parameters": "DROP"}, "rope_parameters is missing"),
        ({"rope_scaling": None}, "rope_parameters and rope_scaling disagree"),
        ({"rope_theta": 10000.0}, "rope_theta"),
        ({"torch_dtype": "DROP"}, "torch_dtype is None"),
        ({"dtype": "float16"}, "dtype is 'float16' but torch_dtype is 'bfloat16'"),
        ({"eagle_config": "DROP"}, "eagle_config is missing"),
        ({"eagle_config": {"use_aux_hidden_state": True}}, "eagle_aux_hidden_state_layer_ids is None"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}}, "use_aux_hidden_state must be true"),
        ({"torch_dtype": "float32", "dtype": "float32"}, "fc.weight: type bfloat16, must be float32"),
    ],
)
def test_a_wrong_config_key_is_named(folder: Path, changes: dict[str, Any], said: str) -> None:
    change_config(folder, **changes)
    assert said in problem(folder)


def test_every_difference_is_listed_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["norm.weight"]
        tensors["layers.0.norm.weight"] = torch.ones(16)
        tensors["fc.weight"] = tensors["fc.weight"][:, :-1]
        tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
        tensors["d2t"] = tensors["d2t"].int()

    change_tensors(folder, spoil)
    change_config(folder, dtype="DROP")
    text = problem(folder)
    for said in (
        "6 differences",
        "norm.weight: missing",
        "layers.0.norm.weight: unknown",
        "fc.weight: shape [16, 47], must be [16, 48]",
        "lm_head.weight: type float32, must be bfloat16",
        "d2t: type int32, must be int64",
        "dtype is None",
    ):
        assert said in text


def test_target_that_does_not_fit_is_named(folder: Path) -> None:
    text = problem(folder, target={**TARGET, "max_position_embeddings": 4096, "vocab_size": 41, "num_hidden_layers": 4})
    assert "max_position_embeddings is 512 but the target has 4096" in text
    assert "vocab_size is 40 but the target has 41" in text
    assert "the target has only 4 layers" in text


def test_other_weight_files_are_refused(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "optimizer.safetensors")
    assert "optimizer.safetensors: a server would read this file" in problem(folder)


def test_absolute_d2t_is_named(folder: Path) -> None:
    def absolute(tensors: dict[str, Tensor]) -> None:
        tensors["d2t"] = tensors["d2t"] + torch.arange(len(tensors["d2t"]))

    change_tensors(folder, absolute)
    assert "absolute target tokens" in problem(folder)
    with fails("unservable-draft", "absolute"):
        load_draft(folder)


@given(ids=st.sets(st.integers(0, 29), min_size=1, max_size=30))
def test_any_ascending_vocabulary_is_right_and_its_absolute_form_is_not(ids: set[int]) -> None:
    chosen = torch.tensor(sorted(ids))
    t2d = torch.zeros(30, dtype=torch.bool)
    t2d[chosen] = True
    offsets = chosen - torch.arange(len(chosen))
    assert vocab_problems(offsets, t2d) == []
    if not torch.equal(offsets, chosen):
        assert "absolute" in vocab_problems(chosen, t2d)[0]


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(3, 100, "outside the vocabulary"), (5, -3, "does not ascend"), (11, None, "does not mark")],
)
def test_a_broken_vocabulary_is_described(at: int, value: int | None, said: str) -> None:
    t2d = torch.zeros(40, dtype=torch.bool)
    t2d[10:34:2] = True
    d2t = torch.arange(10, 34, 2) - torch.arange(12)
    d2t[at] = value if value is not None else d2t[at] + 1
    assert said in " ".join(vocab_problems(d2t, t2d))


def test_a_value_too_large_for_the_type_is_refused(tmp_path: Path) -> None:
    state = draft_state()
    state["fc.weight"][0, 0] = 1e6
    with fails("weights-not-finite", "1", "float16"):
        save_draft(tmp_path, state, CONFIG, dtype=torch.float16)


def test_specforge_folder_with_embedding_and_bin_weights_loads(tmp_path: Path) -> None:
    state = draft_state()
    embedding = torch.randn(40, 16)
    raw = CONFIG.to_sglang()
    for key in ("eagle_config", "dtype", "rope_parameters", "eagle_aux_hidden_state_layer_ids"):
        del raw[key]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    torch.save({**state, "embed_tokens.weight": embedding}, tmp_path / "pytorch_model.bin")
    with fails("aux-layers", "eagle_aux_hidden_state_layer_ids"):
        load_draft(tmp_path)
    config, loaded = load_draft(tmp_path, aux_layers=(0, 2, 5))
    assert config.aux_layers == (0, 2, 5)
    assert config.own_embedding
    assert torch.equal(loaded.pop("embed_tokens.weight"), embedding)
    assert loaded.keys() == state.keys()


class Unpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled code ran",))


def test_bin_weights_never_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_sglang()))
    torch.save({"fc.weight": Unpickled()}, tmp_path / "pytorch_model.bin")
    with fails("pickle", "pytorch_model.bin"):
        load_draft(tmp_path)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("cut", [0, 5, 200])
def test_a_cut_off_file_is_a_clear_error(folder: Path, cut: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with fails("damaged-file", "model.safetensors"):
        load_draft(folder)


def test_folders_that_hold_no_draft(tmp_path: Path) -> None:
    with fails("not-a-draft"):
        load_draft(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with fails("bad-json"):
        load_draft(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_sglang()))
    with fails("no-weights"):
        load_draft(tmp_path)


def test_an_independent_writers_folder(shared: Path) -> None:
    folder = shared / "engines" / "tiny_eagle3" / "draft"
    assert "eagle_config is missing" in problem(folder)
    config, state = load_draft(folder, aux_layers=(1, 3, 4))
    Draft(config).load_state_dict(state)
