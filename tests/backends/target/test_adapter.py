"""A target with a LoRA adapter: what the two give together while they run, as one folder of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from eagle3cli.backends.target.adapter import adapter_of, merged_folder
from eagle3cli.backends.target.head import fingerprint, read_config
from eagle3cli.runtime.report import Silent
from tests.adapters import PREFIX, live_model, make_adapter, write_adapter
from tests.failing import fails
from tests.families import family_target
from tests.tiny import HIDDEN, VOCAB, tiny_target

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = torch.arange(3, 60)[None]
PATTERNS = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {r"layers\.[12]\.mlp\.down_proj": 32, "k_proj": 6}}


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def merge(target: Path, adapter: Path, parent: Path) -> Path:
    return Path(merged_folder(str(target), adapter, parent / "models", Silent()))


@torch.no_grad()
def states(model: nn.Module) -> list[Tensor]:
    given = model(IDS, output_hidden_states=True)
    return [*given.hidden_states, given.logits]


def assert_same(ours: Path, theirs: nn.Module) -> None:
    """Every layer's states and the logits, to 1e-5 of the largest."""
    model = AutoModelForCausalLM.from_pretrained(ours, dtype=torch.float32).eval()
    for one, other in zip(states(model), states(theirs), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize(
    ("modules", "config", "scales"),
    [
        (("q_proj", "down_proj"), {}, {"": 8 / 4}),
        (("o_proj",), {"use_rslora": True}, {"": 8 / sqrt(4)}),
        (("lm_head", "q_proj"), {}, {"": 8 / 4}),
        (
            ("q_proj", "k_proj", "down_proj"),
            PATTERNS,
            {"layers.1.mlp.down_proj": 8.0, "layers.2.mlp.down_proj": 8.0, "k_proj": 3.0, "": 2.0},
        ),
    ],
)
def test_states_are_those_of_the_target_and_the_adapter_side_by_side(
    tmp_path: Path, modules: tuple[str, ...], config: dict[str, Any], scales: dict[str, float]
) -> None:
    target = tiny_target(tmp_path / "base", "qwen2")
    adapter = make_adapter(tmp_path / "mine", target, modules, **config)
    folder = merge(target, adapter, tmp_path)
    assert_same(folder, live_model(target, adapter, scales))
    assert folder.name.startswith("base+mine-")
    assert adapter_of(read_config(str(folder))) == ("base", "mine")


def test_dora_gives_rows_their_trained_norms(tmp_path: Path, tiny: Path) -> None:
    name = "model.layers.3.self_attn.q_proj"
    a, b, norms = torch.randn(4, HIDDEN), torch.randn(HIDDEN, 4), torch.rand(HIDDEN) + 0.5
    parts = {f"{PREFIX}{name}.lora_{side}.weight": value for side, value in (("A", a), ("B", b))}
    parts[f"{PREFIX}{name}.lora_magnitude_vector"] = norms
    adapter = write_adapter(tmp_path / "dora", parts, use_dora=True)
    merged = load_file(merge(tiny, adapter, tmp_path) / "model.safetensors")[f"{name}.weight"]
    summed = load_file(tiny / "model.safetensors")[f"{name}.weight"] + 2 * b @ a
    torch.testing.assert_close(merged.norm(dim=1), norms)
    torch.testing.assert_close(nn.functional.normalize(merged, dim=1), nn.functional.normalize(summed, dim=1))


def test_a_trained_head_is_no_longer_the_embedding(tmp_path: Path, tiny: Path) -> None:
    """The tiny Llama's head is its embedding; an adapter on the head alone leaves the embedding as it was."""
    a, b = torch.randn(4, HIDDEN) / 8, torch.randn(VOCAB, 4) / 8
    tensors = {f"{PREFIX}lm_head.lora_{side}.weight": part for side, part in (("A", a), ("B", b))}
    folder = merge(tiny, write_adapter(tmp_path / "head", tensors), tmp_path)
    before, after = (load_file(place / "model.safetensors") for place in (tiny, folder))
    torch.testing.assert_close(after[EMBEDDING], before[EMBEDDING], rtol=0, atol=0)
    torch.testing.assert_close(after[HEAD], before[EMBEDDING] + 2 * b @ a)
    assert read_config(str(folder))["tie_word_embeddings"] is False


@pytest.mark.parametrize("tied", [False, True])
def test_trained_copies_and_added_tokens(tmp_path: Path, tiny: Path, tied: bool) -> None:
    new = torch.randn(VOCAB + 8, HIDDEN)
    names = ("model.embed_tokens", "model.norm") if tied else ("model.embed_tokens", "model.norm", "lm_head")
    values = {"model.embed_tokens": new, "lm_head": 2 * new, "model.norm": torch.rand(HIDDEN)}
    tensors = {f"{PREFIX}{name}.weight": values[name] for name in names}
    adapter = write_adapter(tmp_path / "more", tensors, modules_to_save=list(names), ensure_weight_tying=tied)
    folder = merge(tiny, adapter, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == VOCAB + 8
    torch.testing.assert_close(model.get_output_embeddings().weight.data, new if tied else 2 * new)
    torch.testing.assert_close(model.model.norm.weight.data, values["model.norm"])


def test_a_folder_is_written_once_and_is_another_target(tmp_path: Path, tiny: Path) -> None:
    """Also where the adapter changes nothing that a sample of the weights would show."""
    adapter = make_adapter(tmp_path / "one", tiny, ("layers.2.self_attn.q_proj",))
    (tmp_path / "models" / ".llama+one-12345678.tmp-999999999").mkdir(parents=True)  # of one that kill -9 ended
    folder = merge(tiny, adapter, tmp_path)
    assert list((tmp_path / "models").iterdir()) == [folder]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert merge(tiny, adapter, tmp_path) == folder
    assert merge(folder, adapter, tmp_path) == folder, "it is in it already"
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    other = merge(tiny, make_adapter(tmp_path / "two", tiny, ("layers.2.self_attn.q_proj",), lora_alpha=9), tmp_path)
    assert len({fingerprint(str(place)) for place in (tiny, folder, other)}) == 3


def test_the_type_of_the_weights_and_an_own_tokenizer_are_kept(tmp_path: Path, tiny: Path) -> None:
    base = tmp_path / "half"
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    model.save_pretrained(base, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((tiny / name).read_bytes())
    adapter = make_adapter(tmp_path / "mine", tiny)
    (adapter / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    folder = merge(base, adapter, tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    for name, file in index.items():
        assert load_file(folder / file)[name].dtype == torch.bfloat16
    assert (folder / "chat_template.jinja").exists()
    assert not (folder / "tokenizer_config.json").exists(), "of another tokenizer"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"peft_type": "IA3"}, ["adapter-unusable", "peft_type", "IA3"]),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, ["adapter-unusable", "target_parameters"]),
        (
            {"trainable_token_indices": [3], "layer_replication": [[0, 2]]},
            ["adapter-unusable", "layer_replication", "trainable_token_indices"],
        ),
        ({"init_lora_weights": "pissa_niter_4"}, ["adapter-unusable", "pissa_niter_4"]),
        ({"rank_pattern": {"q_proj": 9}}, ["damaged-file", "4", "9"]),
        ({"r": "many"}, ["bad-json", "adapter_config.json"]),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_reason(
    tmp_path: Path, tiny: Path, config: dict[str, Any], error: list[str]
) -> None:
    adapter = make_adapter(tmp_path / "odd", tiny)
    (adapter / "adapter_config.json").write_text(
        json.dumps({**json.loads((adapter / "adapter_config.json").read_text()), **config})
    )
    with fails(*error):
        merge(tiny, adapter, tmp_path)
    assert not list((tmp_path / "models").glob("*"))


def test_an_adapter_of_another_target_is_refused(tmp_path: Path, tiny: Path) -> None:
    wide = {f"{PREFIX}model.layers.0.self_attn.q_proj.lora_{s}.weight": torch.zeros(4, 8).T[:, :4] for s in "AB"}
    cases = {
        "layers.77": {f"{PREFIX}model.layers.77.mlp.up_proj.weight": torch.zeros(2, 2)},
        "'B'": {f"{PREFIX}model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(4, HIDDEN)},
        "q_proj": {**wide, f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 8)},
        "lora_C": {f"{PREFIX}model.layers.0.mlp.up_proj.lora_C.weight": torch.zeros(4, 8)},
    }
    for number, (value, tensors) in enumerate(cases.items()):
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with fails("adapter-unusable", value):
            merge(tiny, write_adapter(tmp_path / str(number), contiguous), tmp_path)


def test_a_quantised_target_is_refused(tmp_path: Path, tiny: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    raw = {**json.loads((tmp_path / "config.json").read_text()), "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with fails("adapter-unusable", "quantised"):
        merge(tmp_path, make_adapter(tmp_path / "mine", tiny), tmp_path)


def test_modules_of_a_loaded_model_are_found_under_the_files_names(tmp_path: Path) -> None:
    """A model for pictures is saved under other names than its modules have; its picture part has layers, too."""
    target = family_target(tmp_path / "base", "qwen2.5-vl")
    loaded = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32).eval()
    (module,) = [name for name, _ in loaded.named_modules() if name.endswith("language_model.layers.0.mlp.up_proj")]
    a, b = torch.randn(4, 64) / 8, torch.randn(loaded.get_submodule(module).out_features, 4) / 8
    tensors = {f"{PREFIX}{module}.lora_{side}.weight": part for side, part in (("A", a), ("B", b))}
    folder = merge(target, write_adapter(tmp_path / "mine", tensors), tmp_path)
    merged = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    changed = [name for name, weight in merged.state_dict().items() if not weight.equal(loaded.state_dict()[name])]
    assert changed == [f"{module}.weight"]
    new = merged.state_dict()[f"{module}.weight"]
    torch.testing.assert_close(new, loaded.state_dict()[f"{module}.weight"] + 2 * b @ a)
