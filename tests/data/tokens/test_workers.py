"""Several processes: errors arrive as they are, nothing is left behind, torch stays out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagle3cli.data.tokens.blocks import EncoderConfig
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.data.tokens.workers import block_tokenizer, processes_for
from tests.conftest import ROOT
from tests.failing import fails
from tests.tiny import tiny_config, tiny_tokenizer


def encoder_config(folder: Path) -> EncoderConfig:
    return EncoderConfig(
        model_path=str(folder),
        revision=None,
        trust_remote_code=False,
        chat_template="auto",
        max_length=2048,
        last_turn_only=False,
        is_preformatted=False,
    )


def write(path: Path, rows: int) -> Path:
    with path.open("w") as f:
        for i in range(rows):
            said = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i} " * 20}]
            f.write(json.dumps({"id": f"row{i}", "conversations": said}) + "\n")
    return path


def test_a_small_input_gets_one_process() -> None:
    assert [processes_for(size, 4) for size in (0, 8 << 20, 17 << 20, 1 << 40)] == [1, 1, 2, 4]


@pytest.mark.slow
def test_an_error_in_a_worker_is_told_as_it_is(tmp_path: Path) -> None:
    with (
        fails("no-such-path") as caught,
        block_tokenizer(encoder_config(tmp_path / "none"), 2),
    ):
        pass
    assert caught.value.fix == "check --target-model-path"


@pytest.mark.slow
def test_workers_follow_the_folder_of_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    write(tmp_path / "rows.jsonl", 3)
    monkeypatch.chdir(tmp_path)
    with block_tokenizer(encoder_config(Path("target")), 2) as tokens:
        assert tokens.always_ids == [0, 1, 2]
        assert [block.batch.num_rows for block in tokens.blocks(Path("rows.jsonl"))] == [3]


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    rows = write(tmp_path / "rows.jsonl", 20_000)

    def kill_a_worker() -> None:
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        servers = [int(pid) for file in children for pid in file.read_text().split()]
        workers = [int(pid) for pid in servers for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        os.kill(workers[0], signal.SIGKILL)

    def go_on() -> None:
        with block_tokenizer(encoder_config(tmp_path / "target"), 2) as tokens:
            for number, _ in enumerate(tokens.blocks(rows)):
                if number == 0:
                    kill_a_worker()

    with fails("process-died"):
        go_on()


def descendants(pid: int) -> list[int]:
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/children"))
        found = [int(child) for file in files for child in file.read_text().split()]
    except OSError:  # it has ended meanwhile
        return []
    return found + [pid for child in found for pid in descendants(child)]


def wait_for_the_end(pids: list[int]) -> None:
    """Fails where a process outlives its killed parent."""
    until = time.monotonic() + 60
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.05)


PROGRAM = """
import sys
from pathlib import Path
from eagle3cli.cli.main import main
from eagle3cli.data.tokens import workers
workers.BYTES_PER_PROCESS = 1 << 19
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_is_built_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    tiny_tokenizer().save_pretrained(target)
    tiny_config("llama").save_pretrained(target)
    write(tmp_path / "rows.jsonl", 4_000)
    words = ["cache", "--target-model-path", target, "--train-data-path", "rows.jsonl", "--draft-vocab-size", 64]
    words += ["--build-dataset-num-proc", 2, "--json", "--cache-dir"]

    def start(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, *map(str, words), folder]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    expected = json.loads(start("clean").communicate()[0])
    moments, folder = random.Random(), tmp_path / "cache" / "processed_dataset"
    for longest in (0.2, 1.0):
        process = start("cache")
        while process.poll() is None and not list(folder.glob(f".*-{process.pid}")):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, longest))
        family = descendants(process.pid)
        process.kill()
        process.communicate()
        wait_for_the_end(family)
        finished = [path for path in folder.glob("*") if not path.name.startswith(".")]
        assert [len(TokenRows.open(path / "train")) for path in finished] in ([], [4_000])
    told = json.loads(start("cache").communicate()[0])
    assert {**told, "built": True}["train"] == expected["train"]
    assert (tmp_path / told["folder"] / "train" / "data-00000-of-00001.arrow").read_bytes() == (
        tmp_path / expected["folder"] / "train" / "data-00000-of-00001.arrow"
    ).read_bytes()
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_workers_have_no_torch(tmp_path: Path) -> None:
    """The module is imported where a failure would be told nobody: workers would only be slow and large."""
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    tiny_config("llama").save_pretrained(tmp_path / "target")
    script = f"""
import sys
import eagle3cli.data.tokens.preload
from tests.data.tokens.test_workers import encoder_config
encoder_config({str(tmp_path / "target")!r}).encoder()
print("transformers" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True False\n", "")
