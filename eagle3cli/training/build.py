"""Puts a training run together from settings, in the order in which data pass through its parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from eagle3cli.backends.batches.dealt import dealt
from eagle3cli.backends.batches.keeping import StatesKeeper
from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.batches.prefetch import read_ahead
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.backends.roles.source import AskedAhead, RemoteSource
from eagle3cli.backends.target.group import check_groups
from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.data.tokens.vocab import VocabMapping
from eagle3cli.errors import UsageError
from eagle3cli.models.draft import Draft
from eagle3cli.models.serve import report_unserved
from eagle3cli.runtime.devices import compute_type, set_threads
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.runtime.units import parse_duration
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.batches import Batches, Sampler, balance, sampler_of, upcoming
from eagle3cli.training.checkpoint.load import latest_valid_checkpoint, resume, saved_state, saved_vocab
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.context import check_context, context_group
from eagle3cli.training.fingerprint import go_on, run_fingerprint, run_identity
from eagle3cli.training.initial.initialise import initialise
from eagle3cli.training.initial.sample import gather_sample
from eagle3cli.training.inputs import Inputs, TargetShare, from_target_ranks, offline, online
from eagle3cli.training.keep import states_keeper
from eagle3cli.training.metrics import Metrics
from eagle3cli.training.on_policy import put_meters
from eagle3cli.training.optim.optimizer import Optimizer
from eagle3cli.training.optim.schedule import Schedule, total_steps
from eagle3cli.training.parallel import Parallel, parallelize
from eagle3cli.training.timers import Timers
from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt.flex_attention import attend_flex, attention_for
from eagle3cli.training.ttt.model import TargetWeights, TTTModel
from eagle3cli.training.ttt.unroll import Attend
from eagle3cli.training.warm_start import load_warm_start

INIT_ELEMENTS = 100_000_000
"""Size of the auxiliary states (400 MB in fp32) that the initial weights are solved from: as many rows as it holds.

On SmolLM2-135M 16k rows gave acceptance 1.24 (k = 5) before any training, 60k 1.29 and 140k 1.33.
"""
LIVE_INIT_ELEMENTS = INIT_ELEMENTS // 2
"""The same where a live target has to make them, whose passes take as long as some steps do."""
INIT_BATCH = 8
BALANCE_STEPS = 200
"""Steps whose balance over the ranks is told."""


def build(
    settings: Settings, report: Reporter, ranks: Ranks = SINGLE_PROCESS, target_share: TargetShare | None = None
) -> Trainer:
    """All parts of the run, restored from its latest valid checkpoint where there is one.

    ``target_share`` says how much of a GPU a live target may take.
    """
    train = settings.train
    check_context(train, ranks.world_size, settings.target.tp_size if ranks.job is None else 1)
    is_online = train.mode == "online"
    if is_online and ranks.job is None:
        check_groups(settings.target.tp_size, ranks)
    set_threads(settings.target.threads)
    torch.manual_seed(train.seed)
    schedule_budget = parse_duration(train.time_budget)
    checkpoint = None if train.overwrite else latest_valid_checkpoint(train.output_dir, report, ranks)
    if not is_online:
        inputs = offline(settings, report)
    elif ranks.job is not None:
        inputs = from_target_ranks(settings, report, ranks)
    else:
        inputs = online(settings, report, ranks, target_share)
    report_unserved(inputs.config, read_target_config(settings.target), report, backend=settings.target.backend)
    device = inputs.weights["embedding"].device
    dtype = compute_type(train.dtype, device)
    if checkpoint is not None:
        inputs = with_saved_vocab(inputs, checkpoint)
    state = state_of_run(settings, inputs, checkpoint, report)
    sources = {"train": inputs.source, "eval": inputs.eval_source}
    place = Path(inputs.facts["folder"]) if is_online else None
    caches = settings.data.cache_dir / "processed_dataset"
    meters = put_meters(sources, cache=place, caches=caches, target=state.identity["target"]) if ranks.is_main else {}
    draft = make_draft(settings, inputs)
    alone = (
        ranks.job is None or ranks.is_main
    )  # its weights go to all; the target's ranks need not run for each of them
    if settings.draft.init == "target" and checkpoint is None and alone:
        initialise_from_target(draft, inputs, train.seed, report)
    if train.head_lr_scale == 0:
        draft.lm_head.weight.data.copy_(inputs.head.weight_VH[draft.draft_ids])
        draft.lm_head.requires_grad_(False)
    model = make_model(train, draft, inputs, dtype, report)
    parallel = parallelize(model, ranks, train, dtype)
    optimizer = make_optimizer(train, draft, ranks)
    if checkpoint is not None:
        resume(checkpoint, draft, optimizer, report)
    batches = make_batches(train, inputs, state.step, ranks, states_keeper(settings, inputs, ranks, report), report)
    if ranks.world_size > 1:
        _report_ranks(parallel, batches, report)
    return Trainer(
        settings=train,
        output_dir=train.output_dir,
        batches=batches,
        eval_source=inputs.eval_source,
        model=model,
        parallel=parallel,
        optimizer=optimizer,
        schedule=Schedule(train, total_steps(train, batches.sampler.steps_per_epoch), schedule_budget),
        saver=Saver(train.output_dir, train.keep_checkpoints, ranks, report, saved_step=state.step),
        state=state,
        report=report,
        metrics=Metrics.restored(state.metrics),
        timers=Timers(device),
        whole_head=inputs.head if train.best_by else None,
        meters=meters,
        data_summary=inputs.facts,
    )


def with_saved_vocab(inputs: Inputs, checkpoint: Path) -> Inputs:
    """The inputs with the vocabulary that the run's draft has, whatever more data would choose.

    A store's own decides the size; where rows are live the settings do, which is judged with the rest of them.
    """
    vocab = VocabMapping(*saved_vocab(checkpoint))
    if vocab.size == inputs.config.draft_vocab_size or inputs.facts["kind"] != "cache":
        return replace(inputs, vocab=vocab, config=replace(inputs.config, draft_vocab_size=vocab.size))
    return inputs


def state_of_run(settings: Settings, inputs: Inputs, checkpoint: Path | None, report: Reporter) -> TrainState:
    """Where the run stands, with what it is made of now. Raises UsageError where that is another run."""
    cache = Path(inputs.facts["folder"]) if settings.train.mode == "online" else None
    identity = run_identity(settings, inputs.config, cache)
    state = TrainState()
    if checkpoint is not None:
        state = saved_state(checkpoint)
        continuation = go_on(settings.train.output_dir, state, settings, identity)
        for note in continuation.notes:
            report.info(note)
        if not continuation.same_measure:
            state.best = 0.0
            state.evals_without_improvement = 0
    state.fingerprint = run_fingerprint(settings.train, identity)
    state.identity = identity
    return state


def make_draft(settings: Settings, inputs: Inputs) -> Draft:
    """The draft on the target's device: of the folder that training starts from, else with the data's vocabulary."""
    embedding_VH = inputs.weights["embedding"]
    draft = Draft(inputs.config).to(embedding_VH.device)
    if settings.draft.init == "draft":
        load_warm_start(draft, settings)
        return draft
    draft.set_vocab(inputs.vocab.d2t, inputs.vocab.t2d)
    if draft.embed_tokens is not None:
        draft.embed_tokens.weight.data.copy_(embedding_VH)
    return draft


def make_model(train: TrainSettings, draft: Draft, inputs: Inputs, dtype: torch.dtype, report: Reporter) -> TTTModel:
    """The draft with its unroll, its loss and what they read of the target; heads compute in ``dtype``."""
    embedding_VH = inputs.weights["embedding"]
    draft_head = inputs.head.rows(draft.draft_ids).to(dtype)
    target = TargetWeights(embedding_VH, draft_head, inputs.head.to(dtype) if train.loss != "kl" else None)
    attend = choose_attention(train.attention_backend, embedding_VH.device, report)
    return TTTModel(draft, target, attend, recompute=train.activation_checkpointing, chunk=train.loss_chunk)


def make_optimizer(train: TrainSettings, draft: Draft, ranks: Ranks = SINGLE_PROCESS) -> Optimizer:
    """The optimizer of all weights that are trained."""
    trained = [(name, weight) for name, weight in draft.named_parameters() if weight.requires_grad]
    return Optimizer(
        trained,
        max_grad_norm=train.max_grad_norm,
        scales={"lm_head": train.head_lr_scale},
        kind=train.optimizer,
        ranks=ranks,
        ema_decay=train.ema_decay,
    )


def make_batches(
    train: TrainSettings,
    inputs: Inputs,
    step: int,
    ranks: Ranks,
    keeper: StatesKeeper | None = None,
    report: Reporter | None = None,
) -> Batches:
    """This rank's batches; of a store, or a target on other ranks, those from ``step`` on are read ahead."""
    lengths = inputs.source.lengths
    sampler = sampler_of(train, len(lengths))
    end = total_steps(train, sampler.steps_per_epoch)
    if keeper is not None:  # the target is asked for one epoch alone
        end = min(sampler.steps_per_epoch, end or sampler.steps_per_epoch)
    size = train.context_parallel
    ahead = upcoming(sampler, step, train.micro_batch_size, lengths, ranks, train.max_tokens_per_gpu, end, size)
    source = inputs.source
    if (context := context_group(train, ranks)) is not None:
        assert isinstance(source, StoreSource | OnlineSource | RemoteSource)
        source = dealt(source, context) if isinstance(source, OnlineSource) else source.dealt(context)
    source = AskedAhead(source, ahead) if isinstance(source, RemoteSource) else read_ahead(source, ahead)
    whole = inputs.source if size > 1 else None
    limits = (train.micro_batch_size, ranks, train.max_tokens_per_gpu)
    return Batches(source, sampler, *limits, context=size, whole_source=whole, keeper=keeper, report=report or Silent())


def _report_ranks(parallel: Parallel, batches: Batches, report: Reporter) -> None:
    sampler = batches.sampler
    first = [sampler.batch(step) for step in range(min(sampler.steps_per_epoch, BALANCE_STEPS))]
    even = balance(first, batches.source.lengths, batches.ranks.world_size // batches.context)
    kept = "whole on each" if parallel.shards is None else "in shards"
    shared = f", each sequence on {batches.context} of them" if batches.context > 1 else ""
    processes = f"{batches.ranks.world_size} processes{shared}"
    report.info(f"{processes}, the draft {kept}; {even:.0%} of their tokens' time is work")


def choose_attention(name: str, device: torch.device, report: Reporter) -> Attend:
    """The attention kernel that a setting names on this device; says which it is.

    Raises UsageError for flex_attention without CUDA: it has no backward pass there.
    """
    if name == "flex_attention" and device.type != "cuda":
        what = f"flex_attention trains on CUDA alone; this run is on {device.type}"
        raise UsageError("unsupported-engine", what, where="--attention-backend", fix="use --attention-backend auto")
    chosen = attention_for(name, device)
    portable = f"sdpa, {'flash kernel' if device.type == 'cpu' else 'in blocks'}"
    kernel = "flex_attention, compiled" if chosen is attend_flex else portable
    report.info(f"attention on {device.type}: {kernel} ({name})")
    return chosen


def initialise_from_target(draft: Draft, inputs: Inputs, seed: int, report: Reporter) -> None:
    """Solve the initial weights from the rows that the first epoch has last.

    Training teaches little on rows that the weights are solved from: on the first ones those steps would be lost.
    """
    weights = inputs.weights
    last_first = Sampler(len(inputs.source.lengths), INIT_BATCH, seed).shuffled(0)[::-1]
    batches = (inputs.source.batch(last_first[at : at + INIT_BATCH]) for at in range(0, len(last_first), INIT_BATCH))
    elements = LIVE_INIT_ELEMENTS if inputs.facts["kind"] == "cache" else INIT_ELEMENTS
    sample = gather_sample(batches, weights["final_norm"], elements // draft.fc.in_features)
    if len(sample.token_R) < 2:
        report.warn("no reply has two tokens in the sample; the draft starts from random weights")
        return
    with report.task("initial weights", total=1, unit="solves") as bar:
        initialise(
            draft,
            sample,
            embedding_VH=weights["embedding"],
            head=inputs.head,
            final_norm_H=weights["final_norm"],
            last_layer_mlp={k: weights[k] for k in ("gate_proj", "up_proj", "norm") if k in weights},
        )
        bar.advance(1)
