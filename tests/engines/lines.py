"""A line that export prints, run by a real engine as it stands: its Python is the engine's, its flags a CPU's."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.models.engines import Engine
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.client import Client
from eagle3cli.serving.client.protocol import Acceptance, Answer, Request
from eagle3cli.serving.launch.commands import Launch
from eagle3cli.serving.launch.server import ServerProcess, Servers, _wait, free_ports
from tests.serving.engine_case import REPLY, Expected

KERNELS = str(Path(__file__).parent)
CPU_FLAGS: dict[Engine, tuple[str, ...]] = {
    "sglang": (
        *("--device", "cpu", "--disable-overlap-schedule", "--max-total-tokens", "16384"),
        *("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled"),
        *("--prefill-attention-backend", "intel_amx", "--decode-attention-backend", "intel_amx"),
        *("--max-running-requests", "8"),
    ),
    "vllm": ("--enforce-eager", "--max-num-seqs", "8"),
}
CPU_ENVIRONMENT: dict[Engine, dict[str, str]] = {
    "sglang": {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_HOST_IP": "127.0.0.1", "PYTHONPATH": KERNELS},
    "vllm": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1"},
}
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def engine_python(engine: Engine) -> str:
    """The Python that has the engine; skips the test where there is none."""
    python = os.environ.get(f"EAGLE3_ENGINE_{engine.upper()}")
    if not python:
        pytest.skip(f"EAGLE3_ENGINE_{engine.upper()} is not set: make test-engines")
    return python


def said_by(engine: Engine, code: str, *words: str) -> Any:
    """What a program inside the engine's Python prints behind the word SAID, as JSON."""
    environment = {**os.environ, **THREADS, **CPU_ENVIRONMENT[engine]}
    command = [engine_python(engine), "-c", code, *words]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "SAID" in ran.stdout, ran.stderr[-2000:]
    return json.loads(ran.stdout.rpartition("SAID")[2])


def run_line(
    engine: Engine, line: str, expected: Expected, logs: Path, **environment: str
) -> tuple[list[Answer], Acceptance]:
    """The answers to the expected prompts by the server that ``line`` starts, and its counters over them."""
    with running_line(engine, line, logs, **environment) as address:
        return asyncio.run(_ask(address, expected))


@contextmanager
def running_line(engine: Engine, line: str, logs: Path, **environment: str) -> Iterator[str]:
    """The address of the server that ``line`` starts.

    The line's paths are taken from the current folder, as in a shell.
    """
    python = engine_python(engine)
    port = free_ports(1)[0]
    words = shlex.split(line)
    program = (python,) if words[0] == "python" else (str(Path(python).with_name(words[0])),)
    flags = (*CPU_FLAGS[engine], "--port", str(port))
    launch = Launch((*program, *words[1:], *flags), port, {**CPU_ENVIRONMENT[engine], **THREADS, **environment})
    process = ServerProcess(launch, logs / f"{engine}.log")
    try:
        process.start()
        _wait(Servers([process], Silent()), 400, Silent())
        yield process.address
    finally:
        process.stop()


async def _ask(address: str, expected: Expected) -> tuple[list[Answer], Acceptance]:
    async with Client(address, seconds=120) as client:
        await client.identify()
        before = await client.acceptance()
        asked = [Request(REPLY, input_ids=tuple(prompt), ignore_end=True) for prompt in expected.prompts]
        answers = [await client.ask(request) for request in asked]
        each = [answer.acceptance for answer in answers if answer.acceptance]
        if len(each) == len(answers):  # SGLang says it with every answer
            return answers, sum(each[1:], each[0])
        after = await client.acceptance()
        assert before is not None
        assert after is not None
        return answers, after - before


def assert_as_our_own(answers: list[Answer], counted: Acceptance, expected: Expected, steps: int) -> None:
    """Text and passes are our own decoder's; engines count what they accepted behind the last token, too."""
    assert [list(answer.token_ids or ()) for answer in answers] == expected.replies
    assert counted.passes == sum(expected.steps)
    assert 0 <= counted.accepted - sum(expected.accepted_at) <= steps * len(answers)
