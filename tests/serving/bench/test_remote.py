"""The benchmark over servers (fakes in SGLang's shapes): what is asked, what is counted, what is refused."""

from __future__ import annotations

import base64
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from eagle3cli.console.benchmark import part_rows, table_row
from eagle3cli.data.chat.tokenizer import load_tokenizer
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.bench import BenchResult, bench
from eagle3cli.serving.bench.engines import SAMPLE
from eagle3cli.settings.tables import Settings
from tests.failing import fails
from tests.pictures import image_target, write_images
from tests.serving.bench.bench_server import BenchFaults, BenchServer
from tests.serving.client.fake_server import FakeServer
from tests.serving.client.fake_server import running as running_fakes


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"id": f"q{i}", "turns": [f"Question {'x' * i}?", "And then?"]} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(
    servers: list[FakeServer], tiny: Path, questions: Path, *configs: str, report: Silent | None = None, **options: Any
) -> BenchResult:
    table = {
        "config_list": configs,
        "benchmark_list": (str(questions),),
        "max_tokens": 13,
        "output": questions.parent / "results.jsonl",
    }
    server = {"address_port": [one.address for one in servers]}
    tables = {"target": {"model_path": str(tiny)}, "bench": table | options, "server": server}
    return bench(Settings.model_validate(tables), report or Silent())


running = partial(running_fakes, make=BenchServer)
PLAIN, CHAIN = BenchFaults(), BenchFaults(speculation=(3, 1, 4))


def test_every_number_comes_from_what_the_servers_tell(tiny: Path, questions: Path) -> None:
    with running(PLAIN, CHAIN) as servers:
        done = run(servers, tiny, questions, "4,3,1,4")
        assert [server.most_running for server in servers] == [4, 4]
        assert [server.flushed for server in servers] == [1, 1]
        requests = [body for body in servers[1].bodies if len(body["input_ids"]) > 3]
    plain, chain = done.table
    assert done.engine == "servers"
    assert (plain["config"], plain["requests"], plain["tokens"]) == ("4,0,0,0", 8, 8 * 13)
    assert (chain["passes"], chain["acceptance_length"], chain["tokens_per_pass"]) == (32, 3.0, 3.0)
    assert chain["accepted_per_position"] == [1.0, 1.0, 0.0]
    assert (chain["compared"], chain["identical"], chain["counters_fit"]) == (8, 8, True)
    assert chain["speedup"] == pytest.approx(chain["tokens_per_s"] / plain["tokens_per_s"], abs=0.001)
    assert chain["speedup"] > 1.3
    assert plain["ttft_ms"]["p50"] > 4
    assert plain["inter_token_ms"]["p50"] > 2 * chain["inter_token_ms"]["p50"]
    assert all(body["sampling_params"]["temperature"] == 0 for body in requests)
    rows = [json.loads(line) for line in done.output.read_text().splitlines()]
    request = next(row for row in rows if row["kind"] == "request" and row["config"] == "4,3,1,4")
    assert request["accepted_at"] == [4, 4, 0]
    assert len(request["token_ids"]) == 13


@pytest.mark.slow
def test_differences_are_told_with_how_near_a_tie_they_were(tiny: Path, questions: Path) -> None:
    for gap, ties in ((0.01, True), (3.0, False)):
        odd = BenchFaults(speculation=(3, 1, 4), flips=2, gap=3.01 - gap)
        with running(BenchFaults(gap=gap), odd) as servers:  # the server without the draft judges
            out = questions.parent / f"{gap}.jsonl"
            row = run(servers, tiny, questions, "2,3,1,4", output=out, multi_turn=True).table[1]
        differing = row["compared"] - row["identical"]
        assert 0 < differing < row["compared"] < row["requests"] == 16  # turns behind a difference are not compared
        assert row["differences_at_ties"] == (differing if ties else 0)
        assert row["differences_beyond_ties"] == (0 if ties else differing)
        assert row["differences_unjudged"] == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert {row["first_difference"] for row in rows if row.get("identical") is False} == {2}


def test_counters_that_do_not_fit_are_told(tiny: Path, questions: Path) -> None:
    report = Silent()
    with running(PLAIN, BenchFaults(speculation=(3, 1, 4), lies=20)) as servers:
        row = run(servers, tiny, questions, "2,3,1,4", report=report).table[1]
    assert row["counters_fit"] is False
    assert "do not fit the tokens" in report.warnings[-1]


def test_a_server_is_found_by_its_speculation(tiny: Path, questions: Path) -> None:
    report = Silent()
    with running(CHAIN) as servers:
        row = run(servers, tiny, questions, "2,3,1,4", report=report).table[0]
    assert (row["acceptance_length"], "speedup" in row, "compared" in row) == (3.0, False, False)
    assert "no speed-up" in report.warnings[0]
    with running(PLAIN, CHAIN) as servers, fails("conflicting-options", "5,1,6"):
        run(servers, tiny, questions, "2,5,1,6")


def test_a_lost_answer_spoils_its_configuration_and_no_other(tiny: Path, questions: Path) -> None:
    report = Silent()
    with running(PLAIN, BenchFaults(speculation=(3, 1, 4), dies=True)) as servers:
        done = run(servers, tiny, questions, "2,3,1,4", report=report)
    assert [row["config"] for row in done.table] == ["2,0,0,0"]
    assert list(done.failed) == ["questions:8 2,3,1,4"]
    assert "the server failed" in report.warnings[-1]
    with running(PLAIN, CHAIN) as servers:  # the same command again measures what is missing
        servers_settings = run(servers, tiny, questions, "2,3,1,4", overwrite=True)
    assert [row["config"] for row in servers_settings.table] == ["2,0,0,0", "2,3,1,4"]


def test_greedy_verification_of_samples_is_told(tiny: Path, questions: Path) -> None:
    with running(PLAIN, CHAIN) as servers:
        done = run(servers, tiny, questions, "2,3,1,4", temperature=(0.0, 0.7))
        seeds = {body["sampling_params"].get("sampling_seed") for body in servers[1].bodies}
    assert len(seeds) == 9  # one for every answer, none for greedy ones
    greedy, sampled = done.table[1], done.table[3]
    assert "notes" not in greedy
    assert "verifies drafts greedily" in sampled["notes"][0]
    assert "identical" not in sampled


def test_nobody_at_the_address(tiny: Path, questions: Path) -> None:
    with running(PLAIN) as servers:
        gone = servers[0]
    with fails("no-server"):
        run([gone], tiny, questions, "1,0,0,0")


def test_vllm_counts_over_all_answers(tiny: Path, questions: Path) -> None:
    plain, chain = BenchFaults(owner="vllm"), BenchFaults(owner="vllm", speculation=(3, 1, 4))
    with running(plain, chain) as servers:
        row = run(servers, tiny, questions, "4,3,1,4", repeats=2).table[1]
    assert (row["passes"], row["acceptance_length"], row["accepted_per_position"]) == (64, 3.0, [1.0, 1.0, 0.0])
    assert (row["identical"], row["compared"], row["counters_fit"]) == (16, 16, True)


def test_servers_of_different_models_are_refused(tiny: Path, questions: Path, tmp_path: Path) -> None:
    for name in ("copy", "other"):
        shutil.copytree(tiny, tmp_path / name)
    weights = load_file(tiny / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})

    def servers(*models: Path) -> list[BenchFaults]:
        shapes = (None, (3, 1, 4))
        return [BenchFaults(owner="vllm", model=str(m), speculation=s) for m, s in zip(models, shapes, strict=True)]

    with running(*servers(tiny, tmp_path / "other")) as both:
        with fails("servers-differ"):
            run(both, tiny, questions, "2,3,1,4")
        assert not any(server.passes for server in both[:1])
    with running(*servers(tiny, tmp_path / "copy")) as both:
        assert run(both, tiny, questions, "2,3,1,4").table[1]["identical"] == 8


def test_models_that_are_elsewhere_are_told_by_what_they_answer(tiny: Path, questions: Path) -> None:
    one = BenchFaults(model="me/model", gap=0.01)
    alike = BenchFaults(model="/models/model", gap=0.2, speculation=(3, 1, 4))
    other = BenchFaults(model="me/other", gap=3.0, speculation=(3, 1, 4))
    with running(one, alike) as servers:
        assert run(servers, tiny, questions, "2,3,1,4").target == "me/model"
    with running(one, other) as servers, fails("servers-differ", "me/model", "me/other"):
        run(servers, tiny, questions, "2,3,1,4", overwrite=True)


def test_ids_of_another_vocabulary_are_not_sent(tiny: Path, questions: Path) -> None:
    """The model is elsewhere, so --model-path's tokenizer has to do: it is compared with the server's own."""
    ours = tuple(load_tokenizer(str(tiny)).encode(SAMPLE, add_special_tokens=False))
    with running(BenchFaults(tokens=ours)) as servers:
        assert run(servers, tiny, questions, "2,0,0,0").measured == 1
    with running(BenchFaults(tokens=(*ours[:-1], 9999))) as servers:
        with fails("other-target", "--model-path"):
            run(servers, tiny, questions, "2,0,0,0", overwrite=True)
        assert not servers[0].bodies


def test_the_servers_own_model_is_used(tiny: Path, questions: Path, tmp_path: Path) -> None:
    """Its tokenizer, and its name in the results; one of a draft of speculators holds the draft's target."""
    other = tmp_path / "other"
    other.mkdir()
    draft = tmp_path / "draft"
    draft.mkdir()
    named = {"speculators_config": {"verifier": {"name_or_path": str(tiny)}}}
    (draft / "config.json").write_text(json.dumps(named))
    report = Silent()
    plain = BenchFaults(owner="vllm", model=str(tiny))
    chain = BenchFaults(owner="vllm", model=str(draft), speculation=(3, 1, 4))
    with running(plain, chain) as servers:
        done = run(servers, other, questions, "2,3,1,4", report=report)
    assert done.target == str(tiny)
    assert done.table[1]["identical"] == 8
    assert f"--model-path {other} is not used" in report.warnings[0]
    settings = json.loads(done.output.read_text().splitlines()[0])
    assert (settings["schema"], settings["settings"]["target"]) == (2, str(tiny))


def test_sampling_reaches_the_servers(tiny: Path, questions: Path) -> None:
    options: dict[str, Any] = {"temperature": (0.7,), "top_p": 0.8, "top_k": 20}
    with running(PLAIN) as servers:
        run(servers, tiny, questions, "2,0,0,0", **options)
        asked = [body["sampling_params"] for body in servers[0].bodies if len(body["input_ids"]) > 3]
    assert (0.7, 0.8, 20) in {(each["temperature"], each["top_p"], each["top_k"]) for each in asked}
    with running(PLAIN) as servers, fails("made-differently", "top_p", "0.8", "0.9"):
        run(servers, tiny, questions, "2,0,0,0", **(options | {"top_p": 0.9}))
    with running(BenchFaults(owner="somebody")) as servers, fails("conflicting-options", "top_k"):
        run(servers, tiny, questions, "2,0,0,0", top_k=5)


def test_samples_of_vllm_on_a_cpu_are_marked(tiny: Path, questions: Path) -> None:
    plain = BenchFaults(owner="vllm", on_cpu=True)
    chain = BenchFaults(owner="vllm", on_cpu=True, speculation=(3, 1, 4))
    with running(plain, chain) as servers:
        table = run(servers, tiny, questions, "2,3,1,4", temperature=(0.0, 0.7)).table
    assert [row.get("samples_of_target", True) for row in table] == [True, True, True, False]
    assert "writes nonsense" in table[3]["notes"][0]
    assert table_row(table[3])[1] == "2,3,1,4 *"


def test_acceptance_is_told_by_category_and_by_length(tiny: Path, questions: Path) -> None:
    rows = [
        {"question_id": str(i), "category": ("coding", "qa")[i % 2], "turns": [f"Say {'so ' * (300 * (i % 3))}{i}"]}
        for i in range(6)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(PLAIN, CHAIN) as servers:
        plain, chain = run(servers, tiny, questions, "2,3,1,4").table
    assert list(chain["by_category"]) == list(plain["by_category"]) == ["coding", "qa"]
    assert [part["requests"] for part in chain["by_category"].values()] == [3, 3]
    for parts in (chain["by_category"].values(), chain["by_context"]):
        assert sum(part["passes"] for part in parts) == chain["passes"]
        assert sum(part["tokens"] for part in parts) == chain["tokens"]
        assert {part["acceptance_length"] for part in parts} == {chain["acceptance_length"]}
    assert len(chain["by_context"]) > 1
    assert all(low <= high for low, high in (part["prompt_tokens"] for part in chain["by_context"]))
    assert "passes" not in plain["by_category"]["qa"]


def test_older_files_are_gone_on_with(tiny: Path, questions: Path) -> None:
    """A file of before: no top_p, no target of running servers, no parts, differences judged by the draft's server."""
    with running(PLAIN, CHAIN) as servers:
        done = run(servers, tiny, questions, "2,3,1,4")
        first, *rows = [json.loads(line) for line in done.output.read_text().splitlines()]
        for key in ("top_p", "top_k"):
            del first["settings"][key]
        del first["schema"]
        first["settings"]["target"] = ""
        for row in rows:
            for key in ("category", "by_category", "by_context", "environment", "differences_beyond_ties"):
                row.pop(key, None)
        done.output.write_text("".join(json.dumps(row) + "\n" for row in (first, *rows)))
        again = run(servers, tiny, questions, "2,3,1,4")
    assert (again.measured, len(again.table)) == (0, 2)
    assert part_rows(again.table) == []


def test_images_are_asked_by_chat_completions_and_texts_by_tokens(tmp_path: Path) -> None:
    image_target(tmp_path / "target", "qwen2.5-vl")
    images = write_images(tmp_path / "images")
    rows = [{"turns": ["What?", "And then?"], "image": "images/0.png"}, {"turns": ["Plain?", "And then?"]}]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with running(PLAIN, CHAIN) as servers:
        plain, chain = run(servers, tmp_path / "target", questions, "2,3,1,4", multi_turn=True).table
        chats = [body for body in servers[1].bodies if "messages" in body]
        tokens = [body for body in servers[1].bodies if "input_ids" in body]
    url = "data:image/png;base64," + base64.b64encode(images[0].read_bytes()).decode()
    asked = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}],
    }
    assert [body["messages"][0] for body in chats] == [asked, asked]
    assert [len(body["messages"]) for body in chats] == [1, 3]
    assert all("stream" not in body and body["stop_token_ids"] for body in chats)
    assert len(tokens) >= 2
    assert (plain["requests"], chain["compared"], chain["identical"]) == (4, 4, 4)
    assert chain["acceptance_length"] == 3.0
    tables = {
        "target": {"model_path": str(tmp_path / "target")},
        "data": {"chat_template": "chatml"},
        "bench": {"benchmark_list": (f"{questions}:1",), "output": tmp_path / "own.jsonl", "config_list": ("1,0,0,0",)},
    }
    with running(PLAIN) as servers, fails("images-unsupported"):
        bench(Settings.model_validate({**tables, "server": {"address_port": [servers[0].address]}}), Silent())
