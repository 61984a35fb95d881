"""How SGLang, vLLM and llama.cpp are started: the arguments of the command line and what they need in the environment.

Arguments are lists, never text for a shell. What the user adds comes last, so it wins.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eagle3cli.errors import UsageError
from eagle3cli.models.serve import SGLANG_WINDOW, draft_words, sglang_window
from eagle3cli.models.window import read_window
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.llama_server import llama_server
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings

Product = Literal["sglang", "vllm", "llama.cpp"]
CPU_TOKENS = 32768
"""Tokens in the key/value cache on a CPU."""
CPU_REQUESTS = 16
"""Requests decoded together on a CPU."""
LLAMACPP_SLOTS = 8
"""Requests that llama.cpp decodes together; each has the room of a whole context."""
LLAMACPP_CONTEXT = 4096
"""Tokens of one such context, where the target has as many."""


@dataclass(frozen=True)
class Speculation:
    """A draft and its use: a tree of ``topk`` branches a step, ``steps`` deep, of which ``tokens`` are checked."""

    draft: str
    steps: int
    topk: int
    tokens: int
    sampled: bool = False
    """Whether draft tokens are drawn from what the draft says, for requests at a temperature; else the likeliest."""


@dataclass(frozen=True)
class Launch:
    """One server to start on 127.0.0.1:``port``. ``environment`` is added to our own."""

    argv: tuple[str, ...]
    port: int
    environment: dict[str, str] = field(default_factory=dict)


def launches(
    product: Product,
    server: ServerSettings,
    target: TargetSettings,
    ports: Sequence[int],
    speculation: Speculation | None = None,
) -> list[Launch]:
    """One launch per port, spread over the visible GPUs. Raises UsageError where there are too few of them."""
    gpus = [] if target.device == "cpu" else visible_gpus()
    if gpus and len(gpus) < server.tp_size * len(ports):
        fix = "lower --tp-size or --replicas"
        what = f"{len(ports)} servers of {server.tp_size} GPUs each do not fit into {len(gpus)} GPUs"
        raise UsageError("process-count", what, where="--tp-size", fix=fix)
    planned = []
    for index, port in enumerate(ports):
        own_gpus = gpus[index * server.tp_size : (index + 1) * server.tp_size]
        argv, environment = COMMANDS[product](server, target, port, speculation, on_cpu=not own_gpus)
        if own_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own_gpus)
        else:
            environment |= _cpu_threads(target, len(ports))
        program = [llama_server(server.llama_server)] if product == "llama.cpp" else python_argv(server.python)
        planned.append(Launch((*program, *argv, *shlex.split(server.args)), port, environment))
    return planned


def replicas_of(server: ServerSettings, target: TargetSettings) -> int:
    """Servers to start: as asked, else as many as the visible GPUs hold, one on a CPU."""
    if server.replicas is not None:
        return server.replicas
    gpus = [] if target.device == "cpu" else visible_gpus()
    return max(1, len(gpus) // server.tp_size)


def product_of(engine: str) -> Product:
    """What the setting ``engine`` starts: SGLang unless another one is asked for."""
    others: dict[str, Product] = {"vllm": "vllm", "llama.cpp": "llama.cpp"}
    return others.get(engine, "sglang")


def one_type(target: TargetSettings, draft: Path | None) -> TargetSettings:
    """The target with the type that servers with and without this draft are to run it in.

    It is what was asked for, else the draft's: left alone, servers run a float32 target in float16, which a draft in
    bfloat16 cannot follow.
    """
    if target.dtype != "auto" or draft is None:
        return target
    config = _draft_json(draft)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "auto").removeprefix("torch.")
    return target.model_copy(update={"dtype": dtype})


def _draft_json(draft: Path) -> dict[str, Any]:
    """The config of a draft's folder, with what speculators says of its layer; empty where there is none here."""
    path = draft / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config | (config.get("transformer_layer_config") or {})


ARGUMENTS = "engine/arg_utils.py"
SPECULATIVE = "config/speculative.py"
DRAWN_DRAFTS = "draft_sample_method"
"""vLLM's setting for how draft tokens are chosen, in :data:`SPECULATIVE`."""


def vllm_knows(python: str, name: str, file: str = ARGUMENTS) -> bool:
    """Whether the vLLM of this Python has a flag, or a setting; looks into its source, since importing it takes many
    seconds."""
    code = (
        "import importlib.util, pathlib; spec = importlib.util.find_spec('vllm'); "
        "print(spec is not None and sys.argv[1] in pathlib.Path(spec.submodule_search_locations[0], "
        "sys.argv[2]).read_text())"
    )
    try:
        done = subprocess.run(
            [*python_argv(python), "-c", f"import sys; {code}", name, file],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == "True"


def visible_gpus() -> list[str]:
    """Names of the GPUs that a server may be given, as CUDA_VISIBLE_DEVICES takes them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def python_argv(python: str) -> list[str]:
    """The setting as arguments: a path, or arguments that end with a Python (``docker run ... python3``)."""
    if not python:
        return [sys.executable]
    if Path(python).expanduser().is_file():
        return [str(Path(python).expanduser().absolute())]
    argv = shlex.split(python)
    if shutil.which(argv[0]) is None:
        raise UsageError(
            "no-such-path", f"no such program: {argv[0]}", where="--server-python", fix="give the path of a Python"
        )
    return argv


def _sglang(
    server: ServerSettings, target: TargetSettings, port: int, speculation: Speculation | None, *, on_cpu: bool
) -> tuple[list[str], dict[str, str]]:
    flags = {
        "--model-path": target.model_path,
        "--host": "127.0.0.1",
        "--port": port,
        "--tp-size": server.tp_size,
        "--dist-timeout": server.dist_timeout,
        **_shared_flags(target, speculation),
        "--mem-fraction-static": server.mem_fraction_static,
    }
    environment = {"SGLANG_HOST_IP": "127.0.0.1"}
    if on_cpu:
        environment["SGLANG_USE_CPU_ENGINE"] = "1"
        flags |= {
            "--device": "cpu",
            "--disable-overlap-schedule": True,
            "--cuda-graph-backend-decode": "disabled",
            "--cuda-graph-backend-prefill": "disabled",
            "--max-total-tokens": CPU_TOKENS,
            "--max-running-requests": CPU_REQUESTS,
            # Both by name: --attention-backend alone is replaced by one that cannot draft where a CPU has no AMX.
            "--prefill-attention-backend": "intel_amx",
            "--decode-attention-backend": "intel_amx",
        }
    if speculation is not None:
        flags |= {
            "--speculative-algorithm": "EAGLE3",
            "--speculative-draft-model-path": speculation.draft,
            "--speculative-num-steps": speculation.steps,
            "--speculative-eagle-topk": speculation.topk,
            "--speculative-num-draft-tokens": speculation.tokens,
            # A --quantization among the user's arguments is the target's; SGLang would give it to the draft as well.
            "--speculative-draft-model-quantization": "unquant",
            SGLANG_WINDOW: sglang_window(read_window(_draft_json(Path(speculation.draft))).get("window")),
        }
        if on_cpu and speculation.topk > 1:
            # A tree near the context's end leaks some slots of the cache there, and the check would stop the server.
            environment["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE"] = "0"
    return _argv("sglang.launch_server", flags), environment


def _vllm(
    server: ServerSettings, target: TargetSettings, port: int, speculation: Speculation | None, *, on_cpu: bool
) -> tuple[list[str], dict[str, str]]:
    flags = {
        "--model": target.model_path,
        "--host": "127.0.0.1",
        "--port": port,
        "--tensor-parallel-size": server.tp_size,
        **_shared_flags(target, speculation),
        "--gpu-memory-utilization": server.mem_fraction_static,
    }
    environment = {"VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if on_cpu:
        environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
        flags |= {"--enforce-eager": True, "--max-num-seqs": CPU_REQUESTS}
    if speculation is not None:  # it drafts a chain: top-k and tokens follow from the steps
        draft: dict[str, object] = {"method": "eagle3", "model": speculation.draft}
        draft["num_speculative_tokens"] = speculation.steps
        draft |= {DRAWN_DRAFTS: "probabilistic"} if speculation.sampled else {}
        flags["--speculative-config"] = json.dumps(draft)
    return _argv("vllm.entrypoints.openai.api_server", flags), environment


def _llamacpp(
    server: ServerSettings, target: TargetSettings, port: int, speculation: Speculation | None, *, on_cpu: bool
) -> tuple[list[str], dict[str, str]]:
    """``target.model_path`` and the draft are GGUF files here."""
    flags = {
        "--model": target.model_path,
        "--alias": Path(target.model_path).stem,
        "--host": "127.0.0.1",
        "--port": port,
        "--parallel": LLAMACPP_SLOTS,
        "--ctx-size": LLAMACPP_SLOTS * LLAMACPP_CONTEXT,
        "--jinja": True,
        "--no-webui": True,
        "--metrics": True,
    }
    if on_cpu:
        threads = int(_cpu_threads(target, 1)["OMP_NUM_THREADS"])
        flags |= {"--device": "none", "--threads": threads}
    given = shlex.split(server.args)  # of a flag that stands twice it takes the last, and complains
    added = {name: value for name, value in flags.items() if name not in given}
    argv = [word for name, value in added.items() for word in ([name] if value is True else [name, str(value)])]
    return argv + (draft_words(speculation.draft, speculation.steps) if speculation else []), {}


COMMANDS = {"sglang": _sglang, "vllm": _vllm, "llama.cpp": _llamacpp}
"""The words behind the program, and the environment, by product."""


def _shared_flags(target: TargetSettings, speculation: Speculation | None) -> dict[str, Any]:
    """What both servers call alike."""
    dtype = one_type(target, Path(speculation.draft) if speculation else None).dtype
    return {
        "--revision": target.revision or None,
        "--dtype": None if dtype == "auto" else dtype,
        "--trust-remote-code": target.trust_remote_code or None,
    }


def _argv(module: str, flags: dict[str, Any]) -> list[str]:
    """The arguments behind the Python; True is a flag without a value, None is none."""
    argv = ["-m", module]
    for name, value in flags.items():
        if value is not None:
            argv += [name] if value is True else [name, str(value)]
    return argv


def _cpu_threads(target: TargetSettings, servers: int) -> dict[str, str]:
    """Threads of one of several servers on this CPU; one core is left for their other processes."""
    cores = len(available_cpus())
    threads = target.threads or max(1, (cores - 1) // servers)
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
