"""Whether ``/v1/models`` is the page of a server of language models; imports no HTTP library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eagle3cli.errors import Eagle3Error

KEY = "EAGLE3_API_KEY"
"""The environment variable with the servers' key, where they want one."""
PAGE = "/v1/models"
NEVER = (400, 404, 405, 410, 414, 421, 426, 501)
"""Statuses with which a server says that it has no such page."""


def why_no_model_server(status: int, body: bytes) -> str | None:
    """Why a response shows a server of another kind; None where it does not: it may be busy, or want a key."""
    if status in NEVER:
        return f"{PAGE} is answered with {status}"
    if status != 200:
        return None
    try:
        listed = json.loads(body)
    except ValueError:
        return f"{PAGE} is no JSON"
    return None if first_model(listed) is not None else f"it does not list its models at {PAGE}"


def first_model(listed: Any) -> Mapping[str, Any] | None:
    """The first model that the page lists, None where it lists none."""
    models = listed.get("data") if isinstance(listed, Mapping) else None
    if not isinstance(models, list) or not models or not isinstance(models[0], Mapping) or "id" not in models[0]:
        return None
    return models[0]


def no_model_server(address: str, why: str) -> Eagle3Error:
    """The error for a server that is there and is of another kind."""
    fix = "give the address of an SGLang, vLLM or other OpenAI-compatible server"
    return Eagle3Error("no-server", f"a server, but not one of language models: {why}", where=address, fix=fix)
