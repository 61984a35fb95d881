"""Who writes: this process, servers that run already, or servers that are started for the work."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.serving.client.client import Client, Info
from eagle3cli.serving.client.errors import RequestFailed
from eagle3cli.serving.client.pool import Rules
from eagle3cli.serving.regenerate.pending import Script
from eagle3cli.serving.regenerate.shards import Entry
from eagle3cli.settings.serving import ServerSettings
from eagle3cli.settings.tables import Settings

Engine = Literal["local", "running", "started"]

ENGINES = {"local": "this process", "running": "the servers that are given", "started": "servers that it starts"}


class Writer(Protocol):
    """What writes replies."""

    def write(
        self, scripts: Iterator[Script], add: Callable[[Entry], None], show: Callable[..., None], stop: Stop
    ) -> None:
        """Give every script's outcome to ``add``, until someone asks to stop; ``show(**notes)`` as it goes."""


def engine_of(wanted: str, server: ServerSettings) -> Engine:
    """The engine that the settings mean; ``auto`` takes servers that are given, else SGLang where it is installed."""
    if server.address_port:
        if wanted == "local":
            fix = "leave out --engine local, or the addresses"
            raise UsageError("--engine local needs no servers", where="--server-address-port", fix=fix)
        return "running"
    if wanted == "auto":
        return "started" if server.python or importlib.util.find_spec("sglang") else "local"
    return "local" if wanted == "local" else "started"


def identify_target(settings: Settings) -> dict[str, Any]:
    """The target's name, and its weights where they are here to look at; raises ModelError for a wrong folder."""
    target = settings.target
    engine = engine_of(settings.regenerate.engine, settings.server)
    if engine == "running":
        name = target.model_path or asyncio.run(_ask_who(settings.server)).model
        return {"target": Path(name).name}
    if engine == "started" and target.model_path and not Path(target.model_path).is_dir():
        return {"target": Path(target.model_path).name}  # on the hub: only the server downloads it
    from eagle3cli.backends.target.head import fingerprint
    from eagle3cli.backends.target.hf import read_target_config

    read_target_config(target)
    weights = fingerprint(target.model_path, revision=target.revision)
    return {"target": Path(target.model_path).name, "target_weights": weights}


async def _ask_who(server: ServerSettings) -> Info:
    """What the first server that answers says of itself."""
    told = []
    for address in server.address_port:
        async with Client(address) as client:
            try:
                return await client.identify()
            except RequestFailed as failure:
                told.append(f"{address}: {failure}")
    fix = "start the servers first, or leave the flag out and this command starts SGLang itself"
    raise Eagle3Error(f"no server answers ({'; '.join(told)})", where="--server-address-port", fix=fix)


@contextmanager
def open_writer(settings: Settings, report: Reporter, rules: Rules | None) -> Iterator[Writer]:
    """The writer that the settings mean; servers that it starts are stopped at the end."""
    engine = engine_of(settings.regenerate.engine, settings.server)
    if engine == "local":
        from eagle3cli.serving.regenerate.local import LocalWriter, load_tools

        yield LocalWriter(settings, load_tools(settings, report))
        return
    from eagle3cli.serving.regenerate.prompts import load_prompts
    from eagle3cli.serving.regenerate.remote import RemoteWriter

    prompts = None if settings.data.chat_template == "auto" else load_prompts(settings)
    if engine == "running":
        yield RemoteWriter(settings, settings.server.address_port, report, prompts=prompts, rules=rules)
        return
    from eagle3cli.serving.launch.commands import Product
    from eagle3cli.serving.launch.server import started

    logs = settings.regenerate.output_dir / "logs"
    product: Product = "vllm" if settings.regenerate.engine == "vllm" else "sglang"
    with started(settings.server, settings.target, report, logs=logs, product=product) as servers:
        yield RemoteWriter(settings, servers.addresses, report, prompts=prompts, rules=rules, tend=servers.tend)
