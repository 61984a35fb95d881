"""One request and its reply out of an object of a log, whatever program wrote the log.

Known: OpenAI's chat API, by the names that proxies give its two halves (``request`` and ``response``, ``request_body``
and ``response_body``, ``input`` and ``output``; also with a ``body`` inside, and as JSON text), both halves side by
side in one object (``messages`` and ``choices``), streams (a list of chunks, or server-sent events as text), and
``messages`` alone with the reply as the last one; the Responses API (``responses.py``); any of them as text within the
line of a collector of logs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eagle3cli.data.conversations.conversation import Conversation, to_conversation
from eagle3cli.data.conversations.images import refuse_images
from eagle3cli.data.conversations.messages import kind_of
from eagle3cli.data.traffic.responses import chat_reply, chat_request, is_input, is_output, last_event
from eagle3cli.data.traffic.stream import is_chunk, joined_chunks, read_events
from eagle3cli.errors import DataError

Raw = Mapping[str, Any]
REQUESTS = ("request", "request_body", "req", "input", "body")
RESPONSES = ("response", "response_body", "resp", "res", "output", "chunks", "chunk", "stream", "completion", "body")
IDS = ("custom_id", "request_id", "id", "call_id", "trace_id")
"""What joins two lines; of a batch each has an ``id`` of its own."""
COLLECTED = ("log", "message", "msg", "line", "textPayload", "jsonPayload")
"""Where collectors of logs keep the line that a program wrote."""
CLIENTS = (
    *("client", "client_id", "client_ip", "ip", "remote_addr", "user", "user_id", "end_user", "safety_identifier"),
    *("api_key", "user_api_key_hash"),
)
"""Who asked, by the names that logs have for it."""
FINISHED = ("stop", "length", "tool_calls", "function_call", "eos", "end_turn", "max_tokens", "stop_sequence")
NAMES_OF_FINISH = {"eos": "stop", "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
NEUTRAL: Raw = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "min_tokens": 0,
    "ignore_eos": False,
    "continue_final_message": False,
}
STEERS = (
    *("stop", "stop_token_ids", "logit_bias", "response_format", "structured_outputs", "chat_template"),
    *("chat_template_kwargs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "logits_processors"),
    *("bad_words", "regex", "ebnf", "json_schema"),
)
"""Options of a request by which a reply is not what the target says by itself, where they are set at all."""
OPTIONS = ("tools", "tool_choice", *NEUTRAL, *STEERS)
"""What a request says besides its messages, as far as it matters here."""

Origin = Literal["greedy", "sampled", "unknown", "other model", "steered", "edited"]


@dataclass(frozen=True)
class Exchange:
    """A conversation that ends with the reply, and what the log says of who wrote it."""

    conversation: Conversation
    model: str
    """The name in the log; empty where there is none."""
    temperature: float | None
    """None where the request does not say: servers then take their own, mostly above 0."""
    steered_by: tuple[str, ...] = ()
    """Options of the request by which the reply is not the target's own."""
    edited: bool = False
    """Whether somebody changed the reply after the server wrote it."""
    client: str = ""
    """Stands for who asked; it tells clients apart and names none. Empty where the log has no name."""

    def origin(self, names: frozenset[str]) -> Origin:
        """Who wrote the reply, as the log says; ``names`` are those of the target."""
        if self.edited:
            return "edited"
        if self.model and short_name(self.model) not in names:
            return "other model"
        if self.steered_by:
            return "steered"
        if self.temperature is None:
            return "unknown"
        return "sampled" if self.temperature > 0 else "greedy"


def short_name(model: str) -> str:
    """A model's name without the provider or folder before it, as ``openai/my-model`` and ``/models/my-model`` are.

    >>> short_name("hosted_vllm/Qwen/Qwen3-8B")
    'qwen3-8b'
    """
    return model.rstrip("/").rpartition("/")[2].removesuffix(".gguf").lower()


@dataclass(frozen=True)
class Halves:
    """What one object of a log holds: a request, a response, or both."""

    request: Raw | None
    response: Any
    around: Raw
    """The object itself, which may say who asked, and of which model."""

    @property
    def key(self) -> str:
        """What a request has in common with the response on another line; empty where nothing is."""
        places = (self.around, self.around.get("metadata"), self.response, self.request)
        return _first_text(places, IDS)

    def joined(self, other: Halves) -> Halves:
        """This request with the response of another line, or the other way round."""
        return Halves(self.request or other.request, self.response or other.response, {**other.around, **self.around})


def halves_of(raw: Raw) -> Halves:
    """The request and the response in an object; raises DataError where there is neither, or an error in place of a
    reply.
    """
    status = next((raw[name] for name in ("status", "status_code") if isinstance(raw.get(name), int)), 0)
    if status >= 400 or (raw.get("error") and not isinstance(raw.get("choices"), list)):
        raise DataError("server-error", "the server answered with an error")
    if is_chunk(raw):
        return Halves(None, [raw], raw)
    requests = (_request(raw, _body(raw.get(name))) for name in REQUESTS)
    request = next((body for body in (*requests, raw) if _has_messages(body) or is_input(body)), None)
    response = next((body for name in RESPONSES if _is_response(name, body := _body(raw.get(name)))), None)
    if raw.get("object") == "response" or (response is None and isinstance(raw.get("choices"), list)):
        response = raw
    if request is None and (is_chunk(response) or (isinstance(response, str) and "chunk" in raw)):
        response = [response]
    if request is None and any(_is_completion(place) for place in (raw, *(_body(raw.get(name)) for name in REQUESTS))):
        raise DataError("bad-exchange", "a text completion: its prompt is no list of messages")
    if request is None and response is None:
        inner = next((body for name in COLLECTED if isinstance(body := _body(raw.get(name)), Mapping)), None)
        if inner is not None and "role" not in inner:
            return halves_of(inner)
        named = ", ".join(str(name)[:40] for name in list(raw)[:6]) or "none"
        raise DataError("bad-exchange", f"neither a request with messages nor a response (keys: {named})")
    return Halves(request, response, raw)


def exchange_of(halves: Halves) -> Exchange:
    """The conversation of a request and its response; raises DataError with the reason where there is none."""
    request = halves.request
    if request is None:
        raise DataError("bad-exchange", "a response without its request")
    if is_input(request):
        request = chat_request(request)
    messages = list(request["messages"])
    system = request.get("system")
    if isinstance(system, str) and system:  # as Anthropic's API has it
        messages = [{"role": "system", "content": system}, *messages]
    if halves.response is None and _role(messages) != "assistant":
        raise DataError("bad-exchange", "a request without its response")
    if halves.response is not None and _role(messages) == "assistant":
        raise DataError("bad-exchange", "the request begins the reply itself")
    finish = ""
    if halves.response is not None:
        reply, finish = _reply(halves.response)
        messages.append(reply)
    if finish and finish not in FINISHED:
        raise DataError("unfinished-reply", f"the reply was not finished: {finish[:40]}")
    conversation = to_conversation({"messages": messages, "tools": request.get("tools")}, empty_replies=bool(finish))
    refuse_images(conversation.messages, "a log of traffic")
    replies = sum(message["role"] == "assistant" for message in conversation.messages)
    if finish:
        ends = (*("kept",) * (replies - 1), NAMES_OF_FINISH.get(finish, finish))
        conversation = Conversation("", conversation.messages, ends, conversation.tools, conversation.repairs)
    others = (request.get("extra_body"), halves.around.get("model_parameters"))
    places = (request, halves.around, *others)
    return Exchange(
        conversation,
        model=_first_text((request, halves.response, halves.around), ("model", "model_name")),
        temperature=_number(places, "temperature"),
        steered_by=tuple(_steered_by(request, *others)),
        edited=bool(halves.around.get("edited") or halves.around.get("corrected")),
        client=_client(halves),
    )


def _body(value: Any) -> Any:
    """A half as an object or list, where it is wrapped in ``body`` or written as JSON text; else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, Mapping) and "messages" not in value and "choices" not in value and "body" in value:
        status = value.get("status_code", value.get("status"))
        if isinstance(status, int) and status >= 400:
            return {"error": status}
        return _body(value["body"])
    return value


def _has_messages(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("messages"), list) and bool(value["messages"])


def _is_dialogue(value: Any) -> bool:
    """Whether a list is one of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def _request(raw: Raw, body: Any) -> Any:
    """What may be a request; of a list of messages alone the options stand beside it."""
    if not _is_dialogue(body):
        return body
    return raw if is_input(raw) else {"messages": body, **{name: raw[name] for name in OPTIONS if name in raw}}


def _is_response(name: str, value: Any) -> bool:
    """Whether a value may be a response: ``stream`` is an option of requests and a name of outputs, too."""
    if not isinstance(value, str | list | Mapping) or not value:
        return False
    if name == "stream":
        return not isinstance(value, str) or _holds_events(value)
    return name != "body" or is_chunk(value) or is_output(value) or (isinstance(value, Mapping) and "choices" in value)


def _holds_events(text: str) -> bool:
    return text.lstrip().startswith(("data:", "event:", ": "))


def _is_completion(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("prompt"), str | list)


def _role(messages: list[Any]) -> Any:
    return messages[-1].get("role") if isinstance(messages[-1], Mapping) else None


def _reply(response: Any) -> tuple[Any, str]:
    """The reply as a message, and its finish reason; empty where the log does not say."""
    if isinstance(response, str):
        return (
            _streamed(read_events(response))
            if _holds_events(response)
            else ({"role": "assistant", "content": response}, "")
        )
    if is_output(response):
        return chat_reply(response)
    if isinstance(response, list):
        return _streamed(
            [event for part in response for event in (read_events(part) if isinstance(part, str) else [part])]
        )
    if not isinstance(response, Mapping):
        raise DataError("bad-exchange", f"the response is {kind_of(response)}")
    choices = response.get("choices")
    if response.get("error") and not choices:
        raise DataError("server-error", "the server answered with an error")
    if is_chunk(response):
        return joined_chunks([response])
    if isinstance(choices, list):
        known = [choice for choice in choices if isinstance(choice, Mapping)]
        choice = next((choice for choice in known if choice.get("index", 0) == 0), known[0] if known else {})
        message = choice.get("message")
        if message is None and isinstance(choice.get("text"), str):
            message = {"role": "assistant", "content": choice["text"]}
        if not isinstance(message, Mapping):
            raise DataError("bad-exchange", "the response has no message")
        return {"role": "assistant", **message}, _text(choice.get("finish_reason"))
    if "content" in response:
        reply = {name: response[name] for name in ("content", "tool_calls", "reasoning_content") if name in response}
        return {"role": "assistant", **reply}, _text(response.get("stop_reason") or response.get("finish_reason"))
    raise DataError("bad-exchange", "the response has no message")


def _streamed(events: list[Any]) -> tuple[Any, str]:
    last = last_event(events)
    return joined_chunks(events) if last is None else chat_reply(last)


def _steered_by(*places: Any) -> list[str]:
    names = []
    for place in places:
        if not isinstance(place, Mapping):
            continue
        names += [name for name, usual in NEUTRAL.items() if place.get(name) not in (None, usual)]
        names += [name for name in STEERS if place.get(name) and place[name] != {"type": "text"}]
        if place.get("tool_choice") not in (None, "auto", "none"):
            names.append("tool_choice")
    return names


def _client(halves: Halves) -> str:
    places = (halves.request, halves.around, halves.around.get("metadata"), (halves.request or {}).get("metadata"))
    name = _first_text(places, CLIENTS)
    return hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).hexdigest() if name else ""


def _first_text(places: Any, names: tuple[str, ...]) -> str:
    for place in places:
        first = place[0] if isinstance(place, list) and place else place
        for name in names if isinstance(first, Mapping) else ():
            if isinstance(first.get(name), str | int) and not isinstance(first[name], bool) and first[name] != "":
                return str(first[name])
    return ""


def _number(places: Any, name: str) -> float | None:
    for place in places:
        value = place.get(name) if isinstance(place, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
