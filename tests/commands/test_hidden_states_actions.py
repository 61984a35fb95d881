"""eagle3 hidden-states verify, info, convert, import, and offline training on what they leave."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle3cli.commands import hidden_states
from eagle3cli.data.hidden_states.store import Store
from tests.commands.test_hidden_states import contents, write_data
from tests.conftest import RunCli
from tests.tiny import tiny_target

TRAIN = ("--total-steps", 3, "--batch-size", 2, "--ttt-length", 2, "--log-interval", 1, "--threads", 1, "--json")


@pytest.fixture
def place(run_cli: RunCli, tiny: Path, tmp_path: Path) -> Path:
    """A folder with a captured store of 20 rows."""
    data = write_data(tmp_path / "train.jsonl", 20, 0)
    flags = ("--model-path", tiny, "--data-path", data, "--draft-vocab-size", 200, "--states-dtype", "bfloat16")
    ran = run_cli("hidden-states", *flags, "--batch-tokens", 1, "--threads", 1)
    assert ran.code == 0, ran.err
    return tmp_path


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("action", hidden_states.COMMAND.actions, ids=lambda action: action.name)
def test_examples_parse_and_every_flag_has_help(
    action: hidden_states.Command, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = []
    replaced = dataclasses.replace(action, run=lambda settings, out: got.append(settings))
    others = tuple(replaced if a is action else a for a in hidden_states.COMMAND.actions)
    monkeypatch.setattr(hidden_states, "COMMAND", dataclasses.replace(hidden_states.COMMAND, actions=others))
    for example in action.examples:
        ran = run_cli(*shlex.split(example)[1:])
        assert ran.code == 0, ran.err
    assert len(got) == len(action.examples)
    shown = run_cli("hidden-states", action.name, "--help").out
    assert shown.startswith(f"Usage: eagle3 hidden-states {action.name} ")
    assert shown.rstrip().endswith(action.examples[-1])
    assert action.name in run_cli("hidden-states", "--help").out


def test_flags_before_the_action_are_not_lost(run_cli: RunCli) -> None:
    ran = run_cli("hidden-states", "--threads", 1, "verify", "x")
    assert (ran.code, ran.error == "command-line") == (2, True)
    assert run_cli("hidden-states", "verfy").error == "command-line"


@pytest.mark.slow
def test_a_flipped_byte_is_found_located_and_made_good(place: Path, run_cli: RunCli, tiny: Path) -> None:
    folder = place / "cache" / "hidden_states" / "train"
    sound = run_cli("hidden-states", "verify", "--json")
    assert sound.code == 0, sound.err
    (verdict,) = sound.json["stores"]
    assert verdict["good"] is True
    assert verdict["recomputed"]["aux_error"] == verdict["recomputed"]["last_error"] == 0
    assert verdict["recomputed"]["same_top"] == 1
    before, (shard, *_) = contents(folder), sorted(folder.glob("shard_*"))
    begin, end = Store(folder).shard(0).place(7)
    spoilt = bytearray(shard.read_bytes())
    spoilt[end - 40] ^= 1
    shard.write_bytes(spoilt)
    found = run_cli("hidden-states", "verify", folder)
    assert found.code == 1
    assert f"{shard.name}: row 7: checksum differs in bytes {begin} to {end}" in found.out
    assert f"fix: rm {shard}," in found.out
    shard.unlink()
    flags = ("--model-path", tiny, "--data-path", place / "train.jsonl", "--draft-vocab-size", 200)
    again = run_cli("hidden-states", *flags, "--states-dtype", "bfloat16", "--batch-tokens", 1, "--threads", 1)
    assert again.code == 0, again.err
    assert contents(folder) == before


def test_another_target_is_told_apart(place: Path, run_cli: RunCli) -> None:
    other = tiny_target(place / "other", seed=1)
    ran = run_cli("hidden-states", "verify", "--model-path", other)
    assert (ran.code, ran.error == "conflicting-options") == (2, True)
    assert run_cli("hidden-states", "verify", "--model-path", other, "--recompute", 0).code == 0


def test_info_tells_what_there_is(place: Path, run_cli: RunCli) -> None:
    told = run_cli("hidden-states", "info", "--json").json["stores"][0]
    assert (told["rows"], told["encoding"], told["complete"]) == (20, "bf16", True)
    assert told["smaller_than_specforge"] > 1
    shown = run_cli("hidden-states", "info", place / "cache" / "hidden_states" / "train").out
    assert "bytes per token" in shown
    nowhere = run_cli("hidden-states", "info", place / "nowhere")
    assert (nowhere.code, nowhere.error == "no-store") == (1, True)


@pytest.mark.slow
def test_converted_stores_train_alone_and_together(place: Path, run_cli: RunCli, tiny: Path) -> None:
    train = place / "cache" / "hidden_states" / "train"
    for encoding in ("int8", "int4"):
        ran = run_cli("hidden-states", "convert", train, "--encoding", encoding, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["bytes"] < ran.json["bytes_before"]
    assert run_cli("hidden-states", "convert", train, "--encoding", "bf16").code == 2
    both = (train.with_name("train-int8"), train.with_name("train-int4"))
    for name, stores in (("exact", [train]), ("int8", [both[0]]), ("joint", both)):
        words = ("--target-model-path", tiny, "--train-hidden-states-path", *stores, "--output-dir", name, *TRAIN)
        ran = run_cli("train", "--mode", "offline", *words)
        assert ran.code == 0, ran.err
    assert losses(place / "int8") == pytest.approx(losses(place / "exact"), rel=0.02)
    assert losses(place / "int8") != losses(place / "exact")
    assert "40 rows" in ran.err


@pytest.mark.slow
def test_offline_training_is_online_training_step_for_step(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    """A target of bfloat16 weights, every row by itself in both: the same numbers, to the last bit."""
    target, data = tmp_path / "target", write_data(tmp_path / "train.jsonl", 10, 0)
    shutil.copytree(tiny, target)
    weights = load_file(tiny / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in weights.items()}, target / "model.safetensors")
    common = ("--target-model-path", target, "--draft-vocab-size", 200, "--threads", 1)
    captured = run_cli("hidden-states", *common, "--data-path", data, "--states-dtype", "bfloat16", "--batch-tokens", 1)
    assert captured.code == 0, captured.err
    train = ("train", *common, "--draft-dtype", "float32", "--draft-init", "random", *TRAIN, "--batch-size", 1)
    online = ("--mode", "online", "--data-path", data, "--dtype", "bfloat16", "--output-dir", "on")
    for words in (online, ("--mode", "offline", "--output-dir", "off")):
        ran = run_cli(*train, *words)
        assert ran.code == 0, ran.err
    assert losses(tmp_path / "off") == losses(tmp_path / "on")


@pytest.mark.slow
def test_a_store_a_target_folder_and_a_draft_config_are_enough(place: Path, run_cli: RunCli, tiny: Path) -> None:
    """Nothing else of what capture and cache made is there any more, not even a tokenizer."""
    bare = place / "elsewhere"
    shutil.move(place / "cache" / "hidden_states" / "train", bare / "store")
    (bare / "target").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny / name, bare / "target" / name)
    config = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96}
    config |= {"vocab_size": 320, "draft_vocab_size": 64, "max_position_embeddings": 512}
    (bare / "draft.json").write_text(json.dumps(config))
    words = (
        "--target-model-path",
        "target",
        "--train-hidden-states-path",
        "store",
        "--draft-model-config",
        "draft.json",
    )
    batches = ("--draft-global-batch-size", 4, "--draft-micro-batch-size", 2)
    ran = run_cli("train", "--mode", "offline", *words, *TRAIN, *batches, cwd=bare)
    assert ran.code == 0, ran.err
    assert ran.json["steps"] == 3
    assert json.loads((bare / "runs/train/best/config.json").read_text())["num_attention_heads"] == 2


@pytest.mark.slow
def test_imported_files_train(place: Path, run_cli: RunCli, tiny: Path) -> None:
    source = Store(place / "cache" / "hidden_states" / "train")
    (place / "ckpt").mkdir()
    for number in range(len(source)):
        row = source[number]
        size = len(row.token_ids_S)
        aux, last = torch.zeros(1, size, 192), torch.zeros(1, size, 64)
        aux[0, : len(row.aux_UC)] = row.aux_UC.float()
        last[0, row.loss_mask_S.roll(1)] = 1.0
        raw = {"input_ids": row.token_ids_S, "loss_mask": row.loss_mask_S.long(), "aux_hidden_state": aux.bfloat16()}
        torch.save({**raw, "hidden_state": last.bfloat16()}, place / "ckpt" / f"data_{number:02}.ckpt")
    (place / "ckpt" / "data_99.ckpt").write_bytes(b"nothing")
    words = ("ckpt", "--model-path", tiny, "--draft-vocab-size", 100, "--output-path", "imported", "--encoding", "int8")
    ran = run_cli("hidden-states", "import", *words, "--json")
    assert ran.code == 3, ran.err
    assert (ran.json["rows"], ran.json["rejected"]) == (20, 1)
    assert "data_99" in (place / "imported" / "train" / "errors.jsonl").read_text()
    made = Store(place / "imported" / "train")
    assert torch.equal(made[3].token_ids_S, source[3].token_ids_S)
    words = ("--target-model-path", tiny, "--train-hidden-states-path", "imported/train", "--draft-init", "random")
    assert run_cli("train", "--mode", "offline", *words, *TRAIN).code == 0
    assert run_cli("hidden-states", "import", "--model-path", tiny).code == 2
