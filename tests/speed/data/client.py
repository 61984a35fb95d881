"""CPU time and memory of `eagle3 regenerate` as a client, with 512 requests under way.

    python tests/speed/data/client.py [--rows 20000] [--concurrency 512] [--seconds 1.0] [--words 300] [--servers 2]

A fake server (tests/serving/client/fake_server.py) answers each request after so many seconds with a reply of so many
words. Prints one JSON line and exits 1 where the whole command, its start and its writing included, used 15% of a
core or more per 100 requests/s, where its memory still grew in the second half of the time, or where a row is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CORE_LIMIT, GROWTH_LIMIT_MB = 0.15, 15


@contextmanager
def servers(count: int, faults: dict[str, Any]) -> Iterator[list[str]]:
    """Fake servers in processes of their own."""
    words = [sys.executable, str(ROOT / "tests/serving/client/fake_server.py"), "0", json.dumps(faults)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        ready = [json.loads(process.stdout.readline()) for process in running if process.stdout]
        yield [f"127.0.0.1:{one['port']}" for one in ready]
    finally:
        for process in running:
            process.kill()
            process.wait()


def write_rows(path: Path, count: int) -> None:
    """Prompts of some 60 words."""
    with path.open("w") as f:
        for number in range(count):
            messages = [{"role": "user", "content": f"question {number}" + " and so on" * 20}]
            f.write(json.dumps({"id": f"r{number}", "conversations": messages}) + "\n")


def resident_mb(pid: int) -> float:
    """Memory of a process now."""
    try:
        text = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        return 0.0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if text else 0.0


def measure(rows: int, concurrency: int, seconds: float, words: int, count: int) -> dict[str, Any]:
    """Run the command once and look at it."""
    with tempfile.TemporaryDirectory() as name, servers(count, {"seconds": seconds, "words": words}) as addresses:
        folder = Path(name)
        write_rows(folder / "in.jsonl", rows)
        command = [sys.executable, "-m", "eagle3cli", "regenerate", "--input-path", str(folder / "in.jsonl")]
        command += ["--output-dir", str(folder / "out"), "--max-concurrency", str(concurrency)]
        command += ["--num-per-shard", "5000", "--json", "--server-address-port", *addresses]
        start = time.monotonic()
        client = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        memory = []
        while os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            memory.append(resident_mb(client.pid))
            time.sleep(0.1)
        _, _, used = os.wait4(client.pid, 0)
        wall = time.monotonic() - start
        assert client.stdout is not None
        result = json.loads(client.stdout.read())
    quarter = max(1, len(memory) // 4)
    return {
        "rows": rows,
        "rows_written": result["generated"],
        "concurrency": concurrency,
        "requests_per_s": round(rows / wall, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "core_per_100_requests_per_s": round((used.ru_utime + used.ru_stime) / rows * 100, 4),
        "mb_by_quarter": [round(max(memory[i * quarter : (i + 1) * quarter], default=0.0), 1) for i in range(4)],
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--concurrency", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--servers", type=int, default=2)
    options = parser.parse_args()
    result = measure(options.rows, options.concurrency, options.seconds, options.words, options.servers)
    print(json.dumps(result))
    within = result["core_per_100_requests_per_s"] < CORE_LIMIT and result["rows_written"] == options.rows
    _, second, _, last = result["mb_by_quarter"]
    return 0 if within and last - second < GROWTH_LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
