"""What regenerate and bench need: servers that are some, configurations and tasks that exist."""

from __future__ import annotations

import os
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.serving.client.models_page import KEY, no_model_server, why_no_model_server
from eagle3cli.settings.tables import Settings

SECONDS = 10.0
LARGEST_LIST = 1 << 20


def check_servers(settings: Settings, *, every: bool) -> None:
    """Raise Eagle3Error where one of the given servers is none of language models, and where none of them, or not
    ``every`` one, answers. What httpx would take to be imported is saved: one question is asked without it.
    """
    silent = {}
    for address in settings.server.address_port:
        try:
            status, body = _ask(address)
        except OSError as error:
            silent[address] = f"no connection: {error.strerror or error}"
            continue
        except HTTPException as error:
            raise no_model_server(address, f"not HTTP: {type(error).__name__}") from error
        why = why_no_model_server(status, body)
        if why:
            raise no_model_server(address, why)
    if silent and (every or len(silent) == len(settings.server.address_port)):
        address, problem = next(iter(silent.items()))
        fix = "start the server first, or leave the address out and this command starts one"
        raise Eagle3Error("no-server", f"does not answer: {problem}", where=address, fix=fix)


def _ask(address: str) -> tuple[int, bytes]:
    """Status and body of ``/v1/models``; raises OSError or HTTPException."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.netloc, timeout=SECONDS)
    key = os.environ.get(KEY)
    try:
        connection.request(
            "GET", f"{url.path.rstrip('/')}/v1/models", headers={"authorization": f"Bearer {key}"} if key else {}
        )
        response = connection.getresponse()
        return response.status, response.read(LARGEST_LIST)
    finally:
        connection.close()


def check_bench(settings: Settings, engine: str) -> bool:
    """Raise UsageError for configurations and tasks that cannot be; returns whether a draft is read."""
    from eagle3cli.models.folders import gguf_draft
    from eagle3cli.runtime.llama_server import llama_server
    from eagle3cli.serving.bench.configs import parse_config, require_chains
    from eagle3cli.serving.bench.tasks import check_task

    configs = [parse_config(text) for text in settings.bench.config_list]
    if not settings.bench.temperature or min(settings.bench.temperature) < 0:
        raise UsageError("invalid-value", "a temperature is at least 0", where="--temperature", fix="0 is greedy")
    if engine == "local":
        require_chains(configs, "the local engine", ", and --engine sglang with --server-python PYTHON serves trees")
    if engine == "started" and settings.bench.engine in ("vllm", "llama.cpp"):
        require_chains(configs, "vLLM" if settings.bench.engine == "vllm" else "llama.cpp")
    if engine == "started" and settings.bench.engine == "llama.cpp":
        llama_server(settings.server.llama_server, drafts=any(not config.is_baseline for config in configs))
    for task in settings.bench.benchmark_list:
        check_task(task)
    drafts = any(not config.is_baseline for config in configs) or settings.bench.search
    if engine == "running" or not drafts:
        return False
    if settings.draft.path is None and not settings.bench.search:
        fix = "run eagle3 export first, give a draft folder, or only baselines (--config-list 1,0,0,0)"
        raise UsageError("missing-draft", "no draft", where="--speculative-draft-model-path", fix=fix)
    if settings.draft.path is None or settings.bench.engine != "llama.cpp":
        return settings.draft.path is not None
    return gguf_draft(Path(settings.draft.path).expanduser()) is None
