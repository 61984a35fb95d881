"""One optimiser step of the trainer: accumulation, normalisation, steps that are left out, early stop."""

from __future__ import annotations

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
from eagle3cli.errors import Eagle3Error, Stopped
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Silent
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.checkpoint.load import Progress
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.metrics import Window
from eagle3cli.training.optim.optimizer import Optimizer
from eagle3cli.training.parallel import Spread
from eagle3cli.training.sampler import Order
from eagle3cli.training.step import optimise
from eagle3cli.training.trainer import Trainer, train
from eagle3cli.training.ttt.attention import attend
from eagle3cli.training.ttt.model import Forward

VOCAB, DRAFT_VOCAB, HIDDEN = 40, 20, 16
LENGTHS = [9, 24, 5, 17, 12, 30]


@dataclass
class RandomSource:
    """Rows of random states; those of ``poisoned`` hold a NaN."""

    poisoned: set[int] = field(default_factory=set)
    lengths: Sequence[int] = tuple(LENGTHS)

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
        top = (joined["last_NH"] @ HEAD.T).argmax(-1)
        return TargetBatch(bounds=tuple(bounds), top_N=top, rows=tuple(rows), **joined)


HEAD = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(99))


def make_trainer(folder: Path, source: RandomSource | None = None, **settings: Any) -> Trainer:
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
    chosen = TrainSettings(**{"batch_size": len(LENGTHS), "ttt_length": 3, "log_interval": 1, **settings})
    source = source or RandomSource()
    return Trainer(
        settings=chosen,
        output_dir=folder,
        source=source,
        eval_source=RandomSource(),
        order=Order(len(LENGTHS), chosen.batch_size, 0),
        total_steps=chosen.total_steps,
        budget_seconds=None,
        draft=draft,
        embedding_VH=torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(5)),
        teacher_head=Head(HEAD[ids]),
        whole_head=Head(HEAD) if chosen.loss != "kl" else None,
        forward=Forward(draft, attend),
        spread=Spread(),
        optimizer=Optimizer(list(draft.named_parameters()), max_grad_norm=0.5),
        progress=Progress(),
        saver=Saver(folder, chosen.keep_checkpoints, SINGLE_PROCESS, Silent()),
        report=Silent(),
    )


@pytest.mark.parametrize("loss", ["kl", "tv", "lk", "mix"])
@pytest.mark.parametrize(("alignment", "share"), [("serving", 1.0), ("serving", 0.6), ("specforge", 1.0)])
def test_accumulation_gives_what_the_large_batch_gives(tmp_path: Path, loss: str, alignment: str, share: float) -> None:
    found = []
    for micro in (None, 1, 2):
        options = {"loss": loss, "alignment": alignment, "anchor_fraction": share, "micro_batch_size": micro}
        trainer = make_trainer(tmp_path, **options)
        norms = [float(optimise(trainer, list(range(6)), 1e-3)) for _ in range(2)]
        found.append((norms, float(sum(trainer.window.loss)) / trainer.window.divided_by))
    for norms, total in found[1:]:
        assert norms == pytest.approx(found[0][0], rel=1e-5)
        assert total == pytest.approx(found[0][1], rel=1e-5)


def test_specforge_divides_by_the_padded_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, alignment="specforge")
    optimise(trainer, list(range(6)), 1e-3)
    assert trainer.window.divided_by == 6 * 30
    trainer = make_trainer(tmp_path)
    optimise(trainer, list(range(6)), 1e-3)
    assert trainer.window.divided_by == trainer.window.kept


def test_anchors_are_drawn_anew_each_step_and_the_same_each_time(tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        trainer, counts = make_trainer(tmp_path, anchor_fraction=0.5), []
        for _ in range(3):
            before = trainer.window.kept
            optimise(trainer, list(range(6)), 1e-3)
            trainer.progress.step += 1
            counts.append(trainer.window.kept - before)
        kept.append(counts)
    whole = make_trainer(tmp_path)
    optimise(whole, list(range(6)), 1e-3)
    assert kept[0] == kept[1]
    assert len(set(kept[0])) > 1
    assert all(0 < count < whole.window.kept for count in kept[0])


def test_a_poisoned_batch_is_left_out_and_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, RandomSource(poisoned={3}), batch_size=2, total_steps=6, eval_interval=100)
    weights = {name: weight.detach().clone() for name, weight in trainer.draft.named_parameters()}
    assert torch.isnan(optimise(trainer, [3, 4], 1e-3))
    assert all(torch.equal(weight, weights[name]) for name, weight in trainer.draft.named_parameters())
    assert (trainer.progress.skipped, trainer.window.loss) == (1, [])
    with safe_open(tmp_path / "skipped" / "step_1.safetensors", "pt") as f:
        assert json.loads(f.metadata()["rows"]) == [3, 4]
        assert json.loads(f.metadata()["bounds"]) == [0, 17, 29]
        assert torch.isnan(f.get_tensor("aux")).sum() == 1
    train(trainer, Stop())
    assert trainer.progress.step == 6
    assert trainer.progress.skipped == 3  # once above, and in each of two epochs
    assert all(torch.isfinite(weight).all() for weight in trainer.draft.parameters())


def test_too_many_steps_without_a_gradient_end_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, RandomSource(poisoned=set(range(6))), batch_size=2, total_steps=60, max_skipped_steps=3
    )
    with pytest.raises(Eagle3Error, match="3 steps had no finite gradient") as caught:
        train(trainer, Stop())
    assert "step 3" in str(caught.value.where)
    assert len(list((tmp_path / "skipped").iterdir())) == 3


def test_a_signal_that_arrives_while_ranks_agree_is_not_lost(tmp_path: Path) -> None:
    """All act on it after the next step, together."""
    trainer, stop = make_trainer(tmp_path, total_steps=500), Stop()

    class Agreeing(Ranks):
        def all_reduce_max(self, values: Sequence[float]) -> list[float]:
            if trainer.progress.step == 2 and stop.requested is None:
                stop.requested = signal.SIGTERM  # this rank's own number was read before
            return super().all_reduce_max(values)

    trainer.spread = Spread(Agreeing())
    with pytest.raises(Stopped, match="stopped by SIGTERM; saved step 3"):
        train(trainer, stop)


def test_steps_that_no_log_line_has_told_survive_a_stop(tmp_path: Path) -> None:
    whole, cut = (make_trainer(tmp_path / name) for name in ("whole", "cut"))
    for step in range(4):
        if step == 2:
            cut.window = Window(**json.loads(json.dumps(cut.window.kept_back(SINGLE_PROCESS, 3))))
        for trainer in (whole, cut):
            trainer.progress.step = step
            optimise(trainer, list(range(6)), 1e-3)
    ours, theirs = (trainer.window.totals(SINGLE_PROCESS, 3, []) for trainer in (cut, whole))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    assert ours[2] == theirs[2]
    for name in ("divided_by", "kept", "counted", "kept_T"):
        assert getattr(cut.window, name) == getattr(whole.window, name)
    assert Window().kept_back(SINGLE_PROCESS, 3) == {}


def test_stops_early_without_better_acceptance(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total_steps=500, eval_interval=1, early_stop=3, learning_rate=1e-12)
    train(trainer, Stop())
    assert trainer.progress.step == 4  # the first evaluation is the best, three more are not better
    assert trainer.progress.stale == 3
