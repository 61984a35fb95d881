"""The page for people who know SpecForge: each of its flags is named, and each of ours named there exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagle3cli.settings.fields import fields
from tests.conftest import ROOT, RunCli
from tests.examples.documented import MODULES, flags_of, lines_of, parsed

PAGE = ROOT / "examples" / "coming-from-specforge.md"
TEXT = PAGE.read_text(encoding="utf-8")
SHARED = """sglang-attention-backend sglang-mem-fraction-static sglang-context-length sglang-enable-nccl-nvls
    sglang-enable-symm-mem sglang-enable-torch-compile sglang-enable-dp-attention sglang-enable-dp-lm-head
    sglang-ep-size"""
TRAINING = """target-model-path draft-model-config embedding-key train-data-path eval-data-path num-epochs learning-rate
    max-length warmup-ratio total-steps max-grad-norm ttt-length chat-template is-preformatted tp-size cache-key
    cache-dir output-dir eval-interval save-interval seed dist-timeout resume report-to
    wandb-project wandb-name wandb-key swanlab-project swanlab-name swanlab-key mlflow-tracking-uri
    mlflow-experiment-name mlflow-run-name
    build-dataset-num-proc verbose profile profile-start-step profile-num-steps profile-record-shapes"""
CAPTURE = """target-model-path data-path max-length chat-template num-samples build-dataset-num-proc tp-size batch-size
    cache-dir output-path dist-timeout num-io-threads num-workers io-queue-size file-group-size"""
THEIRS = {
    "prepare_data.py": "dataset output-path data-path sample-size split-eval opc-subset",
    "generate_data_by_target.py": "raw-data-file output-dir model-name max-concurrency num-per-shard disable-tqdm "
    "max-tokens server-address-port is-reasoning-model is-gpt-oss",
    "gen_oss_dataset.py": "input-dir output-dir shard-step",
    "regenerate_train_data.py": "model reasoning is-gpt-oss temperature top-p top-k repetition-penalty max-tokens "
    "concurrency input-file-path output-file-path num-samples resume server-address",
    "validate_regenerated_data.py": "data-path expect-non-reasoning expect-reasoning strict-think-markers",
    "expand_reasoning_conversations.py": "input-file-path output-file-path skipped-file-path",
    "build_eagle3_dataset.py": "data-path cache-dir output-path max-length num-samples chat-template model-path "
    "build-dataset-num-proc",
    "build_eagle3_dataset_cache.py": "target-model-path draft-model-config train-data-path eval-data-path max-length "
    "chat-template cache-dir seed view-train-data debug build-dataset-num-proc",
    "prepare_hidden_states.py": CAPTURE + " is-vlm enable-aux-hidden-states aux-hidden-states-layers trust-remote-code "
    "is-preformatted model-download-dir compress compression-level strategy draft-model-config " + SHARED,
    "train_eagle3_online.py": TRAINING + " is-vlm batch-size dp-size draft-accumulation-steps attention-backend "
    "min-pixels max-pixels target-model-backend log-interval",
    "train_eagle3_offline.py": TRAINING + " lm-head-key train-hidden-states-path eval-hidden-states-path "
    "draft-global-batch-size draft-micro-batch-size log-steps draft-attention-backend",
    "train_eagle3.py": TRAINING + " trust-remote-code lm-head-key is-vlm shard-target-output target-model-backend "
    "train-hidden-states-path eval-hidden-states-path train-only-last-turn dataloader-num-workers max-num-steps "
    "batch-size ckpt-dir log-interval draft-accumulation-steps lk-loss-type kl-scale kl-decay sp-ulysses-size "
    "sp-ring-size compact-teacher compact-teacher-chunk-size attention-backend model-download-dir min-pixels "
    "max-pixels wandb-offline wandb-dir " + SHARED,
    "specforge train": "config role node-rank plan",
    "specforge export": "to checkpoint draft-config output-dir vocab-mapping embedding-source embedding-key",
    "specforge benchmark": "model dataset max-new-tokens temperature top-p top-k max-samples num-prompts concurrency "
    "base-url timeout-seconds enable-thinking trust-remote-code output-json",
    "bench_eagle3.py": "skip-launch-server timeout-for-server-launch num-prompts output-dir config-list name "
    "benchmark-list enable-multi-turn-conversation speculative-algorithm speculative-num-steps "
    "speculative-eagle-topk speculative-num-draft-tokens speculative-draft-model-path cuda-graph-max-bs "
    "mem-fraction-static tp-size max-running-requests trust-remote-code disable-radix-cache ep-size "
    "attention-backend quantization dtype",
}
"""SpecForge's flags by script, as its sources list them (0.1 and 0.2.0)."""


def sections() -> Iterator[tuple[str, str, str]]:
    """Heading, command of ours and text of each part of the page that maps flags."""
    for part in TEXT.split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        if named := re.search(r"→ `eagle3 ([a-z-]+)`", heading):
            yield heading, named[1], text


def rows(text: str) -> Iterator[tuple[list[str], str, list[str]]]:
    """Their names, the cell for ours, and our names in it, of each line of the tables."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].startswith("`"):
            yield re.findall(r"`([^`]+)`", cells[0]), cells[1], re.findall(r"`([^`]+)`", cells[1])


def test_every_script_and_flag_of_specforge_is_named() -> None:
    for script, flags in THEIRS.items():
        assert script in TEXT, script
        texts = [text for heading, _, text in sections() if script in heading or script == "gen_oss_dataset.py"]
        named = {name for text in texts for theirs, _, _ in rows(text) for name in theirs}
        assert {f"--{flag}" for flag in flags.split()} - named == set(), script


@pytest.mark.parametrize(("heading", "name", "text"), list(sections()), ids=lambda value: value[:30])
def test_our_flags_and_settings_exist(heading: str, name: str, text: str) -> None:
    for theirs, cell, ours in rows(text):
        assert cell, f"{theirs} has nothing beside it"
        commands = [word.split()[1] for word in ours if word.startswith("eagle3 ")]
        assert set(commands) <= set(MODULES), theirs
        known = flags_of(commands[0] if commands else name)
        for word in ours:
            if word.startswith("--"):
                assert word in known, f"{heading}: {word} beside {theirs}"
            elif re.fullmatch(r"[a-z_]+\.[a-z_]+", word):
                assert word in fields(), f"{heading}: {word} beside {theirs}"


def test_flags_in_the_remarks_exist_too() -> None:
    every = {flag for name in MODULES if name not in ("config",) for flag in flags_of(name)}
    remarks = [line.strip("|").split("|")[2] for line in TEXT.splitlines() if line.count("|") == 4]
    words = {word for remark in remarks for word in re.findall(r"(--[a-z][a-z-]+)", remark)}
    unnegated = {re.sub(r"^--no-", "--", word) for word in words} - {"--quantization"}  # SGLang's own
    assert unnegated <= every


@pytest.mark.parametrize("line", lines_of(PAGE, "eagle3"))
def test_commands_parse(line: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parsed(line, run_cli, monkeypatch, tmp_path)
