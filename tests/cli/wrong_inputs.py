"""Wrong inputs as people give them: the files they need, the command line, and what has to be said of each."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.tiny import HIDDEN, LAYERS, VOCAB, tiny_target

ROW = {"id": "a", "conversations": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
ROWS = "--train-data-path rows.jsonl"
TRAIN = f"train --target-model-path target {ROWS}"
EVAL = "eval --target-model-path target --eval-data-path rows.jsonl"
BENCH = "bench --model-path target --engine local"
OTHER = "a draft of another target: its hidden_size is 96 but the target has 64"


@dataclass(frozen=True)
class WrongInput:
    """A command line with one mistake; ``said`` has to stand in what is told: the place, the matter and the way out."""

    name: str
    words: tuple[str, ...]
    said: tuple[str, ...]
    code: int = 1


def _wrong(name: str, line: str, *said: str, code: int = 1) -> WrongInput:
    """A row of the tables: the name, what is typed, what is told of it."""
    return WrongInput(name, tuple(shlex.split(line)), said, code)


TEN = (
    _wrong(
        "a target's name mistyped",
        f"train --target-model-path tarfget {ROWS}",
        "tarfget: no such folder",
        "did you mean target?",
    ),
    _wrong(
        "weights cut short",
        f"train --target-model-path cut {ROWS}",
        "cut/model.safetensors: cannot be read: 20,000 bytes of",
        "copy it again",
    ),
    _wrong(
        "rows mistyped",
        "train --target-model-path target --train-data-path row.jsonl",
        "row.jsonl: no such file",
        "did you mean rows.jsonl?",
    ),
    _wrong(
        "a draft of another target trained on",
        f"{TRAIN} --draft-init draft --draft-model-path other-draft",
        f"other-draft: {OTHER}",
        "give the target it was made for",
    ),
    _wrong("more processes than the machine has", f"{TRAIN} --gpus 99", "--gpus: 99 ", "use --gpus auto", code=2),
    _wrong("a device that is none", f"{TRAIN} --device gpu", "--device: no such device: gpu", "cuda", code=2),
    _wrong("a run where a file stands", f"{TRAIN} --output-dir rows.jsonl", "rows.jsonl: is a file", "--output-dir"),
    _wrong(
        "a web server for a language model's",
        "regenerate --input-path rows.jsonl --server-address-port {web}",
        "{web}: a server, but not one of language models: /v1/models is answered with 404",
        "SGLang, vLLM",
    ),
    _wrong(
        "a broken file among several settings files",
        "config check fine.toml broken.toml wrong.toml",
        "broken.toml:1: broken TOML",
        "wrong.toml:2: train.batch_size: '0'",
        "wrong.toml:3: unknown key train.lr",
        code=2,
    ),
    _wrong("a task that is none", f"{BENCH} --benchmark-list mtbenc:2", "mtbenc", "did you mean mtbench?", code=2),
)
"""The ten that ``tests/speed/early_errors.py`` shows with their times."""

MORE = (
    _wrong(
        "an empty folder",
        f"train --target-model-path empty {ROWS}",
        "empty: this folder holds no model",
        "the folder is empty",
    ),
    _wrong(
        "a folder that holds a GGUF",
        f"train --target-model-path with-gguf {ROWS}",
        "no config.json",
        "--target-model-path with-gguf/model.gguf",
    ),
    _wrong(
        "a GGUF cut short",
        f"train --target-model-path with-gguf/model.gguf {ROWS}",
        "not a whole GGUF file",
        "download it again",
    ),
    _wrong(
        "a pointer of Git LFS",
        f"train --target-model-path pointer {ROWS}",
        "pointer/model.safetensors: a pointer of Git LFS",
        "git lfs pull",
    ),
    _wrong(
        "pickled weights alone",
        f"train --target-model-path pickled {ROWS}",
        "pickled: no safetensors weights; pytorch_model.bin is not read",
    ),
    _wrong(
        "a shard that was not downloaded",
        f"train --target-model-path shards {ROWS}",
        "shards: b.safetensors of 2 weight files is not there",
    ),
    _wrong("a file for a folder", f"train --target-model-path rows.jsonl {ROWS}", "rows.jsonl: a file, not a model"),
    _wrong(
        "a folder for a file",
        "train --target-model-path target --train-data-path folder",
        "is a folder",
        "--train-data-path folder/rows.jsonl",
    ),
    _wrong(
        "an empty file",
        "train --target-model-path target --train-data-path empty.jsonl",
        "empty.jsonl: the file is empty",
    ),
    _wrong("no target", "train --train-data-path rows.jsonl", "--target-model-path: no target model", code=2),
    _wrong("held-out rows mistyped", f"{TRAIN} --eval-data-path evl.jsonl", "evl.jsonl: no such file"),
    _wrong("a draft evaluated", f"{EVAL} --draft-model-path other-draft", OTHER),
    _wrong("a draft of another benched", f"{BENCH} --draft-model-path other-draft", OTHER),
    _wrong(
        "a draft exported", "export --target-model-path target --draft-model-path other-draft --output-path out", OTHER
    ),
    _wrong(
        "a draft's folder mistyped",
        f"{EVAL} --draft-model-path other-draf",
        "other-draf: no such folder",
        "did you mean other-draft?",
    ),
    _wrong("a whole model for a draft", f"{EVAL} --draft-model-path target", "target: a whole model (8 layers)"),
    _wrong("no draft", EVAL, "--draft-model-path: no draft", code=2),
    _wrong("no draft to bench", BENCH, "--speculative-draft-model-path: no draft", code=2),
    _wrong("a template that is none", f"{TRAIN} --chat-template chatmll", "did you mean 'chatml'?", code=2),
    _wrong("a template's file mistyped", f"{TRAIN} --chat-template my.jinja", "no such file my.jinja", code=2),
    _wrong("a draft config that is none", f"{TRAIN} --draft-model-config llama-3.1-8", "did you mean llama"),
    _wrong("a time that is none", f"{TRAIN} --time-budget 3x", "--time-budget: not a duration: 3x", code=2),
    _wrong("a negative number", f"{TRAIN} --batch-size -3", "--batch-size: '-3' is not", code=2),
    _wrong("a GPU that is not there", f"{TRAIN} --device cuda:7", "--device: ", code=2),
    _wrong("shards that are not there", "merge --input-dir shard", "shard: no such folder", "shards?"),
    _wrong("a configuration that is none", f"{BENCH} --config-list 1,2", "not batch,steps,topk,draft_tokens", code=2),
    _wrong(
        "a server that is not there",
        "bench --model-path target --server-address-port 127.0.0.1:1",
        "127.0.0.1:1: does not answer",
        "start the server first",
    ),
    _wrong(
        "a port in use",
        "bench --model-path target --engine vllm --config-list 1,0,0,0 --port {port}",
        "--port: port {port} cannot be had",
        "choose another --port",
        code=2,
    ),
    _wrong("a run below a file", f"{TRAIN} --output-dir rows.jsonl/x", "cannot be made", "is a file"),
    _wrong(
        "states that are not there",
        "train --target-model-path target --mode offline --train-hidden-states-path x",
        "x: ",
    ),
)


def make_inputs(folder: Path, target: Path | None = None) -> None:
    """Write what the command lines name into ``folder``; ``target`` is a tiny one that is there already."""
    place = folder / "target"
    if target is None:
        tiny_target(place)
    else:
        shutil.copytree(target, place)
    _broken_models(folder, place)
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / "empty.jsonl").touch()
    (folder / "folder").mkdir()
    (folder / "folder" / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (folder / "fine.toml").write_text("[train]\nseed = 3\n")
    (folder / "broken.toml").write_text("[train\n")
    (folder / "wrong.toml").write_text("[train]\nbatch_size = 0\nlr = 3\n")
    (folder / "other-draft").mkdir()
    (folder / "other-draft" / "config.json").write_text(json.dumps(draft_config(HIDDEN + 32)))


def draft_config(hidden_size: int) -> dict[str, Any]:
    """What matters of a draft's config."""
    sizes = {"hidden_size": hidden_size, "target_hidden_size": hidden_size, "vocab_size": VOCAB}
    aux = {"eagle_aux_hidden_state_layer_ids": [1, 3, LAYERS - 4]}
    return {"architectures": ["LlamaForCausalLMEagle3"], **sizes, "draft_vocab_size": 200, "eagle_config": aux}


def _broken_models(folder: Path, target: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "with-gguf").mkdir()
    (folder / "with-gguf" / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    for name in ("cut", "pointer", "pickled", "shards"):
        shutil.copytree(target, folder / name)
    weights = (target / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[:20_000])
    (folder / "pointer" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name in ("pickled", "shards"):
        (folder / name / "model.safetensors").unlink()
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    (folder / "shards" / "a.safetensors").write_bytes(weights)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))


class _NothingHere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def web_server() -> Iterator[dict[str, str]]:
    """A server that knows no page; what stands for it in the command lines and in what is said."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _NothingHere)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        port = server.server_address[1]
        yield {"web": f"127.0.0.1:{port}", "port": str(port)}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
