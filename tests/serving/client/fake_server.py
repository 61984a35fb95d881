"""A server with the shapes of SGLang that fails in every way servers fail, on demand: ``python -m ... PORT JSON``.

Its replies depend on the messages alone, so that a test can tell a lost, doubled or mixed-up row. Which requests fail
is drawn from the request's text and the number of its attempt: the same run fails in the same places.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

MODEL = "fake"


@dataclass
class Faults:
    """Shares of requests that fail, and how the server serves the others."""

    error_500: float = 0.0
    busy_429: float = 0.0
    retry_after: float = 0.05
    reset: float = 0.0
    """The connection is cut in the middle of the body."""
    silent: float = 0.0
    """No answer ever comes."""
    malformed: float = 0.0
    aborted: float = 0.0
    seconds: float = 0.005
    """Time for a reply."""
    places: int = 10**6
    """Requests that are served at once; more wait, and from ``most_waiting`` on are refused with 429."""
    most_waiting: int = 10**6
    tells_load: bool = True
    context: int = 4096
    owner: str = "sglang"
    model: str = MODEL
    words: int = 8
    """Words of a reply."""
    seed: int = 0


def reply_to(messages: list[dict[str, Any]], words: int = 8) -> str:
    """What the fake says: it names the question and the number of messages before it."""
    return f"reply {len(messages)} to <{messages[-1]['content']}>" + " word" * words


@dataclass
class FakeServer:
    """The server; use it in a running loop with :meth:`start` and :meth:`stop`, or in a process of its own."""

    faults: Faults = field(default_factory=Faults)
    port: int = 0
    served: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    bodies: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=1000))
    running: int = 0
    most_running: int = 0
    waiting: int = 0
    is_healthy: bool = True
    answer: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """In place of the usual body."""
    do: Callable[[Coroutine[Any, Any, None]], None] = lambda step: None
    """Runs a step of a server of :func:`running` in its loop and waits for it."""

    async def start(self) -> None:
        self._free = asyncio.Semaphore(self.faults.places)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As if killed: connections break where they are."""
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = head[0].split(" ")
                await self._respond(method, path.partition("?")[0], raw, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _respond(self, method: str, path: str, raw: bytes, writer: asyncio.StreamWriter) -> None:
        if method == "GET":
            found = self._page(path)
            ill = path == "/health" and not self.is_healthy
            status = 503 if ill else 404 if found is None else 200
            _send(writer, status, {"detail": "Not Found"} if found is None else found)
            return
        body = json.loads(raw)
        self.bodies.append(body)
        text = json.dumps(body.get("messages") or body.get("input_ids"))
        self.seen[text] += 1
        fate = self._fate(text)
        if fate == "busy_429" or self.waiting >= self.faults.most_waiting:
            wait = {"retry-after": str(self.faults.retry_after)}
            _send(writer, 429, {"object": "error", "message": "too many requests", "code": 429}, wait)
            return
        if fate == "error_500":
            _send(writer, 500, {"object": "error", "message": "internal error", "type": "InternalServerError"})
            return
        self.waiting += 1
        async with self._free:
            self.waiting -= 1
            self.running += 1
            self.most_running = max(self.running, self.most_running)
            try:
                await asyncio.sleep(10**6 if fate == "silent" else self.faults.seconds)
            finally:
                self.running -= 1
        usual = self.chat if "messages" in body else self.generate
        found = self.answer(body) if self.answer else usual(body, fate)
        status = found.pop("status", 200)
        if fate == "malformed":
            _send(writer, 200, raw=b'{"choices": [{"mess')
        elif fate == "reset":
            whole = json.dumps(found).encode()
            writer.write(_head(200, len(whole)) + whole[: len(whole) // 2])
            await writer.drain()
            writer.transport.abort()
        else:
            self.served[text] += 1
            _send(writer, status, found)

    def _fate(self, text: str) -> str:
        draw = random.Random(f"{self.faults.seed}:{text}:{self.seen[text]}").random()
        for name in ("error_500", "busy_429", "reset", "silent", "malformed", "aborted"):
            draw -= getattr(self.faults, name)
            if draw < 0:
                return name
        return ""

    def chat(self, body: dict[str, Any], fate: str = "") -> dict[str, Any]:
        text = reply_to(body["messages"], self.faults.words)
        prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
        if prompt >= self.faults.context:
            what = (
                f"The input ({prompt} tokens) is longer than the model's context length ({self.faults.context} tokens)."
            )
            return {"status": 400, "object": "error", "message": what, "type": "BadRequestError", "code": 400}
        if (total := prompt + body["max_tokens"]) > self.faults.context:
            what = (
                f"Requested token count exceeds the model's maximum context length of {self.faults.context} tokens. "
                f"You requested a total of {total} tokens: {prompt} tokens from the input messages and "
                f"{body['max_tokens']} tokens for the completion. Please reduce the number of tokens."
            )
            return {"status": 400, "object": "error", "message": what, "type": "BadRequestError", "code": 400}
        words = text.split(" ")
        finish = "length" if len(words) > body["max_tokens"] else "stop"
        words = words[: body["max_tokens"]]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": " ".join(words), "reasoning_content": None},
            "logprobs": None,
            "finish_reason": "abort" if fate == "aborted" else finish,
            "matched_stop": None,
        }
        if body.get("return_token_ids"):
            choice["response_token_ids"] = [len(word) for word in words]
        usage = {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}
        return {
            "id": "0",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def generate(self, body: dict[str, Any], fate: str = "") -> dict[str, Any]:
        """The answer to token ids, with them in the text."""
        ids = body["input_ids"]
        finish = {"type": "abort", "message": "x"} if fate == "aborted" else {"type": "stop", "matched": 2}
        meta = {"finish_reason": finish, "prompt_tokens": len(ids), "completion_tokens": 2}
        return {"text": f"reply to {ids}", "output_ids": [7, 2], "meta_info": meta}

    def _page(self, path: str) -> Any:
        faults = self.faults
        if path == "/health":
            return {}
        if path == "/v1/models":
            return {
                "object": "list",
                "data": [
                    {
                        "id": faults.model,
                        "owned_by": faults.owner,
                        "root": faults.model,
                        "max_model_len": faults.context,
                    }
                ],
            }
        if path == "/counts":
            return {"served": dict(self.served), "most_running": self.most_running, "time": time.monotonic()}
        if faults.owner != "sglang":
            return None
        if path == "/get_server_info":
            return {"version": "0.5.23", "speculative_algorithm": None, "internal_states": [{}]}
        if path == "/get_model_info":
            return {"model_path": MODEL, "architectures": ["LlamaForCausalLM"]}
        if path == "/v1/loads" and faults.tells_load:
            return {"loads": [{"dp_rank": 0, "num_running_reqs": self.running, "num_waiting_reqs": self.waiting}]}
        return None


def _head(status: int, length: int, more: dict[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {length}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in (more or {}).items()), "", ""]).encode()


def _send(
    writer: asyncio.StreamWriter,
    status: int,
    value: Any = None,
    more: dict[str, str] | None = None,
    *,
    raw: bytes | None = None,
) -> None:
    body = json.dumps(value).encode() if raw is None else raw
    writer.write(_head(status, len(body), more) + body)


@contextmanager
def running(*faults: Faults, make: Callable[[Any], FakeServer] = FakeServer) -> Iterator[list[FakeServer]]:
    """Servers in a thread, one for each of ``faults``, for code that runs an event loop of its own."""
    servers = [make(fault) for fault in faults]
    loop = asyncio.new_event_loop()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def do(step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, loop).result(10)

    for server in servers:
        do(server.start())
        server.do = do
    try:
        yield servers
    finally:
        for server in servers:
            do(server.stop())
        do(_end_other_tasks())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _end_other_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _serve(port: int, faults: Faults) -> None:
    server = FakeServer(faults, port)
    await server.start()
    print(json.dumps({"port": server.port, **asdict(faults)}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Faults(**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))))
