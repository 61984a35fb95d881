"""bench over the real SGLang and vLLM: SPEED-Bench's rows with our own counts, and servers that say what they hold."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.runtime.report import Silent
from eagle3cli.serving.launch.commands import Product, Speculation
from eagle3cli.serving.launch.server import started
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings
from tests.conftest import RunCli
from tests.serving.bench.bench_server import BenchFaults, BenchServer
from tests.serving.client.fake_server import running
from tests.serving.engine_case import make_draft, make_target

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
PRODUCTS = ("sglang", "vllm")
CATEGORIES = ("coding", "math", "multilingual", "writing")


@pytest.fixture
def words(tmp_path: Path) -> tuple[object, ...]:
    """The command for a tiny target with a draft of its own, on rows in SPEED-Bench's columns."""
    raw = make_target(tmp_path / "target", "llama")
    make_draft(tmp_path / "draft", tmp_path / "target", raw)
    rows = [
        {
            **{"question_id": f"{category}-{n}", "category": category, "sub_category": "any", "source": "x/y"},
            **{
                "src_id": str(n),
                "difficulty": "easy",
                "multiturn": False,
                "turns": [f"{category} {n}? " * (1 + 9 * n)],
            },
        }
        for category in CATEGORIES
        for n in range(2)
    ]
    (tmp_path / "qualitative.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        *("bench", "--model-path", tmp_path / "target", "--speculative-draft-model-path", tmp_path / "draft"),
        *("--device", "cpu", "--threads", 1, "--benchmark-list", f"speed-bench@{tmp_path}:8", "--max-tokens", 24),
        *("--config-list", "2,3,1,4", "--json"),
    )


def python_of(product: str) -> str:
    python = os.environ.get(f"EAGLE3_ENGINE_{product.upper()}")
    if not python:
        pytest.skip(f"EAGLE3_ENGINE_{product.upper()} is not set: make test-engines")
    return python


@pytest.mark.parametrize("product", PRODUCTS)
def test_speed_bench_counts_as_the_local_engine(product: Product, words: tuple[object, ...], run_cli: RunCli) -> None:
    python = python_of(product)
    temperatures = ("--temperature", 0, 1) if product == "vllm" else ()
    served = run_cli(*words, "--engine", product, "--server-python", python, *temperatures, "--output", "served.jsonl")
    assert served.code == 0, served.err
    local = run_cli(*words, "--engine", "local", "--output", "local.jsonl")
    assert local.code == 0, local.err
    (_, ours), (plain, theirs, *sampled) = local.json["configurations"], served.json["configurations"]
    assert (theirs["task"], theirs["compared"], theirs["differences_beyond_ties"]) == ("speed-bench:8", 8, 0)
    counts = ("requests", "tokens", "passes", "acceptance_length", "accepted_per_position")
    for parts in ("by_category", "by_context"):
        assert picked(theirs[parts], counts) == picked(ours[parts], counts)
    assert list(theirs["by_category"]) == [*CATEGORIES]
    assert {row["environment"]["dtype"] for row in (plain, theirs)} == {"float32"}
    assert theirs["environment"]["engine_version"]
    assert [row.get("samples_of_target", True) for row in sampled] == [True, False][: len(sampled)]


def picked(parts: Any, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """These numbers of each part; trailing zeros of positions are not told by every engine."""
    values = parts.values() if isinstance(parts, dict) else parts
    rows = []
    for part in values:
        row = {key: part[key] for key in keys}
        row["accepted_per_position"] = [share for share in row["accepted_per_position"] or () if share]
        rows.append(row)
    return rows


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_running_server_says_what_it_holds(
    product: Product, words: tuple[object, ...], run_cli: RunCli, tmp_path: Path
) -> None:
    """Under another name, and with a wrong --model-path; beside a server of another model it is refused."""
    shutil.copytree(tmp_path / "target", tmp_path / "wrong")
    (tmp_path / "wrong" / "model.safetensors").write_bytes(b"another")
    server = ServerSettings(
        python=python_of(product), replicas=1, dist_timeout=400, args="--served-model-name alias --dtype float32"
    )
    model = TargetSettings(model_path=str(tmp_path / "target"), device="cpu", threads=1)
    draft = Speculation(str(tmp_path / "draft"), 3, 1, 4)
    asked = [word for word in words if word != "--speculative-draft-model-path" and word != tmp_path / "draft"]
    asked[asked.index(tmp_path / "target")] = tmp_path / "wrong"
    with started(server, model, Silent(), logs=tmp_path / "logs", product=product, speculation=draft) as servers:
        address = servers.addresses[0]
        done = run_cli(*asked, "--server-address-port", address, "--temperature", 1)
        assert done.code == 0, done.err
        assert "is not used" in done.err
        assert done.json["configurations"][0]["samples_of_target"] is False  # it is known to run on a CPU
        assert done.json["configurations"][0]["environment"]["device"] == "cpu"
        title = (tmp_path / "runs" / "bench" / "results.md").read_text().splitlines()[0]
        assert title.endswith(" target")
        other = BenchFaults(owner="vllm", model=str(tmp_path / "wrong"))
        with running(other, make=BenchServer) as fakes:
            refused = run_cli(*words, "--server-address-port", address, fakes[0].address, "--output", "other.jsonl")
        assert refused.code == 2
        assert "the servers hold different models" in refused.err
