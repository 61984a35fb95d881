"""A fake SGLang that streams `/generate` with the counters of speculation, for the benchmark's tests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from tests.serving.client.fake_server import FakeServer, Faults, _send


@dataclass
class BenchFaults(Faults):
    """``speculation`` is (steps, topk, tokens); every pass of it gives ``gives`` tokens."""

    speculation: tuple[int, int, int] | None = None
    gives: int = 3
    flips: int = 0
    """Answers to prompts of a length that this divides differ in their third token; 0: none."""
    gap: float = 0.01
    """What the server says of the two tokens' log-probabilities there."""
    lies: int = 0
    """Added to the counter of accepted drafts, for every answer."""
    on_cpu: bool = False
    """vLLM's page of numbers shows the CPU's cache."""
    tokens: tuple[int, ...] | None = None
    """Its own tokens of any text, where it has the page."""
    dies: bool = False
    """Streams break off."""


class BenchServer(FakeServer):
    """Its answers depend on the prompt alone. With the owner vllm it speaks as vLLM does, with counters on a page."""

    passes = 0

    faults: BenchFaults
    flushed = 0

    async def _respond(self, method: str, path: str, raw: bytes, writer: asyncio.StreamWriter) -> None:
        body = json.loads(raw) if raw else {}
        if method == "POST" and path == "/generate" and body.get("stream"):
            self.bodies.append(body)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                await self._stream(body, writer)
            finally:
                self.running -= 1
            return
        if path == "/metrics" and self.faults.owner == "vllm":
            _send(writer, 200, raw=self._metrics().encode())
            return
        if path == "/v1/completions" and body.get("stream"):
            await self._completion(body, writer)
            return
        if path == "/tokenize":
            _send(writer, 200, {"tokens": self.faults.tokens})
            return
        if path == "/flush_cache":
            self.flushed += 1
            _send(writer, 200)
            return
        await super()._respond(method, path, raw, writer)

    async def _stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        prompt, count = body["input_ids"], body["sampling_params"]["max_new_tokens"]
        ids = [(sum(prompt) + 7 * at) % 50 + 5 for at in range(count)]
        if self.faults.flips and len(prompt) % self.faults.flips == 0 and count > 2:
            ids[2] += 1
        each, sent, passes = self.faults.gives if self.faults.speculation else 1, 1, 0
        while True:
            await asyncio.sleep(self.faults.seconds)
            meta: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": sent, "finish_reason": None}
            if sent == count:
                meta |= {"finish_reason": {"type": "length", "length": count}, **self._counters(passes)}
            _chunk(writer, {"text": " ".join(map(str, ids[:sent])), "output_ids": ids[:sent], "meta_info": meta})
            await writer.drain()
            if self.faults.dies and passes:
                writer.transport.abort()
                return
            if sent == count:
                break
            sent, passes = min(count, sent + each), passes + 1
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async def _completion(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        prompt, count = body["prompt"], body["max_tokens"]
        ids, sent = [(sum(prompt) + 7 * at) % 50 + 5 for at in range(count)], 0
        each = self.faults.gives if self.faults.speculation else 1
        while sent < count:
            await asyncio.sleep(self.faults.seconds)
            new = ids[sent : sent + (each if sent else 1)]
            self.passes += sent > 0
            sent += len(new)
            finish = "length" if sent == count else None
            choice = {"index": 0, "text": " x" * len(new), "token_ids": new, "finish_reason": finish}
            usage = {"prompt_tokens": len(prompt), "completion_tokens": sent}
            _chunk(writer, {"choices": [choice], "usage": usage})
            await writer.drain()
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _metrics(self) -> str:
        info = 'vllm:cache_config_info{block_size="128",kv_cache_memory_bytes="1073741824"} 1.0\n'
        cache = info if self.faults.on_cpu else ""
        if not self.faults.speculation:
            return cache
        steps, right = self.faults.speculation[0], self.faults.gives - 1
        names = {"drafts": self.passes, "draft_tokens": steps * self.passes, "accepted_tokens": right * self.passes}
        lines = [f'vllm:spec_decode_num_{name}_total{{engine="0"}} {value}.0' for name, value in names.items()]
        for at in range(steps):
            value = self.passes if at < right else 0
            lines.append(f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{at}"}} {value}.0')
        return "\n".join(lines) + "\n" + cache

    def _counters(self, passes: int) -> dict[str, Any]:
        if not self.faults.speculation:
            return {}
        steps, right = self.faults.speculation[0], self.faults.gives - 1
        histogram = [0] * right + [passes] + [0] * (steps - right)
        correct = passes * right + self.faults.lies
        return {
            "spec_verify_ct": passes,
            "spec_num_correct_drafts": correct,
            "spec_num_proposed_drafts": passes * steps,
            "spec_correct_drafts_histogram": histogram,
        }

    def chat(self, body: dict[str, Any], fate: str = "") -> dict[str, Any]:
        """With the counters that a whole answer has."""
        answer = super().chat(body, fate)
        passes = -(-answer["usage"]["completion_tokens"] // self.faults.gives)
        answer["choices"][0]["meta_info"] = self._counters(passes)
        return answer

    def generate(self, body: dict[str, Any], fate: str = "") -> dict[str, Any]:
        """The question for probabilities: both tokens are likely, ``gap`` apart."""
        if not body.get("return_logprob"):
            return super().generate(body, fate)
        likely = [[-1.0 - (self.faults.gap if token % 2 else 0.0), token, None] for token in range(60)]
        meta = {"prompt_tokens": 1, "completion_tokens": 1, "finish_reason": {"type": "length"}}
        return {"text": "", "output_ids": [1], "meta_info": {**meta, "output_top_logprobs": [likely]}}

    def _page(self, path: str) -> Any:
        if path == "/get_server_info":
            names = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
            speculation = dict(zip(names, self.faults.speculation or (None,) * 3, strict=True))
            algorithm = "EAGLE3" if self.faults.speculation else None
            return {"version": "0.5.23", "speculative_algorithm": algorithm, "device": "cpu", **speculation}
        if path == "/get_model_info":
            return {"model_path": self.faults.model, "architectures": ["LlamaForCausalLM"]}
        if path == "/openapi.json" and self.faults.tokens is not None:
            return {"paths": {"/v1/tokenize": {}}}
        return super()._page(path)


def _chunk(writer: asyncio.StreamWriter, frame: dict[str, Any]) -> None:
    data = b"data: " + json.dumps(frame).encode() + b"\n\n"
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
