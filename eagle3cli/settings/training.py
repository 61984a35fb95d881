"""Training, its evaluation, and the whole chain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from eagle3cli.settings.table import ComputeType, Table, option

_SERVICES = Path(__file__).parents[1] / "training" / "trackers" / "services"
TRACKERS = tuple(
    dict.fromkeys(
        (
            *("wandb", "tensorboard", "swanlab", "mlflow", "trackio"),  # in this order in the help; then all others
            *sorted(path.stem for path in _SERVICES.glob("[!_]*.py")),
        )
    )
)
"""What ``--report-to`` knows: the files of that folder, none of which is imported here."""
if TYPE_CHECKING:
    TrackerName = str
else:
    TrackerName = Literal[(*TRACKERS, "none")]


class TrainSettings(Table):
    """eagle3 train."""

    mode: Literal["online", "offline"] = option(
        "online", "online: the target runs live; offline: hidden states come from disk."
    )
    output_dir: Path = option(Path("runs/train"), "The run's folder.")
    num_epochs: int = option(10, "Passes over the data.", ge=1)
    total_steps: int | None = option(None, "Stop after this many optimiser steps.", ge=1)
    time_budget: str | None = option(
        None, "Train for this time, e.g. 40m, whatever num_epochs says; the schedule ends with it."
    )
    batch_size: int = option(4, "Sequences per optimiser step.", "--batch-size", "--draft-global-batch-size", ge=1)
    micro_batch_size: int | None = option(
        None, "Sequences per forward pass; gradients accumulate to the batch.", "--draft-micro-batch-size", ge=1
    )
    echo_factor: int = option(
        1,
        "Online: train so many steps on each batch of the target's states (data echoing); an epoch has so many "
        "times the steps.",
        ge=1,
    )
    echo_buffer: int = option(
        64, "Batches whose states --echo-factor keeps in memory: all are trained on once, then all again.", ge=1
    )
    keep_states: bool = option(
        False,
        "Online: write the target's states of the first epoch into the run's folder and read them from the second "
        "on, by --encoding. For several epochs and a disk that holds them; --echo-factor needs neither.",
    )
    max_tokens_per_gpu: int | None = option(
        None,
        "Instead of a number of sequences: tokens per forward pass of a process; sequences of like length go together.",
        ge=1,
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
    ema_decay: float | None = option(
        None,
        "Keep an exponential moving average of the weights with this decay (0.999; less in the first steps): it is "
        "measured, kept and exported. For lr_schedule constant.",
        gt=0,
        lt=1,
    )
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
    loss_chunk: int | None = option(
        None,
        "Logits that exist at once in the loss, of one depth on a CPU (4 million) and of all on a GPU (256 million); "
        "fewer take less memory and more time.",
        ge=1,
    )
    dtype: ComputeType = option(
        "auto",
        "Type the draft computes in (its master weights are float32); auto: float32 on a CPU, else bfloat16; "
        "fastest: bfloat16 where the processor has it.",
        "--draft-dtype",
    )
    sharding: Literal["auto", "replicate", "fsdp"] = option(
        "auto",
        "On several GPUs: replicate keeps the whole draft on each, fsdp a share of it; auto shards large drafts.",
        "--draft-sharding",
    )
    context_parallel: int = option(
        1, "Split each sequence over so many processes, for rows too long for one (context parallel).", ge=1
    )
    seed: int = option(0, "Seed of initial weights and data order.")
    save_interval: int = option(1000, "Steps between checkpoints.", ge=1)
    eval_interval: int = option(1000, "Steps between evaluations.", ge=1)
    log_interval: int = option(10, "Steps between log lines.", ge=1)
    keep_checkpoints: int = option(3, "Newest checkpoints kept (best/ is kept besides).", ge=1)
    eval_rows: int = option(64, "Held-out rows per evaluation.", ge=1)
    best_by: float = option(
        0.0, "Temperature that the draft will serve at: best/ is the one with the highest acceptance there.", ge=0
    )
    top_p: float = option(1.0, "Nucleus sampling that it will serve with, where best_by is above 0.", gt=0, le=1)
    top_k: int = option(
        0, "Sampling among the k likeliest tokens that it will serve with, where best_by is above 0; 0: all.", ge=0
    )
    early_stop: int | None = option(
        None, "Stop after this many evaluations in a row without a better acceptance length.", ge=1
    )
    max_skipped_steps: int = option(10, "Stop once this many steps had no finite gradient.", ge=1)
    report_to: tuple[TrackerName, ...] = option(
        (), "Experiment trackers that get the run's numbers; their keys come from the environment."
    )
    tracker_project: str = option(
        "eagle3", "Project (experiment) of the trackers.", "--wandb-project", "--tracker-project"
    )
    tracker_name: str | None = option(
        None, "The run's name there; default: the output folder's.", "--wandb-name", "--tracker-name"
    )
    resume: bool = option(True, "Go on from the newest checkpoint of --output-dir.")
    overwrite: bool = option(False, "Start over and replace an earlier run.")

    @property
    def live_share(self) -> float:
        """Share of the rows of all epochs that a live target has to read: echoes, or kept states, are the others."""
        return 1 / (self.num_epochs if self.keep_states else self.echo_factor)

    @model_validator(mode="after")
    def _kept_states_of_a_live_target(self) -> TrainSettings:
        if not self.keep_states:
            return self
        if self.mode == "offline":
            raise ValueError("train.keep_states is for a live target; train.mode offline reads states that are kept")
        if self.echo_factor > 1:
            raise ValueError("train.keep_states or train.echo_factor: either spares the target its later passes")
        if self.context_parallel > 1:
            fix = "capture the states first (eagle3 hidden-states), then train --mode offline"
            raise ValueError(f"train.keep_states needs rows that are whole on a process, not context_parallel: {fix}")
        return self

    @model_validator(mode="after")
    def _echoes_of_a_live_target(self) -> TrainSettings:
        if self.echo_factor > 1 and self.mode == "offline":
            raise ValueError("train.echo_factor is for a live target; of a store, train.num_epochs does the same")
        return self


SESSION_FIELDS = (
    *("output_dir", "save_interval", "eval_interval", "log_interval", "keep_checkpoints", "early_stop"),
    *("max_skipped_steps", "resume", "overwrite", "micro_batch_size", "max_tokens_per_gpu", "activation_checkpointing"),
    *("loss_chunk", "sharding", "context_parallel", "report_to", "tracker_project", "tracker_name"),
    *("best_by", "top_p", "top_k"),
)
"""Settings of ``train`` that no number of a step depends on."""
FREE_FIELDS = (
    *SESSION_FIELDS,
    *("mode", "keep_states", "total_steps", "num_epochs", "time_budget", "eval_rows", "attention_backend"),
)
"""Settings of ``train`` that may change between the sessions of one run."""


class LaunchSettings(Table):
    """Several processes for one command."""

    gpus: str | None = option(
        None,
        "Start one process for each of N GPUs (or auto: all) of this machine; without GPUs, N on the CPU.",
    )
    target_gpus: int | None = option(
        None,
        "Online: the first N of the processes (GPUs) hold the target, one for each --tp-size of them, and send its "
        "states to the others, which train the draft.",
        ge=1,
    )
    transfer_encoding: Literal["exact", "bf16", "fp8", "int8", "int4"] = option(
        "exact", "With --target-gpus: how states travel; exact: as the target makes them, else as in a store."
    )
    dist_timeout: float = option(
        20.0, "Minutes after which a process that keeps the others waiting ends the run.", gt=0
    )

    @property
    def targets(self) -> int:
        """Processes that hold the target alone."""
        return self.target_gpus or 0

    @field_validator("gpus")
    @classmethod
    def _number_or_auto(cls, value: str | None) -> str | None:
        if value is not None and value != "auto" and not (value.isdecimal() and int(value) > 0):
            raise ValueError(f"{value!r} is neither a number of GPUs nor auto; write 2, or auto for all")
        return value


class EvalSettings(Table):
    """eagle3 eval: simulated acceptance length."""

    depths: int = option(7, "Draft depths (k) that are measured.", ge=1, le=16)
    rows: int | None = option(None, "Only the first N held-out rows.", ge=1)
    temperature: tuple[Annotated[float, Field(ge=0)], ...] = option(
        (0.0,), "Temperatures; those above 0 beside greedy acceptance, for held-out replies that were drawn at them."
    )
    top_p: float = option(1.0, "Nucleus sampling, at temperatures above 0.", gt=0.0, le=1.0)
    top_k: int = option(0, "Sampling among the k likeliest tokens, at temperatures above 0; 0: all.", ge=0)


StageName = Literal[
    "target", "prepare", "regenerate", "merge", "cache", "hidden-states", "train", "eval", "export", "bench"
]
STAGE_NAMES: tuple[str, ...] = get_args(StageName)
"""The stages of a run, in their order."""


class RunSettings(Table):
    """eagle3 run: the whole chain from one settings file."""

    output_dir: Path = option(Path("runs/run"), "The run's folder.")
    k: int = option(5, "Draft depth of the final measurement.", ge=1, le=16)
    held_out_prompts: int = option(64, "Held-out prompts of the final measurement.", ge=1)
    new_tokens: int = option(128, "New tokens per held-out prompt.", ge=1)
    speed_prompts: int = option(4, "Prompts on which tokens/s are timed, one at a time.", ge=1)
    batch_size: int = option(16, "Held-out prompts decoded together.", "--measure-batch-size", ge=1)
    regenerate: bool = option(False, "Have the target write every reply anew instead of using recorded ones.")
    overwrite: bool = option(False, "Redo the stages whose settings changed, and all after them.")
    list: bool = option(False, "Show the packaged recipes and the stages instead.")
    calibrate: bool = option(
        False, "For a plan (--dry-run, eagle3 plan): time target and draft here first, for at most a minute."
    )
    from_stage: StageName | None = option(None, "Redo this stage and those after it.", "--from")
    to_stage: StageName | None = option(None, "Stop after this stage.", "--to")
    only_stage: StageName | None = option(None, "Run this stage alone, if it is not done.", "--only")

    @model_validator(mode="after")
    def _stages_in_order(self) -> RunSettings:
        first = self.from_stage
        last = self.to_stage
        if self.only_stage is not None and (first or last):
            raise ValueError(f"run.only_stage stands alone; leave out {'run.from_stage' if first else 'run.to_stage'}")
        if first and last and STAGE_NAMES.index(first) > STAGE_NAMES.index(last):
            raise ValueError(f"run.from_stage {first} comes after run.to_stage {last}; exchange them")
        return self
