"""eagle3 export --layout gguf: what llama.cpp reads, name by name, and what it cannot serve."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from eagle3cli.models.checkpoint import load_draft, save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from tests.conftest import RunCli
from tests.tiny import tiny_tokenizer

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_norm_2": "hidden_norm",
    "ffn_norm": "post_attention_layernorm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of what is written as it is, and ours."""


def write(folder: Path, tiny: Path, **changed: Any) -> DraftConfig:
    """A random draft of the tiny target, plain but for ``changed``."""
    torch.manual_seed(0)
    raw = json.loads((tiny / "config.json").read_text())
    config = DraftConfig.from_target(raw, draft_vocab_size=50)
    config = replace(config, norm_output=False, **changed)
    draft = Draft(config)
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[100:200:2] = True
    draft.set_vocab(t2d.nonzero()[:, 0] - torch.arange(50), t2d)
    for weight in draft.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.05)
    save_draft(folder, draft.serving_state(), config, dtype=torch.float32)
    return config


@pytest.fixture
def words(tiny: Path, tmp_path: Path) -> tuple[object, ...]:
    write(tmp_path / "plain", tiny)
    return ("--draft-model-path", "plain", "--target-model-path", tiny, "--layout", "gguf", "--output-path", "out")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(str(path))
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {tensor.name: tensor for tensor in reader.tensors}


def pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's own ``permute``: rotated halves become neighbours."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def test_every_value_and_tensor(run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path) -> None:
    ran = run_cli("export", *words, "--outtype", "f32", "--json")
    assert ran.code == 0, ran.err
    line = "llama-server -m tiny.gguf --model-draft out/draft-F32.gguf --spec-type draft-eagle3 --spec-draft-n-max 5 "
    line = line.replace("tiny.gguf", f"{tiny.name}.gguf") + "--host 127.0.0.1 --port 30000"
    assert ran.json["serve_lines"] == {"llama.cpp": line}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--spec-type draft-eagle3" in card
    assert "- llama.cpp" in card
    values, tensors = read(tmp_path / "out" / "draft-F32.gguf")
    config, state = load_draft(tmp_path / "plain")
    own = {key.removeprefix("eagle3."): value for key, value in values.items() if key.startswith("eagle3.")}
    assert values["general.architecture"] == "eagle3"
    assert own["target_layers"] == [2, 4, 5]  # the layers whose inputs are the outputs of 1, 3 and 4
    assert own["rope.freq_base"] == config.rope_theta
    assert own["attention.layer_norm_rms_epsilon"] == pytest.approx(config.rms_norm_eps)
    assert (own["block_count"], own["vocab_size"], own["context_length"]) == (1, 320, 512)
    assert (own["attention.head_count"], own["attention.head_count_kv"], own["attention.key_length"]) == (4, 2, 16)
    assert (own["target_hidden_size"], own["norm_before_fc"], own["norm_before_residual"]) == (64, False, False)
    expected = {"fc.weight": "fc.weight", "output_norm.weight": "norm.weight", "output.weight": "lm_head.weight"}
    expected |= {f"blk.0.{theirs}.weight": f"midlayer.{ours}.weight" for theirs, ours in LAYER.items()}
    for theirs, ours in expected.items():
        assert np.array_equal(tensors[theirs].data, state[ours].numpy()), theirs
    for part, heads in (("q", 4), ("k", 2)):
        rows = state[f"midlayer.self_attn.{part}_proj.weight"].numpy()
        assert np.array_equal(tensors[f"blk.0.attn_{part}.weight"].data, pairs(rows, heads))
    assert tensors["d2t"].data.tolist() == list(range(100, 200, 2))  # tokens, not offsets
    assert tensors["d2t"].tensor_type.name == "I64"
    assert tensors.keys() == {*expected, "blk.0.attn_q.weight", "blk.0.attn_k.weight", "d2t"}
    tokenizer = tiny_tokenizer()
    tokens = values["tokenizer.ggml.tokens"]
    assert len(tokens) == 320
    assert all(tokens[number] == text for text, number in tokenizer.get_vocab().items())
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.eos_token_id"]) == ("gpt2", tokenizer.eos_token_id)
    assert values["tokenizer.chat_template"] == tokenizer.chat_template


@pytest.mark.parametrize(
    ("outtype", "options", "error"),
    [("BF16", (), 0.01), ("F16", ("--outtype", "f16"), 0.001), ("Q8_0", ("--outtype", "q8_0"), 0.01)],
)
def test_types_of_weights(
    run_cli: RunCli, words: tuple[object, ...], tmp_path: Path, outtype: str, options: tuple[str, ...], error: float
) -> None:
    ran = run_cli("export", *words, *options)
    assert ran.code == 0, ran.err
    values, tensors = read(tmp_path / "out" / f"draft-{outtype}.gguf")
    assert tensors["fc.weight"].tensor_type.name == outtype
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    assert values["general.file_type"] == {"BF16": 32, "F16": 1, "Q8_0": 7}[outtype]
    exact = load_draft(tmp_path / "plain")[1]["fc.weight"].numpy()
    rounded = gguf.dequantize(tensors["fc.weight"].data, tensors["fc.weight"].tensor_type)
    assert 0 < np.abs(rounded - exact).max() < error * np.abs(exact).max()
    again = run_cli("export", *words, *options)
    assert (again.code, "holds this draft already" in again.err) == (0, True), again.err
    other = run_cli("export", *words, "--outtype", "f32")
    assert (other.code, other.error == "foreign-files") == (2, True)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"fc_norm": True}, "fc_norm: llama.cpp has no norms of single auxiliary layers"),
        ({"num_hidden_layers": 2}, "2 layers; llama.cpp reads exactly one"),
        ({"aux_layers": (0, 1, 3, 5)}, "4 auxiliary layers; llama.cpp reads exactly three"),
        ({"aux_layers": (1, 3), "norm_before_fc": True}, "2 auxiliary layers; llama.cpp reads exactly three"),
        ({"aux_layers": (1, 3, 7)}, "it reads layer 7, the target's last"),
    ],
)
def test_what_llamacpp_cannot_serve(
    run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    write(tmp_path / "plain", tiny, **changed)
    ran = run_cli("export", *words)
    assert (ran.code, reason in ran.err) == (1, True), ran.err
    assert not (tmp_path / "out").exists()


def test_the_state_behind_the_norm_is_refused(
    run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path
) -> None:
    config, state = load_draft(tmp_path / "plain")
    save_draft(tmp_path / "plain", state, replace(config, norm_output=True), dtype=torch.float32)
    ran = run_cli("export", *words)
    assert (ran.code, ran.error == "unservable-draft" and "--serve-with" in ran.err) == (1, True), ran.err


def test_one_layer_is_read_as_three(run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "plain", tiny, aux_layers=(3,))
    ran = run_cli("export", *words, "--outtype", "f32")
    assert ran.code == 0, ran.err
    assert "auxiliary layers [2, 4] were added with zeros in fc" in ran.err
    values, tensors = read(tmp_path / "out" / "draft-F32.gguf")
    assert values["eagle3.target_layers"] == [3, 4, 5]
    fc = load_draft(tmp_path / "plain")[1]["fc.weight"].numpy()
    assert np.array_equal(tensors["fc.weight"].data, np.concatenate([np.zeros_like(fc), fc, np.zeros_like(fc)], 1))


def test_options_that_llamacpp_reads(run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "plain", tiny, norm_before_fc=True, norm_before_residual=True, own_embedding=True)
    ran = run_cli("export", *words, "--outtype", "f32")
    assert ran.code == 0, ran.err
    values, tensors = read(tmp_path / "out" / "draft-F32.gguf")
    assert (values["eagle3.norm_before_fc"], values["eagle3.norm_before_residual"]) == (True, True)
    state = load_draft(tmp_path / "plain")[1]
    assert np.array_equal(tensors["enc.output_norm.weight"].data, state["input_norm.weight"].numpy())
    assert np.array_equal(tensors["token_embd.weight"].data, state["embed_tokens.weight"].numpy())


def test_a_whole_vocabulary_needs_no_map(
    run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path
) -> None:
    config = DraftConfig.from_target(json.loads((tiny / "config.json").read_text()), draft_vocab_size=320)
    draft = Draft(replace(config, norm_output=False))
    save_draft(tmp_path / "plain", draft.serving_state(), draft.config, dtype=torch.float32)
    assert run_cli("export", *words).code == 0
    assert "d2t" not in read(tmp_path / "out" / "draft-BF16.gguf")[1]


def test_rope_is_what_it_comes_to(run_cli: RunCli, words: tuple[object, ...], tiny: Path, tmp_path: Path) -> None:
    scaling = {
        **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 64,
    }
    write(tmp_path / "plain", tiny, rope_scaling=scaling)
    assert run_cli("export", *words).code == 0
    values, tensors = read(tmp_path / "out" / "draft-BF16.gguf")
    expected = []
    for channel in range(8):  # as llama.cpp's converter computes it
        wavelength = 2 * math.pi * 10000.0 ** (2 * channel / 16)
        smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
        middle = 1 / ((1 - smooth) / 8.0 + smooth)
        expected.append(1.0 if wavelength < 16 else 8.0 if wavelength > 64 else middle)
    assert tensors["rope_freqs.weight"].data == pytest.approx(np.array(expected), rel=1e-5)
    assert "eagle3.rope.scaling.attn_factor" not in values
    write(tmp_path / "plain", tiny, rope_scaling={"rope_type": "yarn", "factor": 4.0, **_original(128)})
    assert run_cli("export", *words, "--overwrite").code == 0
    values, _ = read(tmp_path / "out" / "draft-BF16.gguf")
    assert values["eagle3.rope.scaling.attn_factor"] == pytest.approx(0.1 * math.log(4.0) + 1.0)


def _original(context: int) -> dict[str, int]:
    return {"original_max_position_embeddings": context}


def test_without_a_target_and_with_a_wrong_type(run_cli: RunCli, words: tuple[object, ...]) -> None:
    nobody = run_cli("export", "--draft-model-path", "plain", "--layout", "gguf")
    assert (nobody.code, nobody.error == "missing-target") == (2, True), nobody.err
    folder = run_cli("export", "--draft-model-path", "plain", "--outtype", "q8_0")
    assert (folder.code, folder.error == "invalid-value" and "--layout" in folder.err) == (2, True), folder.err
