"""The settings of every command, one frozen table each; a field is written once and its flag is generated from it.

Nothing here imports torch. ``flag`` names the command-line option where it differs from ``--field-name``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Table(BaseModel):
    """A frozen settings table that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def option(default: Any, help: str, *flags: str, bare: str | None = None, **bounds: Any) -> Any:
    """A field with its help text and, where they differ from the field's name, its flags.

    ``bare`` is the value of a flag that stands without one.
    """
    extra: dict[str, Any] = {"flags": list(flags)} if flags else {}
    extra |= {"bare": bare} if bare is not None else {}
    return Field(default, description=help, json_schema_extra=extra or None, **bounds)


ComputeType = Literal["auto", "float32", "bfloat16", "fastest"]


class Target(Table):
    """The frozen model that the draft serves."""

    model_path: str = option(
        "", "Target model: a folder, a hub id, or a .gguf file.", "--target-model-path", "--model-path"
    )
    backend: Literal["auto", "hf", "custom"] = option(
        "auto",
        "What runs the target: transformers (hf; also called custom), which auto chooses.",
        "--target-model-backend",
    )
    revision: str | None = option(None, "Hub revision (branch, tag or commit) of the target.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Weights' type; auto is float32 on a CPU and the checkpoint's own on a GPU."
    )
    device: str = option("auto", "cpu, cuda, cuda:0 ...; auto takes a GPU where there is one.")
    threads: int | None = option(None, "CPU threads for torch; default: one per core.", ge=1)
    trust_remote_code: bool = option(False, "Run Python code that the model's repository ships.")


class Draft(Table):
    """The EAGLE-3 draft model."""

    config: str = option("auto", "Draft config: auto (derived from the target) or a JSON file.", "--draft-model-config")
    vocab_size: int | None = option(None, "Draft vocabulary; overrides the config.", "--draft-vocab-size", ge=1)
    aux_layers: tuple[int, ...] | None = option(
        None, "Target layers whose outputs feed the draft, low to high; default 1, L//2-1, L-4.", "--aux-layers"
    )
    init: Literal["target", "random"] = option(
        "target", "Initial weights: solved from the target's own states, or random.", "--draft-init"
    )
    fc_norm: bool | None = option(
        None, "EAGLE-3.1: norm each auxiliary layer before fc; default: as the draft config says, auto: no."
    )
    norm_output: bool | None = option(
        None, "EAGLE-3.1: the next depth gets the normed state; default: as the draft config says, auto: yes."
    )
    path: str | None = option(
        None, "A trained draft (folder in SGLang's layout).", "--draft-model-path", "--speculative-draft-model-path"
    )


class Data(Table):
    """What is trained and evaluated on, shared by cache, view, hidden-states, train and eval."""

    train_path: Path | None = option(None, "Training conversations (jsonl).", "--train-data-path", "--data-path")
    eval_path: Path | None = option(None, "Held-out conversations (jsonl).", "--eval-data-path")
    cache_dir: Path = option(Path("cache"), "Where tokenised data are kept.", "--cache-dir")
    train_hidden_states_path: tuple[Path, ...] = option(
        (), "Hidden-state store to train on; several are read as one.", "--train-hidden-states-path"
    )
    eval_hidden_states_path: Path | None = option(
        None, "Hidden-state store to evaluate on.", "--eval-hidden-states-path"
    )
    chat_template: str = option("auto", "auto (the tokenizer's own), a named template, or a .jinja file.")
    chat_template_kwargs: tuple[str, ...] = option(
        (), "Values that the template reads, e.g. enable_thinking=false reasoning_effort=high."
    )
    max_length: int = option(2048, "Tokens per row; longer rows are cut and counted.", ge=8)
    system_prompt: str | None = option(None, "System prompt (text, or @FILE) that replaces each row's own.")
    is_preformatted: bool = option(False, "Rows are {id, text}, already in the chat template's format.")
    assistant_header: str | None = option(
        None,
        "Pre-formatted rows: what stands before a reply, if not the template's header; \\n is a line break.",
    )
    end_of_turn_token: str | None = option(None, "Pre-formatted rows: what ends a reply; needs --assistant-header.")
    user_header: str | None = option(
        None, "Pre-formatted rows: what stands before a user's text; a reply without its end stops there."
    )
    num_proc: int = option(0, "Processes for tokenising; 0: one per core.", "--build-dataset-num-proc", ge=0)
    last_turn_only: bool = option(False, "Train only the last assistant turn of a row.", "--train-only-last-turn")

    @model_validator(mode="after")
    def _marks_are_for_text(self) -> Data:
        marks = ("assistant_header", "end_of_turn_token", "user_header")
        given = [name for name in marks if getattr(self, name) is not None]
        if given and not self.is_preformatted:
            raise ValueError(f"data.{given[0]} is for pre-formatted rows; set data.is_preformatted too")
        if given and not self.assistant_header:
            raise ValueError(f"data.{given[0]} needs data.assistant_header, which tells where a reply begins")
        if self.system_prompt is not None and self.is_preformatted:
            raise ValueError("data.system_prompt cannot change pre-formatted rows; leave one of the two out")
        return self

    @field_validator("train_hidden_states_path", mode="before")
    @classmethod
    def _one_store(cls, value: object) -> object:
        """One store may stand as plain text."""
        return (value,) if isinstance(value, (str, Path)) else value


class Prepare(Table):
    """eagle3 prepare: any source of conversations to one layout."""

    source: tuple[str, ...] = option(
        ("sharegpt",),
        "Presets, hub data sets (OWNER/NAME), local json, jsonl (.gz, .zst) or parquet files, or folders. Several are "
        "joined, with NAME:WEIGHT in these shares. Presets: ultrachat, sharegpt, eaglechat, perfectblend, "
        "perfectblend-llama3.1-8b-instruct, perfectblend-llama3.3-70b-instruct, perfectblend-llama4-scout-instruct, "
        "perfectblend-llama4-maverick-instruct, metamath, ultrainteract, orca-math, ultrafeedback, evol-codealpaca, "
        "autoif, lmsys-arena, magpie, opc, nemotron-post-training, opencodeinstruct, magicoder, codealpaca, gsm8k, "
        "hendrycks-math, camel, self (the target writes the prompts), quickstart.",
    )
    output_path: Path | None = option(None, "Folder for the result; default ./cache/dataset/NAME.", "--output-path")
    data_path: Path | None = option(None, "Read a preset's layout from this local file.", "--data-path")
    split: str = option("train", "Split of a hub data set.")
    subset: str | None = option(None, "Subset (configuration) of a hub data set.")
    sample_size: int | None = option(None, "Rows to keep, drawn with --seed.", ge=1)
    split_eval: bool = option(False, "Also write an evaluation file (5% of the rows, at most 1,000).", "--split-eval")
    seed: int = option(0, "Seed of sampling and splitting.")
    prompts_only: bool = option(False, "Keep only the first user message of each conversation.")
    min_turns: int = option(1, "Drop conversations with fewer user turns.", ge=1)
    max_turns: int | None = option(None, "Cut conversations after this many user turns.", ge=1)
    max_prompt_words: int | None = option(None, "Drop rows whose first user message is longer.", ge=1)
    near_duplicates: float = option(
        0.0,
        "Also drop rows of which at least this share of the words is in an earlier row, e.g. 0.9; 0 keeps them "
        "(exact duplicates always go).",
        ge=0,
        le=1,
    )
    drop_truncated: bool = option(False, "Drop rows with a reply that the length limit cut (where the row says so).")
    drop_loops: bool = option(False, "Drop rows with a reply that repeats itself to its end.")
    drop_refusals: bool = option(False, "Drop rows with a reply that refuses.")
    map: tuple[str, ...] = option((), "Field mapping role=column, e.g. user=question assistant=answer.", "--map")
    overwrite: bool = option(False, "Replace an existing result.")

    @field_validator("source", mode="before")
    @classmethod
    def _one_source(cls, value: object) -> object:
        """One source may stand as plain text."""
        return (value,) if isinstance(value, str) else value


class Server(Table):
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
    args: str = option("", "More words for SGLang's command line, as one text.", "--server-args")
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


class Regenerate(Table):
    """eagle3 regenerate: replies rewritten by the target."""

    input_path: Path | None = option(None, "Conversations (jsonl) from prepare.", "--input-path", "--data-path")
    output_dir: Path = option(Path("cache/regenerated"), "Folder of the shards.", "--output-dir")
    engine: Literal["auto", "sglang", "vllm", "local"] = option(
        "auto",
        "What runs the target: sglang or vllm (servers), local (this process, through transformers); auto: servers "
        "where they are given or SGLang is installed.",
    )
    turns: Literal["last", "all"] = option("all", "Rewrite the last assistant turn, or every one in order.")
    recorded: str | None = option(
        None, "Replies recorded earlier (jsonl, .gz, or a packaged name), used for prompts they match.", "--recorded"
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


class Merge(Table):
    """eagle3 merge: shards to a training and an evaluation file."""

    input_dir: Path = option(Path("cache/regenerated"), "Folder of shards from regenerate.", "--input-dir")
    output_dir: Path = option(Path("cache/dataset"), "Folder for train.jsonl and eval.jsonl.", "--output-dir")
    train_size: int | None = option(None, "Training rows; default: all that remain.", ge=1)
    eval_size: int = option(10000, "Held-out rows; at most a tenth of all unless set.", ge=0)
    seed: int = option(0, "Seed of the split.")
    drop_truncated: bool = option(False, "Leave out rows with a reply that the length limit cut.")
    drop_loops: bool = option(False, "Leave out rows with a reply that repeats itself to its end.")
    drop_refusals: bool = option(False, "Leave out rows with a reply that refuses.")
    overwrite: bool = option(False, "Replace earlier files.")


class CacheTable(Table):
    """eagle3 cache: token rows with masks, and the draft vocabulary."""

    reply_weight: int = option(3, "Weight of reply tokens when counting the draft vocabulary.", ge=0)
    prompt_weight: int = option(
        1, "Weight of prompt tokens when counting the draft vocabulary; 0 counts replies only.", ge=0
    )
    view_train_data: tuple[int, ...] = option((), "Show these rows (from 1) after caching.", "--view-train-data")
    overwrite: bool = option(False, "Rebuild even if a current cache exists.")


class View(Table):
    """eagle3 view, eagle3 view-train-data: what is trained on, token by token."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # rows = [1, 2] in a settings file

    rows: tuple[str, ...] = option((), "Rows to show: numbers, counted from 1, or ids; default: the first.")
    id: tuple[str, ...] = option((), "Ids of rows to show, also such as look like a number.")
    path: Path | None = option(
        None, "A jsonl file, a cache folder or a hidden-state store; default: the training data."
    )
    random: int | None = option(None, "Show this many random rows (drawn with --seed).", ge=1)
    seed: int = option(0, "Seed of --random.")
    ids: bool = option(False, "Show token ids.")
    whitespace: bool = option(False, "Show blanks, tabs, line ends and invisible characters.")
    html: Path | None = option(None, "Also write an HTML page.")
    check_template: str | None = option(
        None,
        "Compare this named template or .jinja file with the tokenizer's own; without a name: the one of "
        "--chat-template, else all that fit.",
        bare="auto",
    )


class HiddenStates(Table):
    """eagle3 hidden-states: the target's states to disk."""

    output_path: Path = option(Path("cache/hidden_states"), "Folder of the stores (train/ and eval/).", "--output-path")
    split: Literal["train", "eval", "both"] = option("both", "Which cached rows to capture.")
    dtype: ComputeType = option(
        "auto",
        "Type the target computes in here; auto: target.dtype; fastest: bfloat16 where the processor has it.",
        "--states-dtype",
    )
    encoding: Literal["auto", "bf16", "fp8", "int8", "int4"] = option(
        "bf16",
        "How states are kept: bf16 (exact), fp8, int8 (half of it), int4 (a quarter); auto: int8, or int4 where int8 "
        "would take over half of the free space. Held-out rows are always kept in bf16.",
    )
    enable_aux_hidden_states: bool = option(
        True, "Keep the auxiliary layers' states; without them there is nothing that EAGLE-3 learns from."
    )
    batch_tokens: int = option(4096, "Tokens per target pass.", ge=1)
    batch_size: int | None = option(
        None, "Rows per target pass, at most; default: as many as --batch-tokens allows.", ge=1
    )
    mem_frac: float | None = option(None, "Share of a GPU's memory that the capture may take.", gt=0, le=1)
    shard_mb: int = option(1000, "Size of a shard in MB, at most; small stores have smaller ones.", ge=1)
    sample_size: int | None = option(None, "Only the first N rows.", ge=1)
    overwrite: bool = option(False, "Start over and replace an earlier store.")
    paths: tuple[Path, ...] = option((), "Stores; default: those of --output-path.", "--paths")
    recompute: int = option(8, "Rows of each store that verify computes again with the target; 0: none.", ge=0)


class Train(Table):
    """eagle3 train."""

    mode: Literal["online", "offline"] = option(
        "online", "online: the target runs live; offline: hidden states come from disk."
    )
    output_dir: Path = option(Path("runs/train"), "The run's folder.", "--output-dir")
    num_epochs: int = option(10, "Passes over the data.", ge=1)
    total_steps: int | None = option(None, "Stop after this many optimiser steps.", ge=1)
    time_budget: str | None = option(
        None, "Train for this time, e.g. 40m, whatever num_epochs says; the schedule ends with it."
    )
    batch_size: int = option(4, "Sequences per optimiser step.", "--batch-size", "--draft-global-batch-size", ge=1)
    micro_batch_size: int | None = option(
        None, "Sequences per forward pass; gradients accumulate to the batch.", "--draft-micro-batch-size", ge=1
    )
    learning_rate: float = option(1e-4, "Peak learning rate.", gt=0)
    head_lr_scale: float = option(
        1.0, "Learning rate of the draft's head, as a factor; 0 keeps the target's head.", ge=0
    )
    optimizer: Literal["adamw", "muon"] = option(
        "adamw", "muon: Muon for the layer's matrices, AdamW for the head and the norms."
    )
    lr_schedule: Literal["cosine", "constant", "wsd"] = option("cosine", "Shape of the learning rate after warm-up.")
    min_lr_ratio: float = option(0.0, "Where the schedule ends, as a share of the peak.", ge=0, le=1)
    warmup_ratio: float = option(0.015, "Share of the steps that warm up.", ge=0, lt=1)
    max_grad_norm: float = option(0.5, "Gradients are clipped to this global norm.", gt=0)
    ttt_length: int = option(7, "Depths of the training-time unroll.", ge=1, le=16)
    loss: Literal["kl", "tv", "lk", "mix"] = option(
        "kl",
        "kl: cross-entropy; tv: 1 - acceptance rate; lk: -log of the rate; mix: kl and tv, by --kl-scale, --kl-decay.",
    )
    kl_scale: float = option(1.0, "Share of kl in mix at an acceptance rate of 0.", ge=0, le=1)
    kl_decay: float = option(1.0, "How fast that share falls as the rate rises: scale * exp(-decay * rate).", ge=0)
    loss_decay: float = option(0.8, "Weight of depth i is this to the power i.", gt=0, le=1)
    anchor_fraction: float = option(
        1.0, "Share of the rows with loss that a step trains on, drawn anew each step.", gt=0, le=1
    )
    alignment: Literal["serving", "specforge"] = option(
        "serving", "Which rows carry loss (EAGLE-3 serving, or SpecForge)."
    )
    attention_backend: Literal["auto", "sdpa", "flex_attention"] = option(
        "auto",
        "Attention kernel: sdpa runs anywhere, flex_attention on CUDA; auto takes the device's own.",
        "--attention-backend",
        "--draft-attention-backend",
    )
    activation_checkpointing: bool = option(
        False, "Keep no activations inside a depth; make them again in the backward pass (less memory, more time)."
    )
    dtype: ComputeType = option(
        "auto",
        "Type the draft computes in (its master weights are float32); auto: float32 on a CPU, else bfloat16; "
        "fastest: bfloat16 where the processor has it.",
        "--draft-dtype",
    )
    seed: int = option(0, "Seed of initial weights and data order.")
    save_interval: int = option(1000, "Steps between checkpoints.", ge=1)
    eval_interval: int = option(1000, "Steps between evaluations.", ge=1)
    log_interval: int = option(10, "Steps between log lines.", ge=1)
    keep_checkpoints: int = option(3, "Newest checkpoints kept (best/ is kept besides).", ge=1)
    eval_rows: int = option(64, "Held-out rows per evaluation.", ge=1)
    early_stop: int | None = option(
        None, "Stop after this many evaluations in a row without a better acceptance length.", ge=1
    )
    max_skipped_steps: int = option(10, "Stop once this many steps had no finite gradient.", ge=1)
    resume: bool = option(True, "Go on from the newest checkpoint of --output-dir.")
    overwrite: bool = option(False, "Start over and replace an earlier run.")


class Eval(Table):
    """eagle3 eval: acceptance length by the walk."""

    depths: int = option(7, "Draft depths (k) that are measured.", ge=1, le=16)
    rows: int | None = option(None, "Only the first N held-out rows.", ge=1)


class Export(Table):
    """eagle3 export: a draft folder that SGLang loads."""

    output_path: Path = option(Path("runs/draft"), "Folder to write.", "--output-path")
    layout: Literal["sglang", "legacy"] = option("sglang", "Layout of the folder.")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "bfloat16", "Type of the exported weights.", "--export-dtype"
    )
    overwrite: bool = option(False, "Replace an existing folder.")


class Bench(Table):
    """eagle3 bench: acceptance and speed with and without the draft."""

    engine: Literal["local"] = option("local", "What decodes; local: our own lossless chain decoder.")
    config_list: tuple[str, ...] = option(
        ("1,0,0,0", "1,3,1,4", "1,5,1,6"),
        "Configurations batch,steps,topk,draft_tokens; 0s are the baseline.",
        "--config-list",
    )
    benchmark_list: tuple[str, ...] = option(
        ("mtbench:8",), "Tasks as NAME:ROWS or FILE.jsonl:ROWS.", "--benchmark-list"
    )
    max_tokens: int = option(128, "New tokens per answer.", ge=1)
    multi_turn: bool = option(False, "Ask every turn, not only the first.", "--enable-multi-turn-conversation")
    system_prompt: str | None = option(None, "System prompt (text, or @FILE).")
    output: Path = option(Path("runs/bench/results.jsonl"), "Result file (jsonl).", "--output")
    overwrite: bool = option(False, "Replace earlier results.")


class Run(Table):
    """eagle3 run: the whole chain from one settings file."""

    output_dir: Path = option(Path("runs/run"), "The run's folder.", "--output-dir")
    k: int = option(5, "Draft depth of the final measurement.", ge=1, le=16)
    held_out_prompts: int = option(64, "Held-out prompts of the final measurement.", ge=1)
    new_tokens: int = option(128, "New tokens per held-out prompt.", ge=1)
    speed_prompts: int = option(4, "Prompts on which tokens/s are timed, one at a time.", ge=1)
    batch_size: int = option(16, "Held-out prompts decoded together.", "--measure-batch-size", ge=1)
    regenerate: bool = option(False, "Have the target write every reply anew instead of using recorded ones.")
    overwrite: bool = option(False, "Redo the stages whose settings changed, and all after them.")


class Settings(Table):
    """All tables; one file serves all commands."""

    target: Target = Target()
    draft: Draft = Draft()
    data: Data = Data()
    prepare: Prepare = Prepare()
    server: Server = Server()
    regenerate: Regenerate = Regenerate()
    merge: Merge = Merge()
    cache: CacheTable = CacheTable()
    view: View = View()
    hidden_states: HiddenStates = HiddenStates()
    train: Train = Train()
    eval: Eval = Eval()
    export: Export = Export()
    bench: Bench = Bench()
    run: Run = Run()

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> Settings:
        micro, batch = self.train.micro_batch_size, self.train.batch_size
        if micro is not None and batch % micro:
            raise ValueError(
                f"train.micro_batch_size {micro} does not divide train.batch_size {batch}; "
                f"make the batch a multiple of the micro batch"
            )
        return self
