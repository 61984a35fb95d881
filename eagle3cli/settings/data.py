"""Conversations, token rows and hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from eagle3cli.settings.table import ComputeType, Table, option

UNSEEN_ROWS = 2048
"""Tokens per row that a plan counts with where ``data.max_length`` is auto and the rows are not there yet."""


class DataSettings(Table):
    """What is trained and evaluated on, shared by cache, view, hidden-states, train and eval."""

    train_path: Path | None = option(None, "Training conversations (jsonl).", "--train-data-path", "--data-path")
    eval_path: Path | None = option(None, "Held-out conversations (jsonl).", "--eval-data-path")
    cache_dir: Path = option(Path("cache"), "Where tokenized data are kept.")
    train_hidden_states_path: tuple[Path, ...] = option((), "Hidden-state store to train on; several are read as one.")
    eval_hidden_states_path: Path | None = option(None, "Hidden-state store to evaluate on.")
    chat_template: str = option("auto", "auto (the tokenizer's own), a named template, or a .jinja file.")
    chat_template_kwargs: tuple[str, ...] = option(
        (), "Values that the template reads, e.g. enable_thinking=false reasoning_effort=high."
    )
    max_length: Annotated[int, Field(ge=8)] | Literal["auto"] = option(
        2048,
        "Tokens per row; longer rows are cut and counted. auto: the smallest multiple of 128 that keeps 99% of the "
        "training data's reply tokens (without any, of the evaluation data's).",
    )
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
    check_masks: bool = option(True, "Judge the masks of a sample of rows before they are used; a wrong one stops.")

    @property
    def row_limit(self) -> int:
        """Tokens per row at most; the default while nobody has seen the rows that ``auto`` is chosen from."""
        return UNSEEN_ROWS if self.max_length == "auto" else self.max_length

    @model_validator(mode="after")
    def _markers_are_for_text(self) -> DataSettings:
        names = ("assistant_header", "end_of_turn_token", "user_header")
        markers = [name for name in names if getattr(self, name) is not None]
        if markers and not self.is_preformatted:
            raise ValueError(f"data.{markers[0]} is for pre-formatted rows; set data.is_preformatted too")
        if markers and not self.assistant_header:
            raise ValueError(f"data.{markers[0]} needs data.assistant_header, which tells where a reply begins")
        if self.system_prompt is not None and self.is_preformatted:
            raise ValueError("data.system_prompt cannot change pre-formatted rows; leave one of the two out")
        return self

    @field_validator("train_hidden_states_path", mode="before")
    @classmethod
    def _one_store(cls, value: object) -> object:
        """One store may stand as plain text."""
        return (value,) if isinstance(value, (str, Path)) else value


class PrepareSettings(Table):
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
    output_path: Path | None = option(None, "Folder for the result; default ./cache/dataset/NAME.")
    data_path: Path | None = option(None, "Read a preset's layout from this local file.")
    split: str = option("train", "Split of a hub data set.")
    subset: str | None = option(None, "Subset (configuration) of a hub data set.")
    sample_size: int | None = option(None, "Rows to keep, drawn with --seed.", ge=1)
    split_eval: bool = option(False, "Also write an evaluation file (5% of the rows, at most 1,000).")
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
    map: tuple[str, ...] = option((), "Field mapping role=column, e.g. user=question assistant=answer.")
    overwrite: bool = option(False, "Replace an existing result.")

    @field_validator("source", mode="before")
    @classmethod
    def _one_source(cls, value: object) -> object:
        """One source may stand as plain text."""
        return (value,) if isinstance(value, str) else value


class MergeSettings(Table):
    """eagle3 merge: shards to a training and an evaluation file."""

    input_dir: Path = option(Path("cache/regenerated"), "Folder of shards from regenerate.")
    output_dir: Path = option(Path("cache/dataset"), "Folder for train.jsonl and eval.jsonl.")
    train_size: int | None = option(None, "Training rows; default: all that remain.", ge=1)
    eval_size: int = option(10000, "Held-out rows; at most a tenth of all unless set.", ge=0)
    seed: int = option(0, "Seed of the split.")
    drop_truncated: bool = option(False, "Leave out rows with a reply that the length limit cut.")
    drop_loops: bool = option(False, "Leave out rows with a reply that repeats itself to its end.")
    drop_refusals: bool = option(False, "Leave out rows with a reply that refuses.")
    overwrite: bool = option(False, "Replace earlier files.")


class CacheSettings(Table):
    """eagle3 cache: token rows with masks, and the draft vocabulary."""

    reply_weight: int = option(3, "Weight of reply tokens when counting the draft vocabulary.", ge=0)
    prompt_weight: int = option(
        1, "Weight of prompt tokens when counting the draft vocabulary; 0 counts replies only.", ge=0
    )
    view_train_data: tuple[int, ...] = option((), "Show these rows (from 1) after caching.")
    overwrite: bool = option(False, "Rebuild even if a current cache exists.")


class ViewSettings(Table):
    """eagle3 view, eagle3 view-train-data: what is trained on, token by token."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # rows = [1, 2] in a settings file

    rows: tuple[str, ...] = option((), "Rows to show: numbers, counted from 1, or ids; default: the first.")
    id: tuple[str, ...] = option((), "Ids of rows to show, also such as look like a number.")
    path: Path | None = option(
        None, "A jsonl file, a cache folder or a hidden-state store; default: the training data."
    )
    random: int | None = option(None, "Show this many random rows (drawn with --seed).", ge=1)
    worst: int | None = option(
        None,
        "Show this many rows, those whose replies are the least the target's own, once a pass has seen them.",
        ge=1,
    )
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


class HiddenStatesSettings(Table):
    """eagle3 hidden-states: the target's states to disk."""

    output_path: Path = option(Path("cache/hidden_states"), "Folder of the stores (train/ and eval/).")
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
    paths: tuple[Path, ...] = option((), "Stores; default: those of --output-path.")
    recompute: int = option(8, "Rows of each store that verify computes again with the target; 0: none.", ge=0)
