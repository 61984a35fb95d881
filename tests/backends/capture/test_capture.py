"""Capture to disk equals the live target, goes on after any stop, and never starts what does not fit."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.backends.capture import capture as states
from eagle3cli.backends.capture.passes import length_batches
from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Quantization, relative_error
from eagle3cli.data.hidden_states.rows import aux_count, teacher_positions
from eagle3cli.data.hidden_states.store import Store, TargetIdentity
from eagle3cli.data.tokens.rows import TokenRow, TokenRows
from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.errors import Stopped
from eagle3cli.runtime.report import Silent
from eagle3cli.runtime.stop import Stop
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.models import TargetSettings
from tests.failing import fails

VOCAB = from_ids(range(0, 320, 2), 320)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def target(tiny: Path) -> HfTarget:
    return load_target(TargetSettings(model_path=str(tiny), device="cpu"), Silent())


def make_rows(count: int, seed: int = 0) -> TokenRows:
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(random.integers(60, 200))
        mask = np.zeros(length, dtype=np.uint8)
        mask[length // 3 : length // 2] = 1
        mask[2 * length // 3 :] = 1
        rows.append(TokenRow(str(i), random.integers(0, 320, length).astype(np.int32), mask))
    return TokenRows.of(rows)


def run(
    target: HfTarget,
    rows: TokenRows,
    folder: Path,
    stop: Stop | None = None,
    *,
    encoding: Quantization | Literal["auto"] = "bf16",
    batch_tokens: int = 1024,
    **other: Any,
) -> states.CaptureResult:
    shape = (target.aux_layers, target.hidden_size, target.vocab_size)
    identity = TargetIdentity(target.path, None, "hash", *shape, compute_dtype="float32")
    options = states.StoreOptions(encoding, batch_tokens, shard_mb=1)
    others: dict[str, Any] = {"report": Silent(), "stop": stop or Stop(), "load": lambda: target, **other}
    return states.capture(rows=rows, folder=folder, identity=identity, vocab=VOCAB, options=options, **others)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class StopAfter(Stop):
    """Asks to stop after some batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def check(self, saved: str) -> None:
        self.left -= 1
        if self.left < 0:
            self.requested = signal.SIGTERM
        super().check(saved)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    budget=st.integers(1, 200),
    size=st.none() | st.integers(1, 5),
)
def test_length_batches_hold_every_row_once_within_the_budget(
    lengths: list[int], budget: int, size: int | None
) -> None:
    numbers = range(100, 100 + len(lengths))
    batches = list(length_batches(numbers, lengths, budget, size))
    assert sorted(n for batch in batches for n in batch) == list(numbers)
    for batch in batches:
        assert size is None or len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(lengths[n - 100] for n in batch) <= budget


@pytest.mark.slow
def test_offline_batches_are_the_online_ones_in_bf16(target: HfTarget, tmp_path: Path) -> None:
    rows = make_rows(30)
    done = run(target, rows, tmp_path / "store")
    assert done.shards > 1
    assert done.shards_before == 0
    store = Store(tmp_path / "store")
    assert store.meta.target == target.path
    online, offline = OnlineSource(target, rows), StoreSource(store)
    assert list(offline.lengths) == list(online.lengths)
    picked = [29, 3, 17]
    live, stored = online.batch(picked), offline.batch(picked)
    assert stored.cu_seqlens == live.cu_seqlens
    assert stored.rows == live.rows
    assert torch.equal(stored.token_ids_N, live.token_ids_N)
    assert torch.equal(stored.loss_mask_N, live.loss_mask_N)
    assert torch.equal(stored.top_N, live.top_N)
    assert stored.aux_NC.dtype == stored.last_NH.dtype == torch.float32
    for begin, end in zip(live.cu_seqlens, live.cu_seqlens[1:], strict=False):
        where = begin + teacher_positions(live.loss_mask_N[begin:end])
        used = begin + aux_count(where - begin)
        torch.testing.assert_close(stored.last_NH[where], live.last_NH[where], rtol=2**-7, atol=1e-5)
        torch.testing.assert_close(stored.aux_NC[begin:used], live.aux_NC[begin:used], rtol=2**-7, atol=1e-5)
        assert not stored.aux_NC[used:end].any()


def test_a_bf16_target_is_stored_exactly(tiny: Path, tmp_path: Path) -> None:
    target = load_target(TargetSettings(model_path=str(tiny), device="cpu", dtype="bfloat16"), Silent())
    rows = make_rows(3)
    run(target, rows, tmp_path / "store")
    store = Store(tmp_path / "store")
    (batch,) = length_batches(range(3), rows.lengths, 1024)
    for index, (aux, last) in zip(batch, target.capture([rows[n].token_ids.tolist() for n in batch]), strict=True):
        where = teacher_positions(torch.from_numpy(rows[index].loss_mask.astype(bool)))
        found = store[index]
        assert torch.equal(found.aux_UC, aux[: aux_count(where)])
        assert torch.equal(found.last_RH, last[where])
        assert torch.equal(found.top_R, target.head.top_tokens(last[where]))


@pytest.mark.slow
@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_stopped_capture_goes_on_to_the_same_bytes(target: HfTarget, tmp_path: Path, batches: int) -> None:
    rows = make_rows(40)
    run(target, rows, tmp_path / "whole")
    with pytest.raises(Stopped) as caught:
        run(target, rows, tmp_path / "resumed", StopAfter(batches))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert "shards are saved" in str(caught.value)
    done = run(target, rows, tmp_path / "resumed")
    assert done.shards_before < done.shards
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_a_finished_capture_loads_no_target(target: HfTarget, tmp_path: Path) -> None:
    rows = make_rows(5)
    run(target, rows, tmp_path / "store")
    before = contents(tmp_path / "store")

    def load() -> HfTarget:
        raise AssertionError("nothing is left to capture")

    done = run(target, rows, tmp_path / "store", load=load)
    assert done.shards_before == done.shards
    assert contents(tmp_path / "store") == before


def test_what_does_not_fit_is_not_started(target: HfTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with fails("disk-full", "1.0") as caught:
        run(target, make_rows(40), tmp_path / "store")
    assert "--sample-size" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_disk_that_fills_up_stops_clearly_and_goes_on_later(target: HfTarget, tmp_path: Path) -> None:
    rows = make_rows(40)
    run(target, rows, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        with fails("cannot-write") as caught:
            run(target, rows, tmp_path / "resumed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "run the same command again" in str(caught.value)
    assert not [path.name for path in (tmp_path / "resumed").iterdir() if "tmp" in path.name]
    run(target, rows, tmp_path / "resumed")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_rows_without_loss_are_an_error_that_says_what_to_do(target: HfTarget, tmp_path: Path) -> None:
    row = TokenRow("0", np.arange(20, dtype=np.int32), np.zeros(20, dtype=np.uint8))
    with fails("no-reply-tokens", "1"):
        run(target, TokenRows.of([row]), tmp_path / "store")


@pytest.mark.parametrize("encoding", QUANTIZATIONS)
def test_batches_of_every_encoding_are_near_the_live_ones(
    target: HfTarget, tmp_path: Path, encoding: Quantization
) -> None:
    rows = make_rows(30)
    run(target, rows, tmp_path / "store", encoding=encoding)
    live, stored = (
        source.batch([29, 3, 17]) for source in (OnlineSource(target, rows), StoreSource(Store(tmp_path / "store")))
    )
    where = (stored.top_N >= 0).nonzero()[:, 0]
    used = stored.aux_NC.any(1)
    bound = {"bf16": 0.003, "fp8": 0.04, "int8": 0.02, "int4": 0.15}[encoding]
    assert relative_error(live.last_NH[where], stored.last_NH[where]) < bound
    assert relative_error(live.aux_NC[used], stored.aux_NC[used]) < bound
    told = Store(tmp_path / "store").manifest["sample"]["error"]
    assert told["aux"] == pytest.approx(relative_error(live.aux_NC[used], stored.aux_NC[used]), rel=0.4)


@pytest.mark.slow
def test_auto_is_int8_or_what_fits_and_stays_what_it_was(
    target: HfTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(40)
    assert run(target, rows, tmp_path / "roomy", encoding="auto").encoding == "int8"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("eagle3cli.data.hidden_states.forecast.SPARE_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    assert run(target, rows, tmp_path / "full", encoding="auto").encoding == "int4"
    monkeypatch.undo()
    assert run(target, rows, tmp_path / "full", encoding="auto").encoding == "int4"


def test_forecasts_of_size_and_time_are_told_first(target: HfTarget, tmp_path: Path) -> None:
    class Told(Silent):
        lines: list[str] = []

        def info(self, text: str) -> None:
            self.lines.append(text)

    report = Told()
    done = run(target, make_rows(40), tmp_path / "store", encoding="int8", report=report)
    (size,) = [float(m[1]) * 1e6 for line in report.lines if (m := re.search(r"int8: ([\d.]+) MB", line))]
    assert size == pytest.approx(done.bytes, rel=0.05)
    assert any(re.search(r"about .* at [\d,]+ tokens a second", line) for line in report.lines)
    assert any("relative error" in line for line in report.lines)


def test_the_size_told_is_the_stores_while_another_process_still_closes_it(
    target: HfTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_renamed(writer: states.StoreWriter) -> None:
        (writer.folder / ".manifest.json.tmp-1").symlink_to("renamed.just.now")

    monkeypatch.setattr(states.StoreWriter, "finish", half_renamed)
    told = run(target, make_rows(10), tmp_path / "store").bytes
    monkeypatch.undo()
    assert told < run(target, make_rows(10), tmp_path / "store").bytes == Store(tmp_path / "store").bytes < 1.1 * told


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(target: HfTarget, tmp_path: Path) -> None:
    """Moments are told by the processor's clock, which stands while other processes have it; its signal ends a process
    as abruptly as SIGKILL does."""
    rows, random = make_rows(200), np.random.default_rng(0)
    began = time.process_time()
    run(target, rows, tmp_path / "whole", encoding="int4")
    moments = random.uniform(0.001, (time.process_time() - began) / 6, 20)
    folder, killed = tmp_path / "killed", 0
    for moment in moments:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, moment)
            run(target, rows, folder, encoding="int4")
            os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGPROF
    assert killed >= 5
    run(target, rows, folder, encoding="int4")
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "2 kB"), (2_500_000, "2.5 MB"), (12e12, "12.0 TB")]
)
def test_sizes_for_people(count: int, said: str) -> None:
    assert size_text(int(count)) == said
