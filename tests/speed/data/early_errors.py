"""Ten wrong inputs: what each command line costs in CPU time until it is refused, and what is said.

    python tests/speed/data/early_errors.py [--limit 0.5] [--all]

Each runs in a process of its own, as typed. Prints every one with its seconds and its text, and exits 1 where one took
more than the limit, ended with another exit code or did not say what it should (``tests/cli/wrong_inputs.py``).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.cli.wrong_inputs import MORE, TEN, make_inputs, web_server  # noqa: E402


def cpu_seconds() -> float:
    """CPU time of all processes that have ended here."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Run them all; 1 where one is late or says too little."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=float, default=0.5, help="CPU seconds that a refusal may take")
    parser.add_argument("--all", action="store_true", help="also those beside the ten")
    options = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    wrong = 0
    with tempfile.TemporaryDirectory() as name, web_server() as served:
        make_inputs(Path(name))
        for case in (*TEN, *(MORE if options.all else ())):
            words = [word.format(**served) for word in case.words]
            before = cpu_seconds()
            start = time.monotonic()
            command = [sys.executable, "-m", "eagle3cli", *words]
            done = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, check=False)
            cpu = cpu_seconds() - before
            fine = done.returncode == case.code and all(said.format(**served) in done.stderr for said in case.said)
            fine = fine and cpu <= options.limit
            wrong += not fine
            print(f"{'ok ' if fine else 'BAD'} {cpu:.2f} s CPU, {time.monotonic() - start:.2f} s; {case.name}")
            print(f"    $ eagle3 {' '.join(words)}")
            print("".join(f"    {line}\n" for line in done.stderr.strip().splitlines()))
    print(f"{wrong} wrong" if wrong else "all in time")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
