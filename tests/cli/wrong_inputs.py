"""Wrong inputs as people give them: the files they need, the command line, and what has to be said of each."""

from __future__ import annotations

import json
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
SHORT = {
    "TRAIN": "train --target-model-path target --train-data-path rows.jsonl",
    "EVAL": "eval --target-model-path target --eval-data-path rows.jsonl",
    "BENCH": "bench --model-path target --engine local",
    "OTHER": "a draft of another target: its hidden_size is 96 but the target has 64",
}
"""Words of the tables that stand for others."""


@dataclass(frozen=True)
class WrongInput:
    """A command line with one mistake; ``said`` has to stand in what is told: the place, the matter and the way out."""

    name: str
    words: tuple[str, ...]
    said: tuple[str, ...]
    code: int = 1


def _table(text: str) -> tuple[WrongInput, ...]:
    """Three lines each: the name, what is typed, and the exit code with what is said between bars."""
    for word, words in SHORT.items():
        text = text.replace(word, words)
    lines = [line.strip() for line in text.strip().splitlines()]
    cases = []
    for name, typed, told in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        code, _, said = told.partition(": ")
        cases.append(WrongInput(name, tuple(typed.split()), tuple(said.split(" | ")), int(code)))
    return tuple(cases)


TEN = _table("""
a target's name mistyped
    train --target-model-path tarfget --train-data-path rows.jsonl
    1: tarfget: no such folder | did you mean target?
weights cut short
    train --target-model-path cut --train-data-path rows.jsonl
    1: cut/model.safetensors: cannot be read: 20,000 bytes of | copy it again
rows mistyped
    train --target-model-path target --train-data-path row.jsonl
    1: row.jsonl: no such file | did you mean rows.jsonl?
a draft of another target trained on
    TRAIN --draft-init draft --draft-model-path other-draft
    1: other-draft: OTHER | give the target it was made for
more processes than the machine has
    TRAIN --gpus 99
    2: --gpus: 99 | use --gpus auto
a device that is none
    TRAIN --device gpu
    2: --device: no such device: gpu | cuda
a run where a file stands
    TRAIN --output-dir rows.jsonl
    1: rows.jsonl: is a file | --output-dir
a web server for a language model's
    regenerate --input-path rows.jsonl --server-address-port {web}
    1: {web}: a server, but not one of language models: /v1/models is answered with 404 | SGLang, vLLM
a broken file among several settings files
    config check fine.toml broken.toml wrong.toml
    2: broken.toml:1: broken TOML | wrong.toml:2: train.batch_size: '0' | wrong.toml:3: unknown key train.lr
a task that is none
    BENCH --benchmark-list mtbenc:2
    2: mtbenc | did you mean mtbench?
""")
"""Ten that people make."""

MORE = _table("""
an empty folder
    train --target-model-path empty --train-data-path rows.jsonl
    1: empty: this folder holds no model | the folder is empty
a folder that holds a GGUF
    train --target-model-path with-gguf --train-data-path rows.jsonl
    1: no config.json | --target-model-path with-gguf/model.gguf
a GGUF cut short
    train --target-model-path with-gguf/model.gguf --train-data-path rows.jsonl
    1: not a whole GGUF file | download it again
a pointer of Git LFS
    train --target-model-path pointer --train-data-path rows.jsonl
    1: pointer/model.safetensors: a pointer of Git LFS | git lfs pull
pickled weights alone
    train --target-model-path pickled --train-data-path rows.jsonl
    1: pickled: no safetensors weights; pytorch_model.bin is not read
a shard that was not downloaded
    train --target-model-path shards --train-data-path rows.jsonl
    1: shards: b.safetensors of 2 weight files is not there
a file for a folder
    train --target-model-path rows.jsonl --train-data-path rows.jsonl
    1: rows.jsonl: a file, not a model
a folder for a file
    train --target-model-path target --train-data-path folder
    1: is a folder | --train-data-path folder/rows.jsonl
an empty file
    train --target-model-path target --train-data-path empty.jsonl
    1: empty.jsonl: the file is empty
no target
    train --train-data-path rows.jsonl
    2: --target-model-path: no target model
held-out rows mistyped
    TRAIN --eval-data-path evl.jsonl
    1: evl.jsonl: no such file
a draft evaluated
    EVAL --draft-model-path other-draft
    1: OTHER
a draft of another benched
    BENCH --draft-model-path other-draft
    1: OTHER
a draft exported
    export --target-model-path target --draft-model-path other-draft --output-path out
    1: OTHER
a draft's folder mistyped
    EVAL --draft-model-path other-draf
    1: other-draf: no such folder | did you mean other-draft?
a whole model for a draft
    EVAL --draft-model-path target
    1: target: a whole model (8 layers)
no draft
    EVAL
    2: --draft-model-path: no draft
no draft to bench
    BENCH
    2: --speculative-draft-model-path: no draft
a template that is none
    TRAIN --chat-template chatmll
    2: did you mean 'chatml'?
a template's file mistyped
    TRAIN --chat-template my.jinja
    2: no such file my.jinja
a draft config that is none
    TRAIN --draft-model-config llama-3.1-8
    1: did you mean llama
a time that is none
    TRAIN --time-budget 3x
    2: --time-budget: not a duration: 3x
a negative number
    TRAIN --batch-size -3
    2: --batch-size: '-3' is not
a GPU that is not there
    TRAIN --device cuda:7
    2: --device: torch sees
shards that are not there
    merge --input-dir shard
    1: shard: no such folder | shards?
a configuration that is none
    BENCH --config-list 1,2
    2: not batch,steps,topk,draft_tokens
a server that is not there
    bench --model-path target --server-address-port 127.0.0.1:1
    1: 127.0.0.1:1: does not answer | start the server first
a port in use
    bench --model-path target --engine vllm --config-list 1,0,0,0 --port {port}
    2: --port: port {port} cannot be had | choose another --port
a run below a file
    TRAIN --output-dir rows.jsonl/x
    1: cannot be made | is a file
states that are not there
    train --target-model-path target --mode offline --train-hidden-states-path x
    1: x: no such folder
""")


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
