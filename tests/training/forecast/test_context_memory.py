"""What a long row takes on one process and on two that share it, in real processes, beside the plan."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist
from torch import multiprocessing

from eagle3cli.runtime.devices import peak_resident_bytes, resident_bytes
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.tables import Settings
from eagle3cli.training.build import build
from tests.conftest import RunCli
from tests.training.forecast.measured import HIDDEN, VOCAB, Model, own_megabytes, write_store

LENGTH = 32_768
TRAIN = {
    "mode": "offline",
    "context_parallel": 2,
    "ttt_length": 3,
    "batch_size": 1,
    "num_epochs": 2,
    "loss_chunk": 1_000_000,  # what does not grow with a row is small beside it
}
DRAFT = {"init": "random", "window": 128}
FLAGS = ["--mode", "offline", "--ttt-length", "3", "--batch-size", "1", "--num-epochs", "2", "--loss-chunk", "1000000"]
FLAGS += ["--draft-init", "random", "--draft-window", "128", "--threads", "1", "--dry-run", "--json"]
FLAGS += ["--target-model-path", "target", "--train-hidden-states-path", "store"]


@contextmanager
def highest(into: dict[str, float], name: str) -> Iterator[None]:
    """The most megabytes that this process has to itself within the block."""
    over = threading.Event()
    seen = [own_megabytes("self")]

    def watch() -> None:
        while not over.wait(0.002):
            seen.append(own_megabytes("self"))

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()
    into[name] = max(seen)


def step(folder: Path, ranks: Ranks, measured: dict[str, float], name: str) -> None:
    """One training step on the row: its loss, and the memory of this process."""
    settings = Settings.model_validate(
        {
            "train": TRAIN | {"context_parallel": ranks.world_size, "output_dir": folder / name},
            "draft": DRAFT,
            "target": {"model_path": str(folder / "target"), "threads": 1},
            "data": {"train_hidden_states_path": [folder / "store"]},
        }
    )
    trainer = build(settings, Silent(), ranks)
    told: list[dict[str, Any]] = []
    trainer.listeners = [lambda event, numbers: told.append(numbers)]
    trainer._start_clock()
    measured.setdefault("before", own_megabytes("self"))
    with highest(measured, name):
        trainer.train_step()
    measured[f"{name} resident"] = peak_resident_bytes() / 1e6
    trainer.log()
    measured[f"{name} loss"] = told[0]["loss"]


def one_of_two(rank: int, folder: Path) -> None:
    """A rank's part of the row; then the first one does the same with all of it."""
    measured: dict[str, float] = {"process": resident_bytes() / 1e6}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    step(folder, Ranks(rank, 2, host_group=dist.group.WORLD), measured, "each")
    if rank == 0:
        step(folder, SINGLE_PROCESS, measured, "alone")
    (folder / f"measured-{rank}.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_rank_takes_its_share_of_a_long_row_and_the_plan_foretells_it(tmp_path: Path, run_cli: RunCli) -> None:
    Model(HIDDEN, 8, 2, 1, 176, VOCAB).write(tmp_path / "target")
    write_store(tmp_path / "store", tmp_path / "target", LENGTH)
    multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"measured-{rank}.json").read_text()) for rank in range(2))
    foretold = {}
    for name, words in (("alone", ()), ("each", ("--gpus", "2", "--context-parallel", "2"))):
        memory = run_cli("train", *FLAGS, *words, cwd=tmp_path).json["memory"]
        # The process that plans is not like those that train: by now it has run other tests.
        foretold[name] = (memory["peak_bytes"] - memory["parts"]["process"]) / 1e6 + first["process"]
    print("", first, second, foretold, sep="\n")
    alone = first["alone"] - first["before"]
    for each in (first, second):
        assert each["each loss"] == pytest.approx(first["alone loss"], rel=1e-6)
        assert each["each"] - each["before"] <= 0.6 * alone
    for name in foretold:
        assert foretold[name] == pytest.approx(first[f"{name} resident"], rel=0.15)
