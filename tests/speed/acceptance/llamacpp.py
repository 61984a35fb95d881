"""A llama-server over held-out prompts, plain and with a draft: CPU seconds, acceptance, equal texts.

    python tests/speed/acceptance/llamacpp.py --target MODEL.gguf --draft runs/draft-gguf/draft-BF16.gguf \
        --tokenizer runs/quickstart/target/SmolLM2-135M-Instruct.Q4_1 --rows runs/quickstart/dataset/eval.jsonl:6

The server's own CPU time from /proc (Linux), of the answers alone: what delays them on a shared machine does not
count. With more threads than free cores it does: llama.cpp's threads wait for each other at work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.data.chat.template import Chat
from eagle3cli.data.chat.tokenizer import encode_rendered, load_tokenizer
from eagle3cli.models.serve import draft_words
from eagle3cli.runtime.llama_server import llama_server
from eagle3cli.serving.launch.server import free_ports


def arguments() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="the target's .gguf file")
    parser.add_argument("--draft", required=True, help="the draft's .gguf file")
    parser.add_argument("--tokenizer", required=True, help="the target's folder")
    parser.add_argument("--rows", required=True, help="FILE.jsonl:ROWS, as merge writes them")
    parser.add_argument("--llama-server", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="*", default=[1, 2, 3, 5])
    return parser.parse_args()


def prompts_of(rows: str, folder: str) -> list[list[int]]:
    """The first question of each row, as token ids."""
    path, _, count = rows.rpartition(":")
    tokenizer = load_tokenizer(folder)
    chat = Chat(tokenizer)
    lines = Path(path).read_text(encoding="utf-8").splitlines()[: int(count)]
    talks = [json.loads(line)["conversations"][:1] for line in lines]
    return [encode_rendered(tokenizer, chat.render(talk, add_generation_prompt=True)) for talk in talks]


def ask(port: int, prompt: list[int], tokens: int) -> dict[str, Any]:
    """One greedy answer."""
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False, "return_tokens": True}
    url = f"http://127.0.0.1:{port}/completion"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=600))
    return answer


def cpu_seconds(pid: int) -> float:
    """That a process has used, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(options: argparse.Namespace, prompts: list[list[int]], k: int) -> tuple[float, list[dict[str, Any]]]:
    """CPU seconds for all answers, and the answers; ``k`` of 0 is without the draft."""
    port = free_ports(1)[0]
    flags = ["--host", "127.0.0.1", "--port", str(port), "--parallel", "1", "--ctx-size", "4096", "--device", "none"]
    argv = [llama_server(options.llama_server), "--model", options.target, *flags, "--threads", str(options.threads)]
    argv += draft_words(options.draft, k) if k else []
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            time.sleep(0.2)
        ask(port, prompts[0], 8)  # warms up
        before = cpu_seconds(process.pid)
        answers = [ask(port, prompt, options.tokens) for prompt in prompts]
        return cpu_seconds(process.pid) - before, answers
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """One line a k."""
    options = arguments()
    prompts = prompts_of(options.rows, options.tokenizer)
    plain: tuple[float, list[dict[str, Any]]] | None = None
    for k in (0, *options.k):
        seconds, answers = measure(options, prompts, k)
        plain = plain or (seconds, answers)
        tokens = sum(answer["timings"]["predicted_n"] for answer in answers)
        accepted = sum(answer["timings"].get("draft_n_accepted") or 0 for answer in answers)
        behind_first = tokens - len(answers)
        result = {
            "k": k,
            "cpu_seconds": round(seconds, 2),
            "speedup_cpu": round(plain[0] / sum(a["timings"]["predicted_n"] for a in plain[1]) * tokens / seconds, 3),
            "acceptance_length": round(behind_first / max(1, behind_first - accepted), 3),
            "identical": sum(a["tokens"] == b["tokens"] for a, b in zip(answers, plain[1], strict=True)),
            "answers": len(answers),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
