"""A .gguf file becomes a folder that any loader takes, with the tokenizer the model was trained with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle3cli.backends.target.gguf import folder as gguf
from eagle3cli.runtime import demo
from eagle3cli.runtime.report import Silent
from tests.failing import fails

HIDDEN, INNER, HEADS, LAYERS = 32, 48, 2, 2


def write_gguf(path: Path, pre: str = "smollm", stretch: str = "none") -> dict[str, np.ndarray]:
    """A tiny llama with a byte-level tokenizer in which "12" is one merge; ``stretch`` is the kind of RoPE's."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "12", "ab"]
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_string("llama.rope.scaling.type", stretch)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    draw = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.{name}.weight": (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.ffn_{name}.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER)}
    tensors = {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_file_becomes_a_plain_folder(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "tiny.F32.gguf")
    folder = gguf.local_folder(str(tmp_path / "tiny.F32.gguf"), tmp_path / "models", Silent())
    assert folder == str(tmp_path / "models" / "tiny.F32")
    assert "quantization_config" not in json.loads((Path(folder) / "config.json").read_text())
    assert json.loads((Path(folder) / "generation_config.json").read_text())["eos_token_id"] == 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(tensors["token_embd.weight"]))
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, torch.from_numpy(tensors["blk.1.ffn_up.weight"]))
    assert not list((tmp_path / "models").glob(".*"))


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["1", "2"]), ("gpt-2", ["12"])])
def test_digits_are_split_only_where_the_original_splits_them(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    write_gguf(tmp_path / "tiny.gguf", pre)
    folder = gguf.local_folder(str(tmp_path / "tiny.gguf"), tmp_path / "models", Silent())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("12") == pieces
    assert tokenizer.chat_template


def test_conversion_is_done_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = Path(gguf.local_folder(str(tmp_path / "tiny.gguf"), tmp_path / "models", Silent()))
    before = (folder / "config.json").stat().st_ino
    (folder / gguf.STRETCH_FILE).unlink()  # as older versions left it; RoPE is plain in both
    for _ in range(2):
        gguf.local_folder(str(tmp_path / "tiny.gguf"), tmp_path / "models", Silent())
        assert (folder / "config.json").stat().st_ino == before
        assert (folder / gguf.STRETCH_FILE).read_text() == "{}\n"
    write_gguf(tmp_path / "tiny.gguf", "gpt-2")
    gguf.local_folder(str(tmp_path / "tiny.gguf"), tmp_path / "models", Silent())
    assert (folder / "config.json").stat().st_ino != before


def test_folders_and_hub_ids_stay_as_they_are(tmp_path: Path) -> None:
    assert gguf.local_folder(str(tmp_path), tmp_path / "models", Silent()) == str(tmp_path)
    assert gguf.local_folder("someone/model", tmp_path / "models", Silent()) == "someone/model"


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with fails("no-such-path"):
        gguf.local_folder(str(tmp_path / "absent.gguf"), tmp_path, Silent())
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with fails("damaged-file", "broken.gguf"):
        gguf.local_folder(str(tmp_path / "broken.gguf"), tmp_path, Silent())
    assert not (tmp_path / "broken").exists()


def test_a_cut_file_is_refused_before_its_config_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    assert gguf.gguf_config(str(path)).model_type == "llama"
    path.write_bytes(path.read_bytes()[:200])
    for read in (gguf.gguf_config, lambda name: gguf.local_folder(name, tmp_path / "models", Silent())):
        with fails("damaged-file", "tiny.gguf") as error:
            read(str(path))
        assert "transformers cannot read it" not in str(error.value)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gguf.PACKAGES, "llm-absent", ("llm_absent", "a.gguf"))
    monkeypatch.setattr(demo, "MODEL", "llm-absent==1.0")
    with fails("missing-package", "--no-deps", "1.0"):
        gguf.packaged_file("llm-absent")
