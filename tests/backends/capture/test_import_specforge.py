"""SpecForge's files of hidden states become the store that a capture of the same rows gives."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.backends.capture.import_specforge import ImportResult, ImportTarget, import_files
from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.data.hidden_states.rows import aux_count, teacher_positions
from eagle3cli.data.hidden_states.specforge_files import read_features
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.report import Silent
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.models import TargetSettings
from tests.failing import fails


@pytest.fixture(scope="module")
def target(tiny: Path) -> HfTarget:
    return load_target(TargetSettings(model_path=str(tiny), device="cpu", dtype="bfloat16"), Silent())


def write_file(path: Path, target: HfTarget, seed: int, **changes: Any) -> dict[str, torch.Tensor]:
    """A row as SpecForge keeps it."""
    random = np.random.default_rng(seed)
    ids = random.integers(3, 320, 50 + seed).astype(np.int32)
    ((aux, last),) = target.capture([ids])
    mask = torch.zeros(len(ids), dtype=torch.long)
    mask[20:40] = 1
    raw = {
        "input_ids": torch.from_numpy(ids).long(),
        "loss_mask": mask,
        "hidden_state": last[None],
        "aux_hidden_state": aux[None],
    }
    raw = {key: value for key, value in {**raw, **changes}.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        blob = io.BytesIO()
        torch.save(raw, blob)
        path.write_bytes(gzip.compress(blob.getvalue()))
    else:
        torch.save(raw, path)
    return raw


def run(target: HfTarget, source: Path, folder: Path, tiny: Path, **other: Any) -> ImportResult:
    raw = json.loads((tiny / "config.json").read_text())
    config = DraftConfig.from_target(raw, draft_vocab_size=200)
    wanted = ImportTarget(str(tiny), None, "hash", config, target.head)
    options = {"encoding": "bf16", "shard_mb": 1, "weights": (3, 1), "report": Silent(), "stop": Stop(), **other}
    return import_files(source, folder, wanted, **options)


def test_rows_come_over_as_they_are(target: HfTarget, tiny: Path, tmp_path: Path) -> None:
    names = ["rows_0-2/data_0.ckpt", "rows_0-2/data_1.ckpt.gz", "rows_2-4/data_2.ckpt"]
    raws = [write_file(tmp_path / "in" / name, target, i) for i, name in enumerate(names)]
    done = run(target, tmp_path / "in", tmp_path / "out", tiny)
    assert (done.rows, done.rejected) == (3, 0)
    store = Store(tmp_path / "out")
    assert store.meta.compute_dtype == "bfloat16"
    assert store.meta.source == "imported from SpecForge's files"
    assert store.vocab.size == 200
    assert bool(store.vocab.t2d[[1, 2]].all()), "beginning and end of a text are always in"
    for number, raw in enumerate(raws):
        row = store[number]
        where = teacher_positions(raw["loss_mask"])
        assert torch.equal(row.token_ids_S, raw["input_ids"])
        assert torch.equal(row.loss_mask_S, raw["loss_mask"].bool())
        assert torch.equal(row.aux_UC, raw["aux_hidden_state"][0, : aux_count(where)])
        assert torch.equal(row.last_RH, raw["hidden_state"][0, where])
        assert torch.equal(row.top_R, target.head.top_tokens(raw["hidden_state"][0, where]))


def test_files_that_cannot_be_used_are_listed_with_their_reason(target: HfTarget, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_file(folder / "a.ckpt", target, 0)
    write_file(folder / "b.ckpt", target, 1, hidden_state=None)
    write_file(folder / "c.ckpt", target, 2, aux_hidden_state=torch.zeros(1, 52, 64))
    write_file(folder / "d.ckpt", target, 3, loss_mask=torch.ones(5, dtype=torch.long))
    write_file(folder / "e.ckpt", target, 4, input_ids=torch.full((54,), 320))
    (folder / "f.ckpt").write_bytes((folder / "a.ckpt").read_bytes()[:-300])
    torch.save([1, 2], folder / "g.ckpt")
    (folder / "h.ckpt.gz").write_bytes(b"no gzip")
    torch.save({"input_ids": Path("x")}, folder / "i.ckpt")
    done = run(target, folder, tmp_path / "out", tiny)
    assert (done.rows, done.rejected) == (1, 8)
    told = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    reasons = {Path(line["file"]).name[0]: line["reason"] for line in told}
    assert "no tensor hidden_state" in reasons["b"]
    assert "[52, 64]" in reasons["c"]
    assert "mask of 5" in reasons["d"]
    assert "vocabulary of 320" in reasons["e"]
    assert "not a file of tensors" in reasons["f"]
    assert "holds a list" in reasons["g"]
    assert "not a file of tensors" in reasons["h"]
    assert "not a file of tensors" in reasons["i"], "nothing but tensors is unpickled"
    again = run(target, folder, tmp_path / "out", tiny)
    assert (done.nothing_new, again) == (False, replace(done, nothing_new=True))


def test_states_that_are_not_finite_name_their_file(target: HfTarget, tiny: Path, tmp_path: Path) -> None:
    write_file(tmp_path / "in" / "a.ckpt", target, 0)
    write_file(tmp_path / "in" / "b.ckpt", target, 1, aux_hidden_state=torch.full((1, 51, 192), torch.nan))
    with fails("states-not-finite"):
        run(target, tmp_path / "in", tmp_path / "out", tiny)


def test_folders_without_files(target: HfTarget, tiny: Path, tmp_path: Path) -> None:
    with fails("specforge-file"):
        run(target, tmp_path, tmp_path / "out", tiny)
    write_file(tmp_path / "in" / "a.ckpt", target, 0, loss_mask=torch.zeros(50, dtype=torch.long))
    with fails("no-reply-tokens", "1"):
        run(target, tmp_path / "in", tmp_path / "out", tiny)


def test_a_sample_as_specforge_stored_it(shared: Path, tmp_path: Path) -> None:
    tensors = load_file(shared / "fixtures" / "parity" / "b2pad_ttt3.safetensors")
    raw = {key.split(".", 2)[2]: value for key, value in tensors.items() if key.startswith("raw.1.")}
    torch.save(raw, tmp_path / "row.ckpt")
    found = read_features(tmp_path / "row.ckpt", layers=3, hidden=64, vocab=256)
    assert len(found.row) == 29 == len(found.aux_SC) == len(found.last_SH)
    assert found.row.token_ids.tolist() == raw["input_ids"].tolist()
    assert torch.equal(found.aux_SC, raw["aux_hidden_state"][0])
