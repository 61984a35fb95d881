"""Targets whose weights are quantised, and those with a LoRA adapter, in the real SGLang and vLLM beside a draft.

What the engines round as our own decoder does not is said where it is compared: activations in INT8 and FP8.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from eagle3cli.backends.target.adapter import merged_folder
from eagle3cli.runtime.report import Silent
from tests.adapters import make_adapter
from tests.conftest import RunCli
from tests.engines.lines import assert_as_our_own, engine_python, run_line, running_line, said_by
from tests.quantized import quantize
from tests.serving.engine_case import REPLY, STEPS, Expected, make_draft, make_target

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
FAMILIES = pytest.mark.families
TYPES = {"awq": "float16", "compressed-int4": "float16", "gptq-symmetric": "float16", "compressed-w8a8": "float32"}
"""Formats that vLLM runs on a CPU without AMX, and the type of all that is not quantised: its kernels of 4 bits know
no float32, and bfloat16 has more near ties."""
ADAPTED = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
VLLM_SERVES = """
import gc, json, os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest
cases, prompts, tokens = json.loads(sys.argv[1])
sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
said = {}
def counted(llm):
    values = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return [values.get(f"vllm:spec_decode_num_{what}", 0) for what in ("drafts", "accepted_tokens")]
for name, case in cases.items():
    adapter = case.pop("adapter")
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    options = {"enable_lora": True, "max_lora_rank": 8} if adapter else {}
    llm = None
    try:
        llm = LLM(**case, **options, enforce_eager=True, max_num_seqs=8, max_model_len=256, disable_log_stats=False)
    except Exception as error:
        said[name] = str(error)
    else:
        said[name] = []
        for prompt in prompts[name]:  # several at once end vLLM 0.32 on a CPU, where there are an adapter and a draft
            before = counted(llm)
            asked = {"prompt_token_ids": prompt}
            (output,) = llm.generate([asked], sampling, use_tqdm=False, lora_request=lora)
            more = [new - old for new, old in zip(counted(llm), before)]
            said[name].append([list(output.outputs[0].token_ids), *more])
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
print("SAID" + json.dumps(said))
"""


def quantised(folder: Path, name: str, family: str = "qwen3") -> Expected:
    """A random target in a format, its draft (both below ``folder``), and what our own decoder says of them."""
    make_target(folder / "target", family)
    quantize(folder / "target", name, keep=("lm_head",))
    raw = json.loads((folder / "target" / "config.json").read_text())
    return make_draft(folder / "draft", folder / "target", raw, clear=True)


def adapted(folder: Path) -> Expected:
    """The same of a target with an adapter, merged by us; the two that it is made of are ``base`` and ``adapter``."""
    make_target(folder / "base", "qwen3")
    config = {"lora_alpha": 16, "target_modules": list(ADAPTED)}
    make_adapter(folder / "adapter", folder / "base", ADAPTED, rank=8, **config)
    merged = merged_folder(str(folder / "base"), folder / "adapter", folder / "models", Silent(), None)
    shutil.copytree(merged, folder / "target")
    raw = json.loads((folder / "target" / "config.json").read_text())
    return make_draft(folder / "draft", folder / "target", raw)


def vllm_case(folder: Path, dtype: str, *, plain: bool = False) -> dict[str, Any]:
    """What the program inside vLLM is told of a target and its draft; ``plain`` is without the draft."""
    draft = {"method": "eagle3", "model": str(folder / "draft"), "num_speculative_tokens": STEPS}
    return {
        **{"model": str(folder / "target"), "dtype": dtype, "adapter": None},
        "speculative_config": None if plain else draft,
    }


def test_vllm_serves_quantised_and_adapted_targets(tmp_path: Path) -> None:
    """One process of vLLM for all: starting it is what takes long."""
    expected = {name: quantised(tmp_path / name, name) for name in TYPES}
    expected["merged"] = expected["live"] = adapted(tmp_path / "merged")
    cases = {name: vllm_case(tmp_path / name, dtype) for name, dtype in TYPES.items()}
    cases["merged"] = vllm_case(tmp_path / "merged", "float32")
    own = {"model": str(tmp_path / "merged" / "base"), "adapter": str(tmp_path / "merged" / "adapter")}
    cases["live"] = {**cases["merged"], **own}
    cases["plain"] = vllm_case(tmp_path / "compressed-w8a8", "float32", plain=True)
    expected["plain"] = expected["compressed-w8a8"]
    for name in ("gptq", "compressed-int3"):
        make_target(tmp_path / name / "target", "qwen3")
        quantize(tmp_path / name / "target", name, keep=("lm_head",))
        cases[name] = vllm_case(tmp_path / name, "float16", plain=True)
    prompts = {name: each.prompts for name, each in expected.items()}
    said = said_by("vllm", VLLM_SERVES, json.dumps([cases, prompts, REPLY]))
    assert "desc_act=True" in said.pop("gptq")  # as unread_weights says
    assert "Failed to find a kernel" in said.pop("compressed-int3")
    plain = said.pop("plain")
    assert_nearly(said.pop("compressed-w8a8"), [reply for reply, *_ in plain], expected["compressed-w8a8"])
    for name, answers in said.items():
        ours = expected[name]
        assert [reply for reply, *_ in answers] == ours.replies, name
        assert [passes for _, passes, _ in answers] == ours.steps, name
        accepted = sum(accepted for *_, accepted in answers)
        assert 0 <= accepted - sum(ours.accepted_at) <= STEPS * len(answers), name
        assert ours.acceptance_length > 1.3, name


def assert_nearly(answers: list[list[Any]], plain: list[list[int]], expected: Expected) -> None:
    """An engine rounds what its layers read to 8 bits: few replies to such prompts change, and few of the draft's
    tokens in the others."""
    same = [n for n, (reply, *_) in enumerate(answers) if reply == expected.replies[n]]
    assert len(same) >= 4
    assert sum(answers[n][0] == plain[n] for n in same) >= len(same) - 1
    ours = sum(expected.steps[n] for n in same)
    assert abs(sum(answers[n][1] for n in same) - ours) <= 0.1 * ours


def sglang_line(run_cli: RunCli, dtype: str) -> str:
    """What export prints for the trained draft in the current folder; it is written to ``exported``."""
    Path("steps.toml").write_text(f"[run]\nk = {STEPS}\n")
    words = ("--draft-model-path", "draft", "--target-model-path", "target", "--output-path", "exported")
    ran = run_cli("export", *words, "--export-dtype", dtype, "--config", "steps.toml", "--json")
    assert ran.code == 0, ran.err
    return str(ran.json["serve_lines"]["sglang"])


def test_sglang_serves_gptq(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own layers and loader; the product is the stand-in's, without the rounding of activations that AMX has."""
    monkeypatch.chdir(tmp_path)
    expected = quantised(tmp_path, "gptq-symmetric")
    answers, counted = run_line("sglang", sglang_line(run_cli, "float16"), expected, tmp_path / "logs")
    assert_as_our_own(answers, counted, expected, STEPS)


def test_sglang_adds_an_adapter(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unmerged target with the adapter beside it, and the draft that was trained on the merged one."""
    monkeypatch.chdir(tmp_path)
    expected = adapted(tmp_path)
    line = sglang_line(run_cli, "float32").replace("--model-path target", "--model-path base")
    sampling = {"temperature": 0, "max_new_tokens": REPLY, "ignore_eos": True}
    asked = {"input_ids": expected.prompts, "sampling_params": sampling}
    with running_line("sglang", f"{line} --lora-paths mine=adapter --lora-backend torch_native", tmp_path) as address:
        with_it, without = (
            httpx.post(f"http://{address}/generate", json={**asked, "lora_path": name}, timeout=120).json()
            for name in ("mine", None)
        )
    assert [answer["output_ids"] for answer in with_it] == expected.replies
    assert sum(answer["meta_info"]["spec_verify_ct"] for answer in with_it) == sum(expected.steps)
    assert [answer["output_ids"] for answer in without] != expected.replies


@FAMILIES
def test_sglang_serves_a_merged_target(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = adapted(tmp_path)
    answers, counted = run_line("sglang", sglang_line(run_cli, "float32"), expected, tmp_path / "logs")
    assert_as_our_own(answers, counted, expected, STEPS)


CHAIN = """
[run]
k = 3
held_out_prompts = 2
new_tokens = 24
speed_prompts = 1
[target]
model_path = "target"
threads = 1
[prepare]
source = "in.jsonl"
[regenerate]
max_tokens = 32
batch_size = 16
[merge]
eval_size = 4
[train]
mode = "online"
total_steps = 12
batch_size = 8
learning_rate = 2e-3
ttt_length = 3
[bench]
benchmark_list = ["q.jsonl:4"]
config_list = ["2,3,1,4"]
max_tokens = 24
"""


@FAMILIES
@pytest.mark.parametrize("name", ["compressed-w8a8", "compressed-fp8-dynamic", "awq"])
def test_a_chain_to_vllm(name: str, run_cli: RunCli, tmp_path: Path, shared: Path) -> None:
    """A target that is sure of its words, from prompts to both benchmarks: all is as the local engine says, or nearly
    so where vLLM rounds activations, too."""
    source = shared / "engines" / "tiny_eagle3" / "target"
    if not source.is_dir():
        pytest.skip(f"no trained tiny target at {source}")
    python = engine_python("vllm")
    (tmp_path / "target").mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, tmp_path / "target" / path.name)
    quantize(tmp_path / "target", name, keep=("lm_head",))
    asked = [f"count{' back' * (n % 3 == 0)} from {n * 7 % 100}" for n in range(32)]
    rows = [{"messages": [{"role": "user", "content": text}]} for text in asked]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"turns": [f"count{' back' * (n % 3 == 0)} from {n * 11 % 100}"]} for n in range(12)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "chain.toml").write_text(CHAIN)
    done = run_cli("run", "chain.toml", "--json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "runs" / "chain" / "report.json").read_text())["lossless"] is True
    words = ("bench", "--model-path", "target", "--speculative-draft-model-path", "runs/chain/draft", "--device", "cpu")
    options = ("--threads", 1, "--benchmark-list", "q.jsonl", "--max-tokens", 32, "--config-list", "2,3,1,4", "--json")
    engines = {"local": ("--dtype", "bfloat16"), "vllm": ("--server-python", python)}
    measured = {}
    for engine, own in engines.items():
        ran = run_cli(*words, *options, "--engine", engine, *own, "--output", f"{engine}.jsonl")
        assert ran.code == 0, ran.err
        measured[engine] = ran.json["configurations"][1]
    assert measured["vllm"]["differences_beyond_ties"] == 0
    assert 1.3 < measured["local"]["acceptance_length"] < 3.9
    assert measured["vllm"]["acceptance_length"] == pytest.approx(measured["local"]["acceptance_length"], rel=0.1)
