"""kill -9 at random moments, of one rank and of all, while starting, training and saving; then the same command again.

Each run is killed in one session after the other until it is let to end. The suite kills all ranks once, one rank of a
run that goes on with another number of processes, and a draft rank of a job with roles; this kills each kind of rank
twenty times, half of them in runs that go on with another number or split:

    EAGLE3_KILLS=20 python -m pytest tests/commands/train/test_kills.py
"""

from __future__ import annotations

import os
import random
import signal
import time
import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.training.checkpoint.load import list_checkpoints
from tests.commands.train.ranks import CALM, Session, assert_same_course, events, lines, ranks_of
from tests.commands.train.runs import last_state
from tests.tiny import training_place

KILLS = int(os.environ.get("EAGLE3_KILLS", "2")) // 2
"""Of every run."""
STEPS = 20 + 8 * KILLS
WORDS = (*CALM, "--num-epochs", "1000", "--total-steps", str(STEPS), "--save-interval", "3", "--eval-interval", "10")
pytestmark = pytest.mark.timeout(600 + 60 * KILLS)
SAME_BITS = {"event", "step", "loss", "depth_losses", "accuracy", "grad_norm", "tokens", "acceptance_length", "rows"}
TORN = '{"event": "step", "step": 1, "lo'


def a_moment(session: Session, luck: random.Random, several: bool) -> str:
    """Wait for a random moment of a session; says which."""
    kind, before = luck.choice(("start", "step", "save")), lines(session.run)
    session.until(lambda: not several or len(ranks_of(session.process.pid)) > 1)
    if kind == "start":
        time.sleep(luck.uniform(0, 5))
    elif kind == "step":
        wanted = before + luck.randint(1, 4)
        session.until(lambda: before < lines(session.run) >= wanted)
    else:
        session.until(lambda: any((session.run / "checkpoints").glob(".epoch_*")))
        time.sleep(luck.uniform(0, 0.05))
    return kind


def kill(session: Session, who: str, luck: random.Random, targets: int = 0) -> None:
    """End one rank, of a role or of any, or all and what has started them; the others end by themselves."""
    ranks = ranks_of(session.process.pid)
    of_role = {"one": ranks, "target": ranks[:targets], "draft": ranks[targets:]}.get(who)
    for pid in [luck.choice(of_role)] if of_role else [session.process.pid, *ranks]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def finish_killed(place: Path, who: str, seed: int, sizes: list[tuple[int, int]], *words: str) -> None:
    """Run to the end, killed KILLS times on the way; the numbers of processes, and of those that hold the target, go
    round ``sizes``."""
    luck = random.Random(seed)

    def begun(number: int) -> Session:
        size, targets = sizes[number % len(sizes)]
        split = ("--target-gpus", str(targets)) if targets else ()
        return Session(place, *WORDS, "--gpus", str(size), *split, *words)

    for number in range(KILLS):
        size, targets = sizes[number % len(sizes)]
        session = begun(number)
        kind = a_moment(session, luck, size > 1)
        kill(session, who, luck, targets)
        code, said = session.wait(), session.log.read_text()
        print(f"kill {number}: {who} of {size} at {kind}, {lines(session.run)} lines, exit code {code}")
        assert code in (0, 1, -signal.SIGKILL), said
        assert "Traceback" not in said
        if code == 1:
            assert "was ended by SIGKILL" in said
        if code == 1 and who in ("target", "draft") and targets:
            assert f"of {size} ({who}) was ended by SIGKILL" in said
        if session.run.is_dir() and lines(session.run):
            with (session.run / "metrics.jsonl").open("a") as f:
                f.write(TORN)
    session = begun(KILLS)
    assert session.wait() == 0, session.log.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Data, settings, and ``whole``: what two processes come to that nobody kills."""
    place = tmp_path_factory.mktemp("kills")
    training_place(place, tiny)
    session = Session(place, *WORDS, "--gpus", "2")
    assert session.wait() == 0, session.log.read_text()
    session.run.rename(place / "whole")
    return place


@pytest.fixture
def begun_anew(place: Path) -> Path:
    """The place without the run of the test before."""
    if (place / "killed").exists():
        (place / "killed").rename(place / uuid.uuid4().hex)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("who", "seed"), [("all", 6)] + [("one", 1)] * (KILLS > 1))  # first while saving
def test_killed_and_started_again_it_ends_with_the_same_bits(begun_anew: Path, who: str, seed: int) -> None:
    finish_killed(begun_anew, who, seed, [(2, 0)])
    assert_same_bits(begun_anew / "whole", begun_anew / "killed")


@pytest.mark.slow
@pytest.mark.parametrize(("who", "seed"), [("draft", 5)] + [("target", 7)] * (KILLS > 1))  # first while saving
def test_roles_come_to_the_same_bits_with_as_many_draft_ranks(begun_anew: Path, who: str, seed: int) -> None:
    """``whole`` had its target beside the draft; a run may change the split, and give it up, in any session."""
    finish_killed(begun_anew, who, seed, [(3, 1), (4, 2), (2, 0)] if KILLS > 1 else [(3, 1), (2, 0)])
    assert_same_bits(begun_anew / "whole", begun_anew / "killed")


@pytest.mark.slow
@pytest.mark.skipif(KILLS < 2, reason="only with EAGLE3_KILLS")
@pytest.mark.parametrize(("who", "seed"), [("target", 9), ("draft", 10)])
def test_roles_take_the_same_course_with_other_numbers(begun_anew: Path, who: str, seed: int) -> None:
    finish_killed(begun_anew, who, seed, [(2, 1), (3, 1), (3, 2)])
    assert_same_course(begun_anew / "whole", begun_anew / "killed")


def assert_same_bits(whole: Path, killed: Path) -> None:
    """Weights and moments at the end, the best draft, and what was written of every step."""
    assert last_state(killed) == last_state(whole)
    assert (killed / "best/model.safetensors").read_bytes() == (whole / "best/model.safetensors").read_bytes()
    for a, b in zip(events(whole), events(killed), strict=True):
        assert {name: a[name] for name in a.keys() & SAME_BITS} == {name: b[name] for name in b.keys() & SAME_BITS}
    assert [e["step"] for e in events(killed) if e["event"] == "step"] == list(range(1, STEPS + 1))


# first while saving, and between two steps
@pytest.mark.slow
@pytest.mark.parametrize(("who", "seed"), [("one", 5)] + [("all", 7)] * (KILLS > 1))
def test_killed_and_started_again_with_other_numbers_it_takes_the_same_course(
    begun_anew: Path, who: str, seed: int
) -> None:
    finish_killed(begun_anew, who, seed, [(2, 0), (1, 0), (3, 0)], "--draft-sharding", "fsdp")
    whole, killed = begun_anew / "whole", begun_anew / "killed"
    assert_same_course(whole, killed)
    ours, theirs = (load_file(list_checkpoints(run)[-1] / "model.safetensors") for run in (killed, whole))
    for name, weight in theirs.items():
        apart = torch.linalg.vector_norm(ours[name].double() - weight.double())
        assert apart <= 1e-4 * torch.linalg.vector_norm(weight.double()), name
