"""The real SGLang and the real vLLM on this CPU: ``make test-engines`` sets them up and says where they are.

EAGLE3_ENGINE_SGLANG and EAGLE3_ENGINE_VLLM name the Pythons that have them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.client import Client
from eagle3cli.serving.client.errors import TooLong
from eagle3cli.serving.client.protocol import Request
from eagle3cli.serving.launch.commands import Product, Speculation
from eagle3cli.serving.launch.server import Servers, started
from eagle3cli.serving.regenerate.regenerate import Regenerated, regenerate
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings
from eagle3cli.settings.tables import Settings
from tests.conftest import RunCli

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = [{"role": "user", "content": "count from 17"}]
COUNTED = [str(number) for number in range(18, 42)]
IDS = (1, 3, 9, 12, 59, 4)
"""The same as token ids."""


def up(product: Product, shared: Path, logs: Path, replicas: int) -> Iterator[Servers]:
    variable = f"EAGLE3_ENGINE_{product.upper()}"
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set: make test-engines")
    tiny = shared / "engines" / "tiny_eagle3"
    server = ServerSettings(python=python, replicas=replicas, dist_timeout=600)
    target = TargetSettings(model_path=str(tiny / "target"), device="cpu", threads=1)
    draft = Speculation(str(tiny / "draft"), 3, 1, 4)
    with started(server, target, Silent(), logs=logs, product=product, speculation=draft) as servers:
        yield servers


@pytest.fixture(scope="module")
def sglang(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Two servers with a draft."""
    yield from up("sglang", shared, tmp_path_factory.mktemp("logs"), 2)


@pytest.fixture(scope="module")
def vllm(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One server with a draft."""
    yield from up("vllm", shared, tmp_path_factory.mktemp("logs"), 1)


def talk(servers: Servers, act: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with Client(servers.addresses[0], seconds=120) as client:
            await client.identify()
            return await act(client)

    return asyncio.run(run())


def test_sglang_answers_in_every_way(sglang: Servers) -> None:
    async def act(client: Client) -> None:
        assert client.info is not None
        assert (client.info.kind, client.info.context, client.info.speculative) == ("sglang", 1024, (3, 1, 4))
        chat = await client.ask(Request(24, COUNT))
        assert chat.text.split() == COUNTED
        assert (chat.finish, chat.tokens, chat.prompt_tokens) == ("length", 24, len(IDS))
        raw = await client.ask(Request(24, input_ids=IDS))
        assert raw.token_ids == chat.token_ids == tuple(range(60, 84))
        for answer in (chat, raw):
            assert answer.acceptance is not None
            assert answer.acceptance.length > 3.5
            assert sum(answer.acceptance.positions) == answer.acceptance.accepted
        for request in (Request(24, COUNT), Request(24, input_ids=IDS)):
            streamed = await client.ask(request, stream=True)
            assert (streamed.text, streamed.tokens, streamed.finish) == (chat.text, 24, "length")
            assert streamed.frames[-1][1] == 24
            assert len(streamed.frames) < 24  # a frame holds the tokens of a pass
        load = await client.load()
        assert load is not None
        assert (load.running, load.waiting) == (0, 0)
        sampled = await client.ask(Request(8, COUNT, sampling=Sampling(0.8, 0.9, 20, 7)))
        assert sampled.tokens <= 8

    talk(sglang, act)


def test_sglang_tells_what_is_too_long(sglang: Servers) -> None:
    async def act(client: Client) -> None:
        for request in (
            Request(10, [{"role": "user", "content": "count " * 1100}]),
            Request(10, input_ids=(9,) * 1100),
        ):
            with pytest.raises(TooLong) as refused:
                await client.ask(request)
            assert refused.value.context == 1024
            assert refused.value.room is not None
            assert refused.value.room < 0
        with pytest.raises(TooLong) as refused:
            await client.ask(Request(1000, [{"role": "user", "content": "count " * 100}]))
        assert refused.value.room is not None
        assert 900 < refused.value.room < 1000

    talk(sglang, act)


def rows(path: Path, count: int) -> Path:
    with path.open("w") as f:
        for i in range(count):
            messages = [{"role": "user", "content": f"count from {i % 40}"}, {"role": "assistant", "content": "old"}]
            messages += [{"role": "user", "content": "days from monday"}] if i % 3 == 0 else []
            f.write(json.dumps({"id": f"r{i}", "conversations": messages}) + "\n")
    return path


def run(servers: Servers, path: Path, out: Path, **config: Any) -> Regenerated:
    tables = {
        "server": {"address_port": servers.addresses},
        "regenerate": {"input_path": path, "output_dir": out, "max_tokens": 24} | config,
    }
    return regenerate(Settings.model_validate(tables), Silent())


def replies(out: Path) -> dict[str, list[str]]:
    by_id = {}
    for path in out.glob("shard_*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            by_id[row["id"]] = [m["content"] for m in row["conversations"] if m["role"] == "assistant"]
    return by_id


@pytest.mark.parametrize("turns", ["last", "all"])
def test_regenerate_both_modes(sglang: Servers, tmp_path: Path, turns: str) -> None:
    path = rows(tmp_path / "in.jsonl", 30)
    done = run(sglang, path, tmp_path / "out", turns=turns)
    assert (done.generated, done.errors) == (30, 0)
    for name, contents in replies(tmp_path / "out").items():
        number = int(name[1:])
        assert len(contents) == (2 if number % 3 == 0 else 1)
        if turns == "all" or number % 3:
            assert contents[0].split()[:3] == [str(number % 40 + step) for step in (1, 2, 3)]
        else:
            assert contents[0] == "old"


def test_one_of_two_servers_is_killed_half_way(sglang: Servers, tmp_path: Path) -> None:
    path = rows(tmp_path / "in.jsonl", 120)
    victim = sglang.processes[1]

    def kill() -> None:
        while sum(part.read_bytes().count(b"\n") for part in (tmp_path / "out").glob(".part_*")) < 40:
            time.sleep(0.05)
        assert victim._guard is not None
        guard = victim._guard.pid
        for child in Path(f"/proc/{guard}/task/{guard}/children").read_text().split():
            os.killpg(int(child), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    done = run(sglang, path, tmp_path / "out")
    thread.join()
    assert victim.exit_code == 128 + signal.SIGKILL
    assert (done.rows, done.generated, done.errors) == (120, 120, 0)
    contents = replies(tmp_path / "out")
    assert set(contents) == {f"r{i}" for i in range(120)}
    for number in range(40):  # equal questions, equal answers, whoever gave them
        assert contents[f"r{number}"][0] == contents[f"r{number + 40}"][0] == contents[f"r{number + 80}"][0]


def test_vllm_answers_in_every_way(vllm: Servers, tmp_path: Path) -> None:
    async def act(client: Client) -> None:
        assert client.info is not None
        assert client.info.kind == "vllm"
        before = await client.acceptance()
        chat = await client.ask(Request(24, COUNT))
        assert chat.text.split() == COUNTED
        assert chat.token_ids == tuple(range(60, 84))
        raw = await client.ask(Request(24, input_ids=IDS))
        assert raw.token_ids == chat.token_ids
        streamed = await client.ask(Request(24, COUNT), stream=True)
        assert (streamed.text, streamed.tokens, streamed.finish) == (chat.text, 24, "length")
        after = await client.acceptance()
        assert before is not None
        assert after is not None
        since = after - before
        assert since.length > 3
        assert sum(since.positions) == since.accepted
        load = await client.load()
        assert load is not None
        with pytest.raises(TooLong):
            await client.ask(Request(10, [{"role": "user", "content": "count " * 1100}]))

    talk(vllm, act)
    done = run(vllm, rows(tmp_path / "in.jsonl", 12), tmp_path / "out")
    assert (done.generated, done.errors) == (12, 0)
    assert replies(tmp_path / "out")["r1"][0].split()[:2] == ["2", "3"]


def bench(run_cli: RunCli, folder: Path, engine: str, shared: Path, *words: object) -> list[dict[str, Any]]:
    """Configurations that ``eagle3 bench`` measured on the counting model."""
    tiny = shared / "engines" / "tiny_eagle3"
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps({"turns": [f"count from {n}"]}) + "\n" for n in (3, 17, 25, 32)))
    done = run_cli(
        "bench", "--engine", engine, "--model-path", tiny / "target", "--speculative-draft-model-path", tiny / "draft",
        "--benchmark-list", questions, "--max-tokens", 32, "--device", "cpu", "--threads", 1, "--json",
        "--output", folder / engine / "results.jsonl", *words,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = done.json["configurations"]
    assert all(row["requests"] == 4 and row.get("counters_fit", True) for row in rows)
    return list(rows)


def test_sglang_bench_counts_as_the_local_engine(
    sglang: Servers, run_cli: RunCli, shared: Path, tmp_path: Path
) -> None:
    """Started servers for the baseline and a tree, the running one for the chain: acceptance, text, report."""
    python = Path(os.environ["EAGLE3_ENGINE_SGLANG"]).absolute()  # not resolved: an environment's Python is a link
    local = {
        row["config"]: row for row in bench(run_cli, tmp_path, "local", shared, "--config-list", "1,3,1,4", "1,5,1,6")
    }
    words = ("--server-python", python, "--dist-timeout", 600, "--config-list", "1,0,0,0", "1,5,4,16")
    plain, tree = bench(run_cli, tmp_path, "sglang", shared, *words)
    assert (plain["config"], tree["config"]) == ("1,0,0,0", "1,5,4,16")
    assert tree["identical"] + tree["differences_at_ties"] == tree["compared"] == 4
    assert tree["acceptance_length"] >= 0.98 * local["1,5,1,6"]["acceptance_length"]
    assert tree["ttft_ms"]["p50"] > 0
    assert "<svg" in (tmp_path / "sglang" / "results.html").read_text()
    address = ("--server-address-port", sglang.addresses[0], "--output", tmp_path / "running.jsonl")
    (chain,) = bench(run_cli, tmp_path, "sglang", shared, *address, "--config-list", "1,3,1,4")
    assert chain["acceptance_length"] == pytest.approx(local["1,3,1,4"]["acceptance_length"], rel=0.02)
    assert chain["tokens_per_pass"] == pytest.approx(local["1,3,1,4"]["tokens_per_pass"], rel=0.02)
    assert chain["accepted_per_position"] == pytest.approx(local["1,3,1,4"]["accepted_per_position"], abs=0.05)
    texts = [answers(tmp_path / path) for path in ("running.jsonl", "local/results.jsonl", "sglang/results.jsonl")]
    assert texts[0] == texts[1] == texts[2]


def test_vllm_bench_counts_as_the_local_engine(vllm: Servers, run_cli: RunCli, shared: Path, tmp_path: Path) -> None:
    (local,) = bench(run_cli, tmp_path, "local", shared, "--config-list", "4,3,1,4")[1:]
    (chain,) = bench(
        run_cli, tmp_path, "vllm", shared, "--server-address-port", vllm.addresses[0], "--config-list", "4,3,1,4"
    )
    assert chain["acceptance_length"] == pytest.approx(local["acceptance_length"], rel=0.02)
    assert answers(tmp_path / "vllm" / "results.jsonl") == answers(tmp_path / "local" / "results.jsonl")


def answers(path: Path) -> dict[int, list[int]]:
    """Token ids of every question's answer, the same in all configurations."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    token_ids: dict[int, list[int]] = {}
    for row in rows:
        if row["kind"] == "request":
            assert token_ids.setdefault(row["question"], row["token_ids"]) == row["token_ids"]
    return token_ids
