"""The real SGLang and vLLM load exported drafts of every family, and accept what our own decoder accepts.

Each runs the line that export prints and writes on the card; where there is none, REFUSED has the reason.
``make test-engines`` runs the first case of these tests, ``make test-engine-families`` the others.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.models.layers.sizes import ARCHITECTURE
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.client import Client
from eagle3cli.serving.client.protocol import Answer, Request
from eagle3cli.serving.launch.commands import Product, Speculation
from eagle3cli.serving.launch.server import started
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings
from tests.conftest import ROOT, RunCli
from tests.engines.lines import assert_as_our_own, run_line
from tests.serving.engine_case import REPLY, STEPS, Expected, make_draft, make_target

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
FAMILIES = pytest.mark.families
MORE_KERNELS = ROOT / "tests" / "engines"
NORMS = {"fc_norm": True}  # norm_output is auto's own
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", NORMS),
    "plain": ("llama", {"norm_output": False}),
    "wide": (
        "llama",
        {
            "num_hidden_layers": 2,
            "intermediate_size": 320,
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3, 5, 6]},
        },
    ),
    "own-embedding": ("llama", {"own_embedding": True}),
    "norm-before-fc": ("llama", {"norm_before_fc": True}),
    "norm-before-residual": ("llama", {"norm_before_residual": True, "norm_output": False}),
    **{
        family: (family, NORMS)
        for family in (
            "qwen2",
            "qwen3",
            "qwen3-moe",
            "phi3",
            "phi4-mini",
            "gpt-oss",
            "deepseek-v2",
            "deepseek-v3",
            "mistral",
        )
    },
    **{family: (family, NORMS) for family in ("gemma3", "mixtral", "glm4", "glm4-moe")},
    "gemma3-vision": ("gemma3-vision", NORMS),  # the class of the hub's models but for the smallest
    "latent": ("deepseek-v3", {"architectures": [ARCHITECTURE], **NORMS}),
    "latent-v2": ("deepseek-v2", {"architectures": [ARCHITECTURE], "q_lora_rank": 48, **NORMS}),
}
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "head_dim": 64, "qk_nope_head_dim": 64}
"""vLLM's latent attention on a CPU knows these sizes of a cache alone, DeepSeek's."""
TARGETS: dict[str, dict[str, Any]] = {"latent": LATENT, "latent-v2": LATENT}
"""Keys of a case's target, over its family's."""
VLLM_ALONE = ("own-embedding", "norm-before-residual")
"""SGLang would run them otherwise than they were trained, so export refuses them: test_wide_drafts.py."""
REFUSED: dict[tuple[Product, str], str] = {
    **{("sglang", case): "SGLang 0.5.23 has no auxiliary states of" for case in ("mixtral", "glm4")},
    ("vllm", "gemma3-vision"): "vLLM 0.32.0 has no auxiliary states of",
    **{("sglang", case): "without the residual stream" for case in ("gemma3", "gemma3-vision")},
}
"""What export prints no line for, and why.

A uniform sliding window (Mistral 7B v0.1, Phi-3-mini) is no case of its own: SGLang leaves it out, and vLLM gives it to
the draft as well, so that acceptance falls once a text outgrows it.
"""
ENVIRONMENT: dict[tuple[Product, str], dict[str, str]] = {
    # On a CPU vLLM has no cache for latent and usual attention side by side.
    **{("vllm", family): {"VLLM_MLA_DISABLE": "1"} for family in ("deepseek-v2", "deepseek-v3")},
}


def ask_all(
    product: Product, target: Path, draft: Path, expected: Expected, logs: Path, args: str = ""
) -> tuple[list[Answer], Any]:
    """The answers of a server with this draft, and vLLM's counters over them."""
    python = os.environ.get(f"EAGLE3_ENGINE_{product.upper()}")
    if not python:
        pytest.skip(f"EAGLE3_ENGINE_{product.upper()} is not set: make test-engines")
    server = ServerSettings(python=python, replicas=1, dist_timeout=400, args=args)
    model = TargetSettings(model_path=str(target), device="cpu", threads=1)
    speculation = Speculation(str(draft), STEPS, 1, STEPS + 1)
    with started(server, model, Silent(), logs=logs, product=product, speculation=speculation) as servers:

        async def run() -> tuple[list[Answer], Any]:
            async with Client(servers.addresses[0], seconds=120) as client:
                await client.identify()
                before = await client.acceptance() if product == "vllm" else None
                asked = [Request(REPLY, input_ids=tuple(prompt), ignore_end=True) for prompt in expected.prompts]
                answers = [await client.ask(request) for request in asked]
                after = await client.acceptance() if product == "vllm" else None
                return answers, after - before if after and before else None

        return asyncio.run(run())


@pytest.mark.parametrize("product", ["sglang", "vllm"])
@pytest.mark.parametrize("case", [case if case == "llama" else pytest.param(case, marks=FAMILIES) for case in CASES])
def test_an_engine_accepts_what_we_accept(
    product: Product, case: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    family, wanted = CASES[case]
    layout = "vllm" if case in VLLM_ALONE else "sglang"
    if layout == "vllm" and product == "sglang":
        pytest.skip("export refuses it for SGLang")
    raw = make_target(tmp_path / "target", family, **TARGETS.get(case, {}))
    expected = make_draft(tmp_path / "trained", tmp_path / "target", raw, **wanted)
    (tmp_path / "steps.toml").write_text(f"[run]\nk = {STEPS}\n")
    words = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", "draft")
    options = ("--layout", layout, "--export-dtype", "float32", "--config", "steps.toml", "--json")
    exported = run_cli("export", *words, *options)
    assert exported.code == 0, exported.err
    if reason := REFUSED.get((product, case)):
        assert reason in exported.json["refused_by"][product]
        assert product not in exported.json["serve_lines"]
        return
    line = exported.json["serve_lines"][product]
    assert f"    {line}\n" in (tmp_path / "draft" / "README.md").read_text()  # the card's is the same
    answers, counted = run_line(product, line, expected, tmp_path / "logs", **ENVIRONMENT.get((product, case), {}))
    assert_as_our_own(answers, counted, expected, STEPS)
    if product == "sglang":
        assert [one.acceptance.passes for one in answers if one.acceptance] == expected.steps


@FAMILIES
def test_vllm_reads_its_own_list_of_layers(tmp_path: Path) -> None:
    """Without the outer list vLLM takes SGLang's and reads one layer too low: the same draft is accepted otherwise."""
    raw = make_target(tmp_path / "target", "llama")
    expected = make_draft(tmp_path / "draft", tmp_path / "target", raw, **NORMS)
    path = tmp_path / "draft" / "config.json"
    config = json.loads(path.read_text())
    del config["eagle_aux_hidden_state_layer_ids"]
    path.write_text(json.dumps(config))
    _, counted = ask_all("vllm", tmp_path / "target", tmp_path / "draft", expected, tmp_path / "logs")
    assert (counted.passes, counted.accepted) != (sum(expected.steps), sum(expected.accepted_at))
