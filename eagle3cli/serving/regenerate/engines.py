"""What generates the replies: this process, servers that run already, or servers that are started for the work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from eagle3cli.backends.target.gguf.folder import source_of
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.serving.client.client import Client, Info
from eagle3cli.serving.client.errors import RequestFailed, no_server_answers
from eagle3cli.serving.client.pool import Rules
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.serving.engine import resolve_engine
from eagle3cli.serving.regenerate.shards import AddOutcome, ShowNotes
from eagle3cli.settings.serving import ServerSettings
from eagle3cli.settings.tables import Settings


class Generator(Protocol):
    """What generates replies."""

    def generate(self, conversations: Iterator[OpenConversation], add: AddOutcome, show: ShowNotes, stop: Stop) -> None:
        """Give every conversation's outcome to ``add``, until someone asks to stop; ``show(**notes)`` as it goes."""


def identify_target(settings: Settings) -> dict[str, Any]:
    """The target's name, and its weights where they are here to look at; raises ModelError for a wrong folder."""
    path = settings.target.model_path
    source = source_of(path) if path and Path(path).is_dir() else None
    return _named(settings) | ({"target_source": source} if source else {})


def _named(settings: Settings) -> dict[str, Any]:
    target = settings.target
    engine = resolve_engine(settings.regenerate.engine, settings.server)
    if engine == "running":
        name = target.model_path or asyncio.run(_identify_server(settings.server)).model
        return {"target": Path(name).name}
    if engine == "started" and target.model_path and not Path(target.model_path).is_dir():
        return {"target": Path(target.model_path).name}  # on the hub: only the server downloads it
    from eagle3cli.backends.target.head import fingerprint
    from eagle3cli.backends.target.hf import read_target_config

    read_target_config(target)
    weights = fingerprint(target.model_path, revision=target.revision)
    return {"target": Path(target.model_path).name, "target_weights": weights}


async def _identify_server(server: ServerSettings) -> Info:
    """What the first server that answers says of itself."""
    problems = []
    for address in server.address_port:
        async with Client(address) as client:
            try:
                return await client.identify()
            except RequestFailed as error:
                problems.append(f"{address}: {error}")
    raise no_server_answers(problems)


@contextmanager
def open_generator(settings: Settings, report: Reporter, rules: Rules | None) -> Iterator[Generator]:
    """The generator that the settings mean; servers that it starts are stopped at the end."""
    engine = resolve_engine(settings.regenerate.engine, settings.server)
    if engine == "local":
        from eagle3cli.serving.regenerate.local import LocalGenerator

        yield LocalGenerator(settings, report)
        return
    from eagle3cli.serving.chat_tokenizer import load_chat_tokenizer
    from eagle3cli.serving.launch.commands import product_of
    from eagle3cli.serving.launch.gguf import target_file, target_folder
    from eagle3cli.serving.regenerate.remote import RemoteGenerator

    own_template = settings.data.chat_template != "auto"
    effort = settings.regenerate.reasoning_effort
    product = product_of(settings.regenerate.engine)
    folder = None
    if product == "llama.cpp" and settings.target.model_path and own_template:
        folder = target_folder(settings, report)
    tokenizer = load_chat_tokenizer(settings, folder, reasoning_effort=effort) if own_template else None
    if engine == "running":
        yield RemoteGenerator(settings, settings.server.address_port, report, tokenizer=tokenizer, rules=rules)
        return
    from eagle3cli.serving.launch.server import started

    logs = settings.regenerate.output_dir / "logs"
    target = settings.target
    if product == "llama.cpp":
        target = target.model_copy(update={"model_path": str(target_file(settings, report))})
    with started(settings.server, target, report, logs=logs, product=product) as servers:
        yield RemoteGenerator(
            settings, servers.addresses, report, tokenizer=tokenizer, rules=rules, restart=servers.restart_dead
        )
