"""The real vLLM serves a draft in the format of speculators by the line that export prints, with our own counts."""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.client import Client
from eagle3cli.serving.client.protocol import Acceptance, Answer, Request
from eagle3cli.serving.launch.commands import Launch
from eagle3cli.serving.launch.server import ServerProcess, Servers, _wait, free_ports
from tests.conftest import RunCli
from tests.serving.engine_case import REPLY, STEPS, Expected, make_draft, make_target

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
CPU = ["--enforce-eager", "--max-num-seqs", "4", "--dtype", "float32"]
ENVIRONMENT = {
    **{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
    **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"fc_norm": True},
    "wide": {
        "num_hidden_layers": 2,
        "intermediate_size": 320,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3, 5, 6]},
    },
    "own-embedding": {"own_embedding": True},
    "norm-before-residual": {"norm_before_residual": True, "norm_output": False},
}


def ask_all(line: str, expected: Expected, logs: Path) -> tuple[list[Answer], Acceptance]:
    """The answers of the server that the line starts, and its counters over them."""
    python = os.environ.get("EAGLE3_ENGINE_VLLM")
    if not python:
        pytest.skip("EAGLE3_ENGINE_VLLM is not set: make test-engines")
    port = free_ports(1)[0]
    words = shlex.split(line.replace("--port 30000", f"--port {port}"))
    launch = Launch((str(Path(python).with_name("vllm")), *words[1:], *CPU), port, ENVIRONMENT)
    process = ServerProcess(launch, logs / "server.log")

    async def run() -> tuple[list[Answer], Acceptance]:
        async with Client(process.address, seconds=120) as client:
            await client.identify()
            before = await client.acceptance()
            asked = [Request(REPLY, input_ids=tuple(prompt), ignore_end=True) for prompt in expected.prompts]
            answers = [await client.ask(request) for request in asked]
            after = await client.acceptance()
            assert before is not None
            assert after is not None
            return answers, after - before

    try:
        process.start()
        _wait(Servers([process], Silent()), 400, Silent())
        return asyncio.run(run())
    finally:
        process.stop()


@pytest.mark.parametrize(
    "case", [case if case == "plain" else pytest.param(case, marks=pytest.mark.families) for case in CASES]
)
def test_vllm_serve_draft_counts_what_we_count(case: str, run_cli: RunCli, tmp_path: Path) -> None:
    raw = make_target(tmp_path / "target", "llama")
    expected = make_draft(tmp_path / "trained", tmp_path / "target", raw, **CASES[case])
    words = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", tmp_path / "draft")
    (tmp_path / "steps.toml").write_text(f"[run]\nk = {STEPS}\n")
    options = ("--layout", "speculators", "--export-dtype", "float32", "--config", "steps.toml")
    exported = run_cli("export", *words, *options, "--json")
    assert exported.code == 0, exported.err
    answers, counted = ask_all(exported.json["serve"], expected, tmp_path / "logs")
    assert [list(answer.token_ids or ()) for answer in answers] == expected.replies
    assert counted.passes == sum(expected.steps)
    # vLLM counts what it accepted behind the last token that was asked for, too.
    assert 0 <= counted.accepted - sum(expected.accepted_at) <= STEPS * len(answers)
