"""A stand-in for llama.cpp's ``llama-server``: its command line and pages, with replies that depend on the prompt."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HELP = "--spec-type none,draft-simple,draft-eagle3"
END = 2


def options(argv: list[str]) -> dict[str, str]:
    """The flags that have a value."""
    return {name: value for name, value in zip(argv, argv[1:], strict=False) if name.startswith("-")}


class Handler(BaseHTTPRequestHandler):
    flags: dict[str, str] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        meta = {"n_ctx": 512, "n_ctx_train": 512, "ftype": "BF16"}
        model = {"id": self.flags["--alias"], "owned_by": "llamacpp", "meta": meta}
        pages = {
            "/health": {"status": "ok"},
            "/v1/models": {"object": "list", "data": [model]},
            "/props": {"model_path": self.flags["--model"], "model_ftype": "BF16", "build_info": "b7-abc"},
        }
        self._send(pages.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/chat/completions":
            message = {"role": "assistant", "content": f"I heard {len(body['messages'])} messages."}
            usage = {"completion_tokens": 5, "prompt_tokens": 9}
            timings = {"prompt_ms": 2.0, "predicted_ms": 8.0, "predicted_n": 5}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send({"choices": [choice], "usage": usage, "timings": timings})
        elif self.path == "/completion":
            self._send(self._completion(body))
        else:
            self._send(None)

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, count = body["prompt"], body["n_predict"]
        if len(prompt) + count > 512:
            return {
                "error": {"code": 400, "message": f"request ({len(prompt)} tokens) exceeds the available context size"}
            }
        ends = not body.get("ignore_eos") and len(prompt) % 2 == 0 and count > 7
        tokens = [(sum(prompt) + 7 * at) % 50 + 5 for at in range(7 if ends else count)]
        tokens = [*tokens[:-1], END] if ends else tokens
        timings: dict[str, Any] = {"prompt_ms": 2.0, "predicted_ms": 4.0 * len(tokens), "predicted_n": len(tokens)}
        steps = int(self.flags.get("--spec-draft-n-max", 0))
        if steps:  # every pass gives one token beside the one that it accepts; behind an end it accepts all
            passes = -(-(len(tokens) - 1) // 2)
            last = steps if ends else (len(tokens) - 1) % 2 == 0
            timings |= {"draft_n": steps * passes, "draft_n_accepted": passes - 1 + last}
        return {
            "content": " ".join(map(str, tokens)),
            "tokens": tokens if body.get("return_tokens") else [],
            "tokens_evaluated": len(prompt),
            "stop_type": "eos" if ends else "limit",
            "generation_settings": {"speculative.types": "none,draft-eagle3" if steps else "none"},
            "timings": timings,
            "completion_probabilities": [{"top_logprobs": [{"id": 7, "logprob": -0.5}, {"id": 9, "logprob": -0.75}]}],
        }

    def _send(self, page: dict[str, Any] | None) -> None:
        raw = json.dumps(page or {"error": {"code": 404, "message": "File Not Found"}}).encode()
        failed = page is None or "error" in page
        self.send_response((404 if page is None else 400) if failed else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def write(folder: Path, *, help_text: str = HELP) -> Path:
    """An executable of this file, which notes its arguments in ``argv.jsonl`` beside it."""
    program = folder / "llama-server"
    source = Path(__file__).read_text(encoding="utf-8").replace(HELP, help_text)
    program.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
    program.chmod(0o755)
    return program


def main(argv: list[str]) -> None:
    if argv[:1] == ["--help"]:
        print(HELP)
        return
    if argv[:1] == ["--version"]:
        print("version: 0.5.0 (build 7, commit abc)", file=sys.stderr)
        return
    with (Path(__file__).parent / "argv.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(argv) + "\n")
    Handler.flags = options(argv)
    ThreadingHTTPServer((Handler.flags["--host"], int(Handler.flags["--port"])), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
