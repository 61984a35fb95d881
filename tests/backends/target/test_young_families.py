"""Young families: states and logits are the model's own, the draft config is read off the target's, and local decoding
with a draft writes the model's own text or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from eagle3cli.backends.target.head import read_head, read_target_tensors
from eagle3cli.backends.target.hf import HfTarget, load_target, mean_stream, read_target_config
from eagle3cli.backends.target.positions import NoCache, cached, keeps_positions
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.decode import generate
from eagle3cli.serving.decode.batches import decoding
from eagle3cli.serving.decode.decode import decode
from eagle3cli.settings.models import TargetSettings
from tests.backends.target.test_families import NORMS, OLD, gain_of
from tests.conftest import SharedTarget
from tests.failing import fails
from tests.families import COMMON, DECODED, EXPERTS, by_family, family_target
from tests.young_families import ALSO_DECODED, NOT_LOADED, REFUSED, YOUNG_FAMILIES, YOUNG_WRAPPERS

FINAL_NORMS = (*NORMS, "norm_f", "ln_f")
LOADED = [name for name in (*DECODED, *YOUNG_FAMILIES, *YOUNG_WRAPPERS, *ALSO_DECODED) if name not in NOT_LOADED]
NEW_TOKENS = 5
BEGIN = [7, 90, 41, 12, 205, 77, 140, 33, 9]
ROWS = [[*BEGIN, *range(20, 30)], [*BEGIN, 60, 5, 250]]
"""A common beginning, which capture runs once where it can."""


def written(target: HfTarget, row: list[int]) -> list[int]:
    """What the model itself writes, read anew from the beginning for each token."""
    ids = list(row)
    for _ in range(NEW_TOKENS):
        logits = target.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(row) :]


@pytest.mark.skipif(OLD, reason="classes of transformers 5")
@pytest.mark.parametrize("name", by_family(LOADED))
@torch.no_grad()
def test_from_the_config_to_lossless_decoding(shared_target: SharedTarget, name: str) -> None:
    folder = shared_target(name)
    settings = TargetSettings(model_path=str(folder), device="cpu")
    target = load_target(settings, Silent())
    from_files = read_head(str(folder), read_target_config(settings))
    for row, (aux, last) in zip(ROWS, target.capture(ROWS), strict=True):
        out = target.model(input_ids=torch.tensor([row]), output_hidden_states=True)
        want = torch.cat([mean_stream(out.hidden_states[layer + 1])[0] for layer in target.aux_layers], -1)
        ((alone, _),) = target.capture([row])
        for states in (aux, alone):
            torch.testing.assert_close(states, want, rtol=1e-4, atol=1e-4)
        if keeps_positions(target.model):  # how a GPU runs it
            options = {"use_cache": False, **cached(target.decoder, NoCache())}
            states = target.decoder(input_ids=torch.tensor([row]), **options).last_hidden_state[0]
            torch.testing.assert_close(states, last, rtol=1e-4, atol=1e-4)
        assert target.head.top_tokens(last).tolist() == out.logits[0].argmax(-1).tolist()
        for head in (target.head, from_files):
            torch.testing.assert_close(head(last), out.logits[0], rtol=1e-4, atol=1e-4)
    norm = next(getattr(target.decoder, part) for part in FINAL_NORMS if hasattr(target.decoder, part))
    final_norm = read_target_tensors(str(folder), len(target.layers) - 1)["final_norm"]
    torch.testing.assert_close(final_norm, gain_of(norm), rtol=1e-4, atol=1e-4)

    raw = json.loads((folder / "config.json").read_text())
    config = DraftConfig.from_target(raw, draft_vocab_size=64)
    assert config == DraftConfig.from_target(read_target_config(settings), draft_vocab_size=64)
    assert config.aux_layers == target.aux_layers or "deepstack_visual_indexes" in str(raw)
    assert (config.hidden_size, config.vocab_size) == (target.hidden_size, target.vocab_size)
    draft = Draft(config)
    ids = torch.arange(5, 69)
    draft.set_vocab(ids - torch.arange(64), torch.zeros(config.vocab_size, dtype=torch.bool).index_fill(0, ids, True))

    def decoded() -> list[list[int]]:
        replies = decode(target, draft, ROWS, k=2, max_new_tokens=NEW_TOKENS, eos_ids=frozenset(), batch_size=2)
        return [reply.token_ids for reply in replies]

    if name in REFUSED:
        with fails("unsupported-engine"):
            decoded()
    else:
        assert decoded() == [written(target, row) for row in ROWS]


@pytest.mark.skipif(OLD, reason="classes of transformers 5")
@torch.no_grad()
def test_what_keys_are_chosen_by_grows_with_a_reply(
    shared_target: SharedTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_target("deepseek-v3.2")
    target = load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())
    monkeypatch.setattr(generate, "SLOT_STEP", 1)
    with decoding(target.model, 2, frozenset()) as decoder:
        for index, row in enumerate(ROWS):
            decoder.add(index, row, NEW_TOKENS)
        replies = {one.index: one.token_ids for _ in range(2 * NEW_TOKENS) for one in decoder.step()}
    assert isinstance(decoder, generate.Decoder)
    assert [replies[0], replies[1]] == [written(target, row) for row in ROWS]


@pytest.mark.skipif(OLD, reason="classes of transformers 5")
def test_a_model_of_streams_side_by_side_is_refused(shared_target: SharedTarget) -> None:
    """Qwen4: its layers hand on several hidden states in one, and no server says which of them a draft gets."""
    folder = shared_target("qwen4-exp")
    with fails("unloadable-target", "Qwen4ExpForCausalLM"):
        load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())


@pytest.mark.skipif(OLD, reason="classes of transformers 5")
def test_a_model_that_thinks_and_talks_is_refused_before_it_is_read(tmp_path: Path) -> None:
    transformers.Qwen3OmniMoeConfig().save_pretrained(tmp_path)
    with fails("unloadable-target", "qwen3_omni_moe"):
        load_target(TargetSettings(model_path=str(tmp_path), device="cpu"), Silent())


def drop(folder: Path, ending: str) -> dict[str, torch.Tensor]:
    """Take the tensors of this ending out of a target's file; returns them."""
    file = folder / "model.safetensors"
    state = load_file(file)
    dropped = {name: state.pop(name) for name in [*state] if name.endswith(ending)}
    save_file(state, file, metadata={"format": "pt"})
    return dropped


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    folder = family_target(tmp_path / "target", "llama")
    drop(folder, "layers.3.mlp.up_proj.weight")
    with fails("damaged-file", "1", "model.layers.3.mlp.up_proj.weight"):
        load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="classes of transformers 5")
def test_buffers_that_the_config_tells_are_computed_and_others_are_missing(tmp_path: Path) -> None:
    """MiniMax-Text: decays that follow from the number of heads. DeepSeek-V3: a bias that training found."""
    names = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
    config = transformers.MiniMaxConfig(**{**COMMON, **EXPERTS, "num_hidden_layers": 3, "block_size": 16})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "minimax")
    dropped = {name: value for ending in names for name, value in drop(tmp_path / "minimax", ending).items()}
    assert len(dropped) == len(names)
    target = load_target(TargetSettings(model_path=str(tmp_path / "minimax"), device="cpu"), Silent())
    loaded = dict(target.model.named_buffers())
    for name, value in dropped.items():
        torch.testing.assert_close(loaded[name], value)

    folder = family_target(tmp_path / "target", "deepseek-v3")
    drop(folder, "layers.2.mlp.gate.e_score_correction_bias")
    with fails("damaged-file", "1", "model.layers.2.mlp.gate.e_score_correction_bias"):
        load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent())


@pytest.mark.skipif(OLD, reason="classes of transformers 5")
@pytest.mark.parametrize("text", [True, False])
def test_a_head_that_is_the_embedding_by_one_part_of_a_config(tmp_path: Path, text: bool) -> None:
    folder = family_target(tmp_path / "target", "qwen3-vl")
    drop(folder, "lm_head.weight")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    config["text_config"]["tie_word_embeddings"] = text
    (folder / "config.json").write_text(json.dumps(config))
    settings = TargetSettings(model_path=str(folder), device="cpu")
    if not text:
        with fails("damaged-file", "1", "lm_head.weight"):
            load_target(settings, Silent())
        return
    target = load_target(settings, Silent())
    assert torch.equal(target.head.weight_VH, target.embedding_VH)
