"""One optimizer step of the trainer: accumulation, normalisation, steps that are left out, early stop."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Silent
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.batches import Batches, Sampler
from eagle3cli.training.build import choose_attention
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.metrics import Metrics
from eagle3cli.training.optim.optimizer import Optimizer
from eagle3cli.training.optim.schedule import Schedule
from eagle3cli.training.parallel import Parallel
from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt.model import TargetWeights, TTTModel
from tests.failing import fails

VOCAB, DRAFT_VOCAB, HIDDEN = 40, 20, 16
LENGTHS = [9, 24, 5, 17, 12, 30]


@dataclass
class RandomSource:
    """Rows of random states; those of ``poisoned`` hold a NaN."""

    poisoned: set[int] = field(default_factory=set)
    lengths: Sequence[int] = tuple(LENGTHS)
    device: str = "cpu"
    live: bool = False
    """The answers are on the device alone, as a live target gives them."""

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        parts: dict[str, list[torch.Tensor]] = {"token_ids_N": [], "loss_mask_N": [], "aux_NC": [], "last_NH": []}
        bounds = [0]
        for row in rows:
            generator, size = torch.Generator().manual_seed(row), self.lengths[row]
            parts["token_ids_N"].append(torch.randint(VOCAB, (size,), generator=generator))
            parts["loss_mask_N"].append(torch.arange(size) >= size // 3)
            aux = torch.randn(size, 3 * HIDDEN, generator=generator)
            if row in self.poisoned:
                aux[size // 2, 0] = float("nan")
            parts["aux_NC"].append(aux)
            parts["last_NH"].append(torch.randn(size, HIDDEN, generator=generator))
            bounds.append(bounds[-1] + size)
        joined = {name: torch.cat(tensors) for name, tensors in parts.items()}
        joined["top_N"] = (joined["last_NH"] @ HEAD.T).argmax(-1)
        mask_N = joined.pop("loss_mask_N")  # stays with the host
        moved = {name: tensor.to(self.device) for name, tensor in joined.items()}
        top_N = None if self.live else joined["top_N"]
        return TargetBatch(loss_mask_N=mask_N, cu_seqlens=tuple(bounds), rows=tuple(rows), top_host_N=top_N, **moved)


HEAD = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(99))


def make_trainer(folder: Path, source: RandomSource | None = None, *, device: str = "cpu", **settings: Any) -> Trainer:
    torch.manual_seed(0)
    config = DraftConfig.from_target(
        {
            "hidden_size": HIDDEN,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_hidden_layers": 8,
            "vocab_size": VOCAB,
        },
        draft_vocab_size=DRAFT_VOCAB,
    )
    draft = Draft(config)
    ids = torch.arange(0, VOCAB, 2)
    t2d = torch.zeros(VOCAB, dtype=torch.bool)
    t2d[ids] = True
    draft.set_vocab(ids - torch.arange(DRAFT_VOCAB), t2d)
    draft = draft.to(device)
    chosen = TrainSettings(**{"batch_size": len(LENGTHS), "ttt_length": 3, "log_interval": 1, **settings})
    embedding_VH = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(5))
    head = HEAD.to(device)
    target = TargetWeights(
        embedding_VH.to(device), Head(HEAD[ids].to(device)), Head(head) if chosen.loss != "kl" else None
    )
    kernel = choose_attention(chosen.attention_backend, head.device, Silent())
    sampler = Sampler(len(LENGTHS), chosen.batch_size, 0)
    return Trainer(
        settings=chosen,
        output_dir=folder,
        batches=Batches(
            source or RandomSource(device=device),
            sampler,
            chosen.micro_batch_size,
            max_tokens=chosen.max_tokens_per_gpu,
        ),
        eval_source=RandomSource(device=device),
        model=TTTModel(draft, target, kernel, recompute=chosen.activation_checkpointing, chunk=chosen.loss_chunk),
        parallel=Parallel(),
        optimizer=Optimizer(list(draft.named_parameters()), max_grad_norm=0.5, kind=chosen.optimizer),
        schedule=Schedule(chosen, chosen.total_steps),
        saver=Saver(folder, chosen.keep_checkpoints, SINGLE_PROCESS, Silent()),
        state=TrainState(),
        report=Silent(),
    )


@pytest.mark.parametrize("loss", ["kl", "tv", "lk", "mix"])
@pytest.mark.parametrize(("alignment", "share"), [("serving", 1.0), ("serving", 0.6), ("specforge", 1.0)])
def test_accumulation_gives_what_the_large_batch_gives(tmp_path: Path, loss: str, alignment: str, share: float) -> None:
    results = []
    for cut in ({}, {"micro_batch_size": 1}, {"micro_batch_size": 2}, {"max_tokens_per_gpu": 40}):
        options = {"loss": loss, "alignment": alignment, "anchor_fraction": share, **cut}
        trainer = make_trainer(tmp_path, learning_rate=1e-3, **options)
        norms = []
        for _ in range(2):
            trainer.train_step()
            norms.append(float(trainer.grad_norm))
        results.append((norms, float(sum(trainer.metrics.losses)) / trainer.metrics.divisor))
    for norms, total in results[1:]:
        assert norms == pytest.approx(results[0][0], rel=1e-5)
        assert total == pytest.approx(results[0][1], rel=1e-5)


def test_specforge_divides_by_the_padded_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, alignment="specforge")
    trainer.train_step()
    assert trainer.metrics.divisor == 6 * 30
    trainer = make_trainer(tmp_path)
    trainer.train_step()
    assert trainer.metrics.divisor == trainer.metrics.with_loss


def test_anchors_are_drawn_anew_each_step_and_the_same_each_time(tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        trainer = make_trainer(tmp_path, anchor_fraction=0.5)
        counts = []
        for _ in range(3):
            before = trainer.metrics.with_loss
            trainer.train_step()
            counts.append(trainer.metrics.with_loss - before)
        kept.append(counts)
    whole = make_trainer(tmp_path)
    whole.train_step()
    assert kept[0] == kept[1]
    assert len(set(kept[0])) > 1
    assert all(0 < count < whole.metrics.with_loss for count in kept[0])


def test_a_poisoned_batch_is_left_out_and_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, RandomSource(poisoned={3}), batch_size=2, total_steps=6, eval_interval=100)
    weights = {name: weight.detach().clone() for name, weight in trainer.draft.named_parameters()}
    sampler = trainer.batches.sampler
    trainer.state.step = next(step for step in range(sampler.steps_per_epoch) if 3 in sampler.batch(step))
    rows = sampler.batch(trainer.state.step)
    trainer.train_step()
    assert torch.isnan(trainer.grad_norm)
    assert all(torch.equal(weight, weights[name]) for name, weight in trainer.draft.named_parameters())
    assert (trainer.state.skipped, trainer.metrics.losses) == (1, [])
    with safe_open(tmp_path / "skipped" / f"step_{trainer.state.step}.safetensors", "pt") as f:
        assert json.loads(f.metadata()["rows"]) == rows
        assert json.loads(f.metadata()["bounds"]) == [0, LENGTHS[rows[0]], sum(LENGTHS[row] for row in rows)]
        assert torch.isnan(f.get_tensor("aux")).sum() == 1
    trainer.state.step = 0
    trainer.train(Stop())
    assert trainer.state.step == 6
    assert trainer.state.skipped == 3  # once above, and in each of two epochs
    assert all(torch.isfinite(weight).all() for weight in trainer.draft.parameters())


def test_too_many_steps_without_a_gradient_end_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, RandomSource(poisoned=set(range(6))), batch_size=2, total_steps=60, max_skipped_steps=3
    )
    with fails("not-finite-gradient", "3") as caught:
        trainer.train(Stop())
    assert "step 3" in str(caught.value.where)
    assert len(list((tmp_path / "skipped").iterdir())) == 3


def test_a_signal_that_arrives_while_ranks_agree_is_not_lost(tmp_path: Path) -> None:
    """All act on it after the next step, together."""
    trainer, stop = make_trainer(tmp_path, total_steps=500), Stop()

    class Agreeing(Ranks):
        def all_reduce_max(self, values: Sequence[float]) -> list[float]:
            if trainer.state.step == 2 and stop.requested is None:
                stop.requested = signal.SIGTERM  # this rank's own number was read before
            return super().all_reduce_max(values)

    trainer.parallel = Parallel(Agreeing())
    with fails("stopped", "3"):
        trainer.train(stop)


def test_steps_that_no_log_line_has_told_survive_a_stop(tmp_path: Path) -> None:
    whole, cut = (make_trainer(tmp_path / name) for name in ("whole", "cut"))
    for step in range(4):
        if step == 2:
            cut.metrics = Metrics.restored(json.loads(json.dumps(cut.metrics.saved(SINGLE_PROCESS, 3))))
        for trainer in (whole, cut):
            trainer.train_step()
    ours, theirs = (trainer.metrics.totals(SINGLE_PROCESS, 3) for trainer in (cut, whole))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    assert ours[2] == theirs[2]
    for name in ("divisor", "with_loss", "counted_T", "with_loss_T"):
        assert getattr(cut.metrics, name) == getattr(whole.metrics, name)
    assert Metrics().saved(SINGLE_PROCESS, 3) == {}


def test_stops_early_without_better_acceptance(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_steps=500, eval_interval=1, early_stop=3, learning_rate=1e-12)
    trainer.train(Stop())
    assert trainer.state.step == 4  # the first evaluation is the best, three more are not better
    assert trainer.state.evals_without_improvement == 3


def test_a_checkpoint_is_written_once_a_step_and_known_when_it_is_whole(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_steps=2)
    trainer.train_step()
    saver = trainer.saver
    parts = (0, trainer.draft, trainer.optimizer, trainer.state)
    assert saver.wait() is None
    saver.begin(*parts)
    assert saver.pending is not None
    saver.now(*parts)
    assert saver.pending is None
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert (folder.name, saver.saved_step) == (f"epoch_0_step_{trainer.state.step}", trainer.state.step)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    saver.now(*parts)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written


def test_a_checkpoint_that_could_not_be_written_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, total_steps=2)
    trainer.train_step()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("eagle3cli.training.checkpoint.save.checksums", full)
    trainer.saver.begin(0, trainer.draft, trainer.optimizer, trainer.state)
    failure = trainer.saver.wait()
    assert failure is not None
    assert trainer.saver.saved_step == -1
    assert not any((tmp_path / "checkpoints").iterdir())
