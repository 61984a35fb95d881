"""The real llama-server: drafts that export wrote as GGUF, on targets that were written here, counted as we count."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import Any

import gguf
import pytest

from eagle3cli.backends.target.gguf.files import target_gguf
from eagle3cli.backends.target.gguf.folder import local_folder
from eagle3cli.runtime.llama_server import knows_drafts, version_of
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.client import Client
from eagle3cli.serving.client.protocol import Acceptance, Answer, Request
from eagle3cli.serving.launch.commands import Launch
from eagle3cli.serving.launch.server import ServerProcess, Servers, _wait, free_ports
from tests.conftest import RunCli
from tests.families import YARN
from tests.serving.engine_case import REPLY, STEPS, Expected, make_draft, make_target

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
CACHES = ("--cache-type-k", "--cache-type-v", "--spec-draft-type-k", "--spec-draft-type-v")
EXACT = tuple(word for flag in CACHES for word in (flag, "f32"))
"""Keys and values that are not rounded: a tiny random target has many near ties."""
ENDS = {0, 2}
"""Tokens that it never gives where ends are ignored: it knows them by their texts."""
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # family, keys of the target's config, keys of the draft's JSON
    "llama": ("llama", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "mistral": ("mistral", {}, {}),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}, {}),
    "linear rope": ("llama", {"rope_parameters": LINEAR}, {}),
    "yarn": ("llama", {"rope_parameters": YARN}, {}),
    "one layer": ("llama", {}, {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [3]}}),
    "other layers": ("llama", {}, {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 6]}}),
    "norm_before_fc": ("llama", {}, {"norm_before_fc": True}),
    "norm_before_residual": ("qwen3", {}, {"norm_before_residual": True}),
    "own embedding": ("llama", {}, {"own_embedding": True}),
    "tied": ("llama", {"tie_word_embeddings": True}, {}),
}


@pytest.fixture
def program() -> str:
    path = os.environ.get("EAGLE3_ENGINE_LLAMACPP")
    if not path:
        pytest.skip("EAGLE3_ENGINE_LLAMACPP is not set: make test-llamacpp")
    return str(Path(path).absolute())


def run_line(program: str, line: str, expected: Expected, log: Path) -> tuple[list[Answer], Acceptance | None]:
    """The answers to the expected prompts by the server that ``line`` starts, and its counters over them."""
    name, *words = shlex.split(line)
    assert name == "llama-server"
    port = free_ports(1)[0]
    words[words.index("--port") + 1] = str(port)
    flags = (
        "--parallel",
        "1",
        "--ctx-size",
        "512",
        "--device",
        "none",
        "--threads",
        "1",
        "--flash-attn",
        "off",
        *EXACT,
    )
    process = ServerProcess(Launch((program, *words, *flags), port), log)

    async def ask() -> list[Answer]:
        async with Client(process.address, seconds=120) as client:
            asked = [Request(REPLY, input_ids=tuple(prompt), ignore_end=True) for prompt in expected.prompts]
            return [await client.ask(request) for request in asked]

    try:
        process.start()
        _wait(Servers([process], Silent()), 100, Silent())
        answers = asyncio.run(ask())
    finally:
        process.stop()
    each = [answer.acceptance for answer in answers if answer.acceptance]
    return answers, sum(each[1:], each[0]) if each else None


def test_it_is_one_that_knows_drafts(program: str) -> None:
    assert knows_drafts(program)
    assert version_of(program)


@pytest.mark.parametrize("case", CASES)
def test_a_line_counts_what_we_count(
    case: str, program: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    family, own, wanted = CASES[case]
    raw = make_target(tmp_path / "target", family, **own)
    expected = make_draft(tmp_path / "trained", tmp_path / "target", raw, **{"norm_output": False, **wanted})
    (tmp_path / "steps.toml").write_text(f"[run]\nk = {STEPS}\n")
    words = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", "draft")
    ran = run_cli("export", "--layout", "gguf", "--outtype", "f32", *words, "--config", "steps.toml", "--json")
    assert ran.code == 0, ran.err
    line = ran.json["serve_lines"]["llama.cpp"]
    assert f"    {line}\n" in (tmp_path / "draft" / "README.md").read_text()
    target_gguf("target", tmp_path / "models", Silent(), outtype="f32").rename(tmp_path / "target.gguf")
    answers, counted = run_line(program, line, expected, tmp_path / "with.log")
    assert counted is not None
    plain = line.partition(" --model-draft")[0] + " --host 127.0.0.1 --port 1"
    alone, nothing = run_line(program, plain, expected, tmp_path / "plain.log")
    assert nothing is None
    assert [answer.token_ids for answer in alone] == [answer.token_ids for answer in answers]
    compared = 0
    for answer, reply, passes in zip(answers, expected.replies, expected.steps, strict=True):
        if ENDS & set(reply):
            continue
        compared += 1
        assert list(answer.token_ids or ()) == reply
        assert answer.acceptance is not None
        # It proposes no more than are wanted: nothing is accepted behind the last token.
        assert (answer.acceptance.passes, answer.acceptance.accepted) == (passes, len(reply) - 1 - passes)
    assert compared >= 3
    assert counted.accepted > 0


@pytest.mark.parametrize("outtype", ["bf16", "f16", "q8_0"])
def test_bench_with_other_types(outtype: str, program: str, run_cli: RunCli, tmp_path: Path) -> None:
    raw = make_target(tmp_path / "target", "llama")
    make_draft(tmp_path / "trained", tmp_path / "target", raw, norm_output=False)
    words = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", "draft")
    assert run_cli("export", "--layout", "gguf", "--outtype", outtype, *words).code == 0
    (tmp_path / "q.jsonl").write_text('{"turns": ["hello how are you"]}\n{"turns": ["count one two three"]}\n')
    server = ("--engine", "llama.cpp", "--llama-server", program, "--device", "cpu", "--dtype", "float32")
    options = ("--config-list", "2,3,1,4", "--benchmark-list", "q.jsonl", "--max-tokens", "24", "--json")
    draft = ("--model-path", "target", "--speculative-draft-model-path", "draft")
    ran = run_cli("bench", *server, *draft, *options)
    assert ran.code == 0, ran.err
    row = ran.json["configurations"][1]
    assert (row["identical"], row["counters_fit"]) == (2, True)
    assert row["acceptance_length"] >= 1


def requantised(source: Path, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """The file once more, its layers' matrices in another type."""
    reader = gguf.GGUFReader(source)
    own = "general.architecture"
    writer = gguf.GGUFWriter(path, reader.fields[own].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != own:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_quantised_target(
    kind: str, program: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rounds what a layer reads to 8 bits where the weights are quantised, which our own decoder does not: replies
    to prompts with clear choices stay ours but for a few, and there the draft is accepted nearly as often."""
    monkeypatch.chdir(tmp_path)
    make_target(tmp_path / "plain", "llama")
    plain = target_gguf("plain", tmp_path / "models", Silent(), outtype="f32")
    requantised(plain, tmp_path / "target.gguf", gguf.GGMLQuantizationType[kind])
    folder = Path(local_folder("target.gguf", tmp_path / "cache" / "models", Silent()))
    raw = json.loads((folder / "config.json").read_text())
    expected = make_draft(tmp_path / "trained", folder, raw, clear=True, norm_output=False)
    (tmp_path / "steps.toml").write_text(f"[run]\nk = {STEPS}\n")
    words = ("--draft-model-path", "trained", "--target-model-path", "target.gguf", "--output-path", "draft")
    ran = run_cli("export", "--layout", "gguf", "--outtype", "f32", *words, "--config", "steps.toml", "--json")
    assert ran.code == 0, ran.err
    line = ran.json["serve_lines"]["llama.cpp"]
    answers, counted = run_line(program, line, expected, tmp_path / "with.log")
    alone, _ = run_line(program, line.partition(" --model-draft")[0] + " --port 1", expected, tmp_path / "plain.log")
    # The draft changes no reply; each kind of batch has a kernel of its own, so one may part at a near tie.
    assert sum(one.token_ids == other.token_ids for one, other in zip(answers, alone, strict=True)) >= len(answers) - 1
    assert counted is not None
    assert counted.accepted > 0
    same = [n for n, answer in enumerate(answers) if list(answer.token_ids or ()) == expected.replies[n]]
    if kind == "Q8_0":
        assert len(same) >= 3
    ours = sum(expected.steps[n] for n in same)
    theirs = sum(each.passes for n in same if (each := answers[n].acceptance) is not None)
    assert abs(theirs - ours) <= 0.1 * ours
