"""Damaged and made-up files of other kinds than rows (tests/data/sources/test_fuzz.py) are read or refused by us."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from eagle3cli.backends.target.adapter import merged_folder
from eagle3cli.backends.target.head import read_config, read_target_tensors
from eagle3cli.backends.target.weights.checkpoint import Checkpoint
from eagle3cli.console.report import html
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.data.tokens.vocab import load_vocab
from eagle3cli.data.tokens.vocab_file import write_vocab
from eagle3cli.errors import Eagle3Error
from eagle3cli.models.card import origin_of
from eagle3cli.models.checkpoint import check_folder, load_draft, read_tensors, save_draft
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.files import read_weight_index
from eagle3cli.pipeline.engine import StageLedger
from eagle3cli.pipeline.forecast.calibration import read_calibration
from eagle3cli.runs.find import read_results
from eagle3cli.runs.folder import read_run
from eagle3cli.runs.page import training_page
from eagle3cli.runtime.manifest import finished
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.results import Results
from eagle3cli.serving.bench.tasks import read_questions
from eagle3cli.serving.client.metrics import read_metrics
from eagle3cli.serving.regenerate.recorded import load_recorded
from eagle3cli.serving.regenerate.shards import PartFile, ShardFolder
from eagle3cli.settings.load import load
from eagle3cli.training.checkpoint.state import TrainState, read_state
from eagle3cli.training.history import history_writer, read_history
from tests.adapters import make_adapter
from tests.conftest import RunCli
from tests.data.sources.test_fuzz import damaged
from tests.quantized import FORMATS, packed_integers

TARGET = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
DRAFT = DraftConfig.from_target(TARGET, draft_vocab_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats(allow_subnormal=False)
    | st.sampled_from(["", "x", "../x", "1e400", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "0", "step"]), inner, max_size=2),
    max_leaves=6,
)
many = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A JSON value with some parts replaced, or left out."""
    found = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([place for place in places(found) if place] or [("",)]))
        part = found
        for key in way:
            part = part[key]
        if draw(st.booleans()) or isinstance(part, list):
            part[last] = draw(VALUES)
        else:
            part.pop(last, None)
    return found


@st.composite
def bytes_of(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON file with other values, with damaged bytes, or with another kind of value altogether."""
    how = draw(st.sampled_from(["values", "bytes", "other"]))
    if how == "bytes":
        return draw(damaged(json.dumps(value).encode()))
    return json.dumps(draw(VALUES) if how == "other" else draw(changed(value))).encode()


@st.composite
def other_header(draw: st.DrawFn, weights: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    size = struct.unpack("<Q", weights[:8])[0]
    header = draw(bytes_of(json.loads(weights[8 : 8 + size])))
    length = draw(st.sampled_from([len(header), 2**63, 0, size]))
    return struct.pack("<Q", length) + header + weights[8 + size :]


@st.composite
def lines_of(draw: st.DrawFn, rows: list[Any]) -> bytes:
    """The same of a file with a JSON value a line."""
    return b"\n".join(draw(bytes_of(row)) if draw(st.booleans()) else json.dumps(row).encode() for row in rows) + b"\n"


def survives(read: Callable[[], object]) -> None:
    """It is read, or refused in words; nothing else comes out."""
    with suppress(Eagle3Error):
        read()


def _quantised(folder: Path) -> None:
    """The weights of a layer, as the config says that they are stored."""
    stored, _ = packed_integers(torch.randn(8, 64))
    save_file({f"model.layer.{part}": tensor for part, tensor in stored.items()}, folder / "model.safetensors")
    checkpoint = Checkpoint(str(folder), read_config(str(folder)))
    assert str(checkpoint.quantization)
    for name in checkpoint:
        checkpoint[name]


STEP = {
    "event": "step",
    "step": 2,
    "epoch": 0,
    "loss": 2.5,
    "depth_losses": [2.0, 3.0],
    "accuracy": [0.5, 0.4],
    "grad_norm": 1.0,
    "learning_rate": 0.1,
    "tokens": 100,
    "tokens_per_s": 50.0,
    "time": {"target": 0.5},
    "seconds": 2.0,
}
EVAL = {
    "event": "eval",
    "step": 2,
    "seconds": 2.0,
    "acceptance_length": [1.2, 1.3],
    "accepted_per_position": [0.2, 0.1],
    "by_reply_position": {"0+": 1.3},
    "accuracy": [0.3, 0.2],
    "rows": 4,
}
RESULT = {
    "kind": "configuration",
    "task": "mtbench:2",
    "config": "1,0,0,0",
    "temperature": 0.0,
    "tokens_per_s": 10.0,
    "acceptance_length": 1.5,
}
JSON_FILES: dict[str, tuple[Any, Callable[[Path], object]]] = {
    "draft config": (
        DRAFT.to_sglang(),
        lambda p: read_draft_config(str(p), TARGET, draft_vocab_size=None, aux_layers=None),
    ),
    "target config": (TARGET, lambda p: (p.rename(p.with_name("config.json")), read_config(str(p.parent)))),
    "quantised target": (
        {"quantization_config": FORMATS["compressed-int4"][0], "vocab_size": 8},
        lambda p: _quantised(p.rename(p.with_name("config.json")).parent),
    ),
    "weight index": ({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}, read_weight_index),
    "progress": (TrainState(step=3, rates=[0.5]).to_file(), read_state),
    "manifest": (
        {"state": "finished", "options": {"a": 1}, "inputs": {}, "outputs": {"x": 1}, "summary": {}},
        lambda p: finished(p, {"a": 1}, []),
    ),
    "stages": (
        {"stages": {"prepare": {"key": "a", "settings": {}, "state": "done", "seconds": 1.0, "result": {}}}},
        lambda p: (p.rename(p.with_name("stages.json")), StageLedger.open(p.parent)),
    ),
    "calibration": (
        {
            **{"made": "now", "waited": 0.1, "machine": {"cores": 2}, "target": {"name": "a", "kind": "b"}},
            **{"settings": {}, "load_seconds": {"low": 1.0, "high": 2.0}, "capture_tokens_per_s": None},
            "decoding_step_seconds": [{"batch": 1, "depth": 0, "low": 0.1, "high": 0.2}],
            "training_step_seconds": {"rows": 8, "row": 100, "loss": 50, "low": 1.0, "high": 2.0},
        },
        read_calibration,
    ),
    "shard manifest": (
        {"made_with": {"target": "x"}, "shards": {"0-4": {"finished": 1, "rows": 4, "errors": 0, "tokens": 9}}},
        lambda p: (
            p.rename(p.with_name("manifest.json")),
            ShardFolder(p.parent).open({"target": "x"}, overwrite=False),
        ),
    ),
}
LINES: dict[str, tuple[list[Any], Callable[[Path], object]]] = {
    "history": ([STEP, EVAL], lambda p: (p.rename(p.with_name("metrics.jsonl")), history_of(p.parent))),
    "results": (
        [{"kind": "settings", "settings": {"seed": 0}}, RESULT],
        lambda p: Results.open(p, {"seed": 0}, overwrite=False),
    ),
    "results to compare": ([{"kind": "settings", "settings": {"seed": 0}}, RESULT], read_results),
    "questions": ([{"turns": ["a", "b"], "category": "writing"}, {"prompt": "c"}], read_questions),
    "questions of a task": ([{"question": "1+1?", "answer": "x #### 2"}], lambda p: read_questions(p, "gsm8k")),
    "recorded replies": (
        [{"target": "x"}, {"id": "a", "prompt_sha": "b", "reply": "c", "finish": "stop"}],
        lambda p: load_recorded(str(p), {}, Silent()),
    ),
    "part file": (
        [{"row": 0, "by": "generated", "value": {"a": 1}, "tokens": 3}, {"row": 1, "by": "error", "value": {}}],
        lambda p: PartFile(p).close(),
    ),
}


def history_of(run: Path) -> object:
    """All that reads a history: going on with it, the report, the model card."""
    (run / "settings.toml").write_text("[train]\n")
    page = html(training_page(read_run(run)))
    origin_of(run)
    history_writer(run, 5, Silent())
    return page, read_history(run)


@pytest.mark.parametrize("kind", JSON_FILES)
@many
@given(data=st.data())
def test_json_files(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole, read = JSON_FILES[kind]
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "file.json").write_bytes(data.draw(bytes_of(whole)))
    survives(lambda: read(folder / "file.json"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", LINES)
@many
@given(data=st.data())
def test_files_of_json_lines(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows, read = LINES[kind]
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "file.jsonl").write_bytes(data.draw(lines_of(rows)))
    survives(lambda: read(folder / "file.jsonl"))
    shutil.rmtree(folder)


TOML = b'[train]\nbatch_size = 4\nreport_to = ["wandb"]\n[draft]\naux_layers = [1, 2, 3]\n[data]\ntrain_path = "x"\n'


@many
@given(data=st.data())
def test_settings_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "eagle3.toml"
    path.write_bytes(data.draw(damaged(TOML)))
    survives(lambda: load([path]))
    path.rename(path.with_name("settings.toml"))
    survives(lambda: origin_of(path.parent))


@pytest.fixture(scope="module")
def draft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft") / "draft"
    folder.mkdir()
    draft = Draft(DRAFT)
    ids = torch.arange(20)
    draft.set_vocab(ids - torch.arange(20), torch.arange(40) < 20)
    save_draft(folder, draft.serving_state(), DRAFT, dtype=torch.float32)
    return folder


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_draft_folders(data: st.DataObject, draft_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    config = json.loads((draft_folder / "config.json").read_bytes())
    weights = (draft_folder / "model.safetensors").read_bytes()
    is_config = data.draw(st.booleans())
    (folder / "config.json").write_bytes(data.draw(bytes_of(config)) if is_config else json.dumps(config).encode())
    (folder / "model.safetensors").write_bytes(weights if is_config else data.draw(other_header(weights)))
    for read in (read_tensors, load_draft, check_folder, lambda f: read_target_tensors(str(f))):
        survives(lambda read=read: read(folder))  # type: ignore[misc]
    shutil.rmtree(folder)


@many
@given(data=st.data())
def test_adapters(data: st.DataObject, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = make_adapter(tmp_path_factory.mktemp("fuzz") / "mine", tiny, ("q_proj",), rank_pattern={"q_proj": 4})
    file = folder / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    is_json = file.suffix == ".json"
    file.write_bytes(data.draw(bytes_of(json.loads(file.read_bytes())) if is_json else other_header(file.read_bytes())))
    survives(lambda: merged_folder(str(tiny), folder, folder.parent, Silent()))
    shutil.rmtree(folder.parent)


@many
@given(data=st.data())
def test_vocabulary_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "vocab.safetensors"
    if data.draw(st.booleans()):
        write_vocab(path, np.arange(4), 9)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    else:
        d2t = torch.tensor(data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)), dtype=torch.int64)
        shape = data.draw(st.sampled_from([(4,), (2, 2), (0,), ()]))
        kind = data.draw(st.sampled_from([torch.bool, torch.float32, torch.int64]))
        save_file({"d2t": d2t, data.draw(st.sampled_from(["t2d", "t2"])): torch.ones(shape, dtype=kind)}, path)
    survives(lambda: load_vocab(path))


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A small store of hidden states, as the command writes it."""
    from eagle3cli.cli.main import main
    from tests.tiny import conversations

    place = tmp_path_factory.mktemp("store")
    (place / "train.jsonl").write_text(conversations(4, 0))
    words = ["hidden-states", "--target-model-path", str(tiny), "--train-data-path", str(place / "train.jsonl")]
    words += ["--output-path", str(place / "states"), "--cache-dir", str(place / "cache"), "--threads", "1"]
    assert main([*words, "--set", "draft.vocab_size=200"]) == 0
    return place / "states" / "train"


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hidden_state_stores(data: st.DataObject, store_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "store"
    shutil.copytree(store_folder, folder)
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir() if path.is_file())))
    blob = (folder / name).read_bytes()
    new = bytes_of(json.loads(blob)) if name == "manifest.json" else damaged(blob)
    (folder / name).write_bytes(data.draw(new))

    def read() -> None:
        store = Store(folder)
        for row in range(len(store)):
            store[row]

    survives(read)
    shutil.rmtree(folder)


@many
@given(st.text(max_size=200) | st.just('a{b="c"} 1e999\n# x\nd NaN\ne\n'))
def test_metrics_of_servers(text: str) -> None:
    survives(lambda: read_metrics(text))


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"])
def test_a_command_ends_in_words(content: bytes, tmp_path: Path, run_cli: RunCli, tiny: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    (tmp_path / "train.jsonl").write_bytes(content)
    for words in (
        ("train", "--draft-model-config", "file.json", "--target-model-path", tiny, "--train-data-path", "train.jsonl"),
        ("cache", "--target-model-path", tiny, "--train-data-path", "file.json"),
        ("run", "file.json"),
        ("bench", "--engine", "local", "--model-path", tiny, "--benchmark-list", "file.json:2"),
    ):
        ran = run_cli(*words)
        assert ran.code in (1, 2, 3), ran.err
        assert "--debug" not in ran.err, ran.err  # an error that nobody foresaw
        assert "Traceback" not in ran.err
