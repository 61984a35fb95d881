"""Where the target runs: in this process, on servers that run already, or on servers that are started for the work."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from eagle3cli.errors import UsageError
from eagle3cli.settings.serving import ServerSettings

EngineName = Literal["local", "running", "started"]

ENGINES = {"local": "this process", "running": "the servers that are given", "started": "servers that it starts"}


def resolve_engine(requested: str, server: ServerSettings) -> EngineName:
    """The engine that the settings mean; ``auto`` takes servers that are given, else SGLang where it is installed."""
    if server.address_port:
        if requested == "local":
            fix = "leave out --engine local, or the addresses"
            raise UsageError(
                "conflicting-options", "--engine local needs no servers", where="--server-address-port", fix=fix
            )
        return "running"
    if requested == "auto":
        return "started" if server.python or importlib.util.find_spec("sglang") else "local"
    return "local" if requested == "local" else "started"


def context_length(model: Any) -> int:
    """Tokens that a transformers model reads at most, prompt and reply together; without a limit 2^30."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
