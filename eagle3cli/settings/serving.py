"""Servers, the replies that they write, and the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eagle3cli.settings.table import Table, option


class ServerSettings(Table):
    """Servers that run the target: those that are given, or SGLang, started for the work and stopped after it."""

    address_port: tuple[str, ...] = option(
        (),
        "Running servers, HOST:PORT or URL each (SGLang, vLLM ...); default: they are started.",
        "--server-address-port",
    )
    python: str = option(
        "",
        "What starts SGLang: a Python, or words that end with one (of a container); default: this Python.",
        "--server-python",
    )
    llama_server: str = option(
        "", "llama.cpp's llama-server: its path; default: the one on the PATH.", "--llama-server"
    )
    args: str = option("", "More words for the server's command line, as one text.", "--server-args")
    replicas: int | None = option(
        None, "Servers to start; default: as many as --tp-size fits into the visible GPUs, one on a CPU.", ge=1
    )
    tp_size: int = option(1, "GPUs of one server (tensor parallel).", ge=1)
    mem_fraction_static: float | None = option(
        None, "Share of a GPU's memory for weights and cache; default: SGLang's own.", gt=0, lt=1
    )
    port: int | None = option(None, "Port of the first server, the others follow; default: free ones.", ge=1, le=65535)
    max_concurrency: int = option(512, "Requests under way at once, over all servers.", ge=1)
    request_timeout: int = option(1800, "Seconds that one reply may take.", ge=1)
    dist_timeout: int = option(1800, "Seconds that a server may take to start; SGLang is told, too.", ge=1)


class RegenerateSettings(Table):
    """eagle3 regenerate: replies rewritten by the target."""

    input_path: Path | None = option(None, "Conversations (jsonl) from prepare.", "--input-path", "--data-path")
    output_dir: Path = option(Path("cache/regenerated"), "Folder of the shards.")
    engine: Literal["auto", "sglang", "vllm", "llama.cpp", "local"] = option(
        "auto",
        "What runs the target: sglang, vllm or llama.cpp (servers), local (this process, through transformers); auto: "
        "servers where they are given or SGLang is installed.",
    )
    turns: Literal["last", "all"] = option("all", "Rewrite the last assistant turn, or every one in order.")
    recorded: str | None = option(
        None, "Replies recorded earlier (jsonl, .gz, or a packaged name), used for prompts they match."
    )
    batch_size: int = option(64, "Conversations decoded together by --engine local.", ge=1)
    max_tokens: int = option(2048, "Longest reply in tokens.", ge=1)
    temperature: float = option(0.0, "0 is greedy.", ge=0.0)
    top_p: float = option(1.0, "Nucleus sampling.", gt=0.0, le=1.0)
    top_k: int = option(0, "Sample among the k likeliest tokens; 0: all.", ge=0)
    seed: int = option(0, "Seed of sampling; each reply has its own stream.")
    system_prompt: str | None = option(None, "System prompt (text, or @FILE) that replaces each row's own.")
    num_per_shard: int = option(50000, "Rows per shard file.", ge=1)
    sample_range: str | None = option(None, "Rows A:B of the input only, counted from 0.")
    is_reasoning_model: bool = option(False, "Keep the reasoning text as the target emits it.")
    reasoning_effort: Literal["low", "medium", "high"] | None = option(
        None, "Effort that the chat template asks the target for (GPT-OSS and others)."
    )
    retry_errors: bool = option(False, "Run only the rows that failed before.")
    overwrite: bool = option(False, "Start over and replace earlier shards.")


class BenchSettings(Table):
    """eagle3 bench: acceptance and speed with and without the draft."""

    engine: Literal["auto", "sglang", "vllm", "llama.cpp", "local"] = option(
        "auto",
        "What decodes: sglang, vllm or llama.cpp (a server for each configuration), local (this process, lossless "
        "chains); auto: servers where they are given or SGLang is installed.",
    )
    config_list: tuple[str, ...] = option(
        ("1,0,0,0", "1,3,1,4", "1,5,1,6"),
        "Configurations batch,steps,topk,draft_tokens; 0s are the baseline.",
    )
    benchmark_list: tuple[str, ...] = option(
        ("mtbench:8",),
        "Tasks as NAME:ROWS, NAME/CATEGORY:ROWS, NAME@FILE:ROWS or FILE.jsonl:ROWS; names: mtbench, gsm8k, humaneval, "
        "math500, ceval, cmmlu, mbpp, livecodebench, alpaca, qa, summarisation, speed-bench, "
        "speed-bench-throughput-1k (2k, 8k, 16k, 32k).",
    )
    benchmark_dir: Path | None = option(
        None, "Folder with files of the tasks (gsm8k.jsonl ...), taken before packages and the hub."
    )
    temperature: tuple[float, ...] = option((0.0,), "Temperatures; 0 is greedy.")
    top_p: float = option(1.0, "Nucleus sampling, at temperatures above 0.", gt=0.0, le=1.0)
    top_k: int = option(0, "Sample among the k likeliest tokens, at temperatures above 0; 0: all.", ge=0)
    max_tokens: int = option(128, "New tokens per answer.", ge=1)
    multi_turn: bool = option(False, "Ask every turn, not only the first.", "--enable-multi-turn-conversation")
    system_prompt: str | None = option(None, "System prompt (text, or @FILE).")
    repeats: int = option(1, "Times that each configuration is measured; the spread is told.", ge=1)
    warm_up: int = option(1, "Rounds of short answers before each measurement that nobody times.", ge=0)
    seed: int = option(0, "Seed of sampling; each answer has its own stream.")
    run_code: bool = option(
        False, "Run the code that answers to humaneval, mbpp and livecodebench hold, in a limited process of its own."
    )
    search: bool = option(
        False, "Look for the fastest steps, topk and draft tokens for the batch sizes of --config-list."
    )
    search_runs: int = option(12, "Configurations that a search measures at most, for each batch size.", ge=2)
    output: Path = option(Path("runs/bench/results.jsonl"), "Result file (jsonl).")
    overwrite: bool = option(False, "Replace earlier results.")
