"""Servers that are started: with the right words, until they answer, and never longer than they are wanted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eagle3cli.runtime.report import Silent
from eagle3cli.serving.launch import guard, server
from eagle3cli.serving.launch.commands import Launch, Speculation, launches, replicas_of
from eagle3cli.serving.launch.server import ServerProcess, free_ports, started
from eagle3cli.serving.regenerate.regenerate import regenerate
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT
from tests.failing import fails
from tests.serving.regenerate.remote_run import QUICK, check, write_rows

STUB = """#!{python}
# Stands in for the Python that has SGLang: serves the fake at the port that it is given, with a process beside it.
import os, subprocess, sys
sys.path.insert(0, {root!r})
words = sys.argv[1:]
assert words[:2] == ["-m", "sglang.launch_server"], words
mode = os.environ.get("STUB", "")
print("starting with", len(words), "words", flush=True)
child = subprocess.Popen(["sleep", "600"])
with open({pids!r}, "a") as f:
    f.write(f"{{os.getpid()}} {{child.pid}}\\n")
if mode == "dies":
    sys.exit("ModuleNotFoundError: No module named 'sglang'")
if mode == "slow":
    child.wait()
import asyncio
from tests.serving.client.fake_server import Faults, FakeServer
async def serve():
    fake = FakeServer(Faults(seconds=0.02), int(words[words.index("--port") + 1]))
    await fake.start()
    if mode != "crashes" or os.path.exists({pids!r} + ".once"):
        await asyncio.sleep(600)
    while fake.served.total() < 40:
        await asyncio.sleep(0.01)
    open({pids!r} + ".once", "w").close()
asyncio.run(serve())
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A program that can be named as --server-python; ``pids`` beside it lists the processes that it was."""
    path = tmp_path / "stub"
    path.write_text(STUB.format(python=sys.executable, root=str(ROOT), pids=str(tmp_path / "pids")))
    path.chmod(0o755)
    return path


def processes(stub: Path) -> list[int]:
    path = stub.parent / "pids"
    return [int(pid) for line in path.read_text().splitlines() for pid in line.split()] if path.exists() else []


def all_gone(stub: Path, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if processes(stub) and not any(lives(pid) for pid in processes(stub)):
            return True
        time.sleep(0.05)
    return False


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


CPU = TargetSettings(model_path="m", device="cpu")


def test_it_serves_and_leaves_nothing_behind(stub: Path, tmp_path: Path) -> None:
    with started(ServerSettings(python=str(stub), replicas=2), CPU, Silent(), logs=tmp_path / "logs") as servers:
        assert len(set(servers.addresses)) == 2
        assert all(process.exit_code is None for process in servers.processes)
        assert len(processes(stub)) == 4
        assert all(lives(pid) for pid in processes(stub))
    assert all_gone(stub)
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_an_error_inside_the_block_stops_it_too(stub: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        started(ServerSettings(python=str(stub)), CPU, Silent(), logs=tmp_path / "logs"),
    ):
        raise RuntimeError
    assert all_gone(stub)


WANTS_IT = """
import sys, time
from pathlib import Path
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.launch.server import started
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings
server = ServerSettings(python=sys.argv[1])
target = TargetSettings(model_path="m", device="cpu")
with started(server, target, Silent(), logs=Path(sys.argv[2])):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_with_the_program_that_wants_it(stub: Path, tmp_path: Path, number: int) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", WANTS_IT, str(stub), str(tmp_path / "logs")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # Whoever runs the tests may ignore it (nohup does), and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    program.send_signal(number)
    program.wait()
    assert all_gone(stub)


def test_one_that_ends_while_it_starts_shows_its_log(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB", "dies")
    with (
        fails("server-error") as failed,
        started(ServerSettings(python=str(stub)), CPU, Silent(), logs=tmp_path / "logs"),
    ):
        pass
    assert "--server-python" in str(failed.value.fix)
    assert "exit code 1" in failed.value.message
    assert str(tmp_path / "logs") in str(failed.value.where)
    assert all_gone(stub)


def test_one_that_never_answers_is_given_up(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB", "slow")
    with (
        fails("server-error", "1"),
        started(ServerSettings(python=str(stub), dist_timeout=1), CPU, Silent(), logs=tmp_path / "logs"),
    ):
        pass
    assert not processes(stub) or all_gone(stub)  # on a busy machine it has not even begun


@pytest.mark.slow
def test_regenerate_starts_its_servers_and_restarts_one_that_crashes(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB", "crashes")
    rows = write_rows(tmp_path / "in.jsonl", 400)
    report = Silent()
    tables = {
        "target": {"model_path": "org/m", "device": "cpu"},
        "server": {"python": str(stub), "max_concurrency": 4},
        "regenerate": {"input_path": rows, "output_dir": tmp_path / "out"},
    }
    regenerate(Settings.model_validate(tables), report, QUICK)
    check(tmp_path / "out", 400)
    assert any("started again" in text for text in report.warnings)
    assert len(processes(stub)) == 4
    assert all_gone(stub)


def test_nothing_is_started_where_nothing_is_left_to_do(stub: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "conversations": []}\n')
    tables = {
        "target": {"model_path": "org/m", "device": "cpu"},
        "server": {"python": str(stub)},
        "regenerate": {"input_path": tmp_path / "in.jsonl", "output_dir": tmp_path / "out"},
    }
    assert regenerate(Settings.model_validate(tables), Silent()).errors == 1
    assert not processes(stub)


def test_a_server_that_refuses_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "TERMINATE_SECONDS", 0.3)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    guard.stop_group(process)
    assert process.returncode == -signal.SIGKILL


def test_free_ports() -> None:
    import socket

    ports = free_ports(3)
    assert len(set(ports)) == 3
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < lowest, "a connection of somebody else might be given it before the server has it"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        with fails("port-taken", ports[0]):
            free_ports(1, ports[0])


def test_the_port_of_a_server_that_has_just_ended_is_free() -> None:
    """A benchmark with --port starts one server after the other on it."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        port = server.getsockname()[1]
        client.connect(("127.0.0.1", port))
        with fails("port-taken"):
            free_ports(1, port)
        connection, _ = server.accept()
        connection.close()  # the side that closes first waits a minute with its port
    assert free_ports(1, port) == [port]


def test_replicas_share_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    target = TargetSettings(model_path="m")
    server = ServerSettings(tp_size=2)
    assert replicas_of(server, target) == 2
    planned = launches("sglang", server, target, [1, 2])
    assert [launch.environment["CUDA_VISIBLE_DEVICES"] for launch in planned] == ["2,3", "5,7"]
    assert all("--device" not in launch.argv for launch in planned)
    with fails("process-count", "4"):
        launches("sglang", ServerSettings(tp_size=4), target, [1, 2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert replicas_of(server, target) == 1
    assert "--device" in launches("sglang", ServerSettings(), target, [1])[0].argv


def test_arguments_stay_apart() -> None:
    target = TargetSettings(model_path="a b; rm -rf c", device="cpu", revision="r", trust_remote_code=True)
    server = ServerSettings(args="--quantization fp8 --served-model-name 'two words'", mem_fraction_static=0.7)
    words = launches("sglang", server, target, [5])[0].argv
    assert words[0] == sys.executable
    assert words[words.index("--model-path") + 1] == "a b; rm -rf c"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[-4:] == ("--quantization", "fp8", "--served-model-name", "two words")
    container = ServerSettings(python="env -i python3")
    assert launches("sglang", container, target, [5])[0].argv[:3] == ("env", "-i", "python3")
    with fails("no-such-path", "--server-python"):
        launches("sglang", ServerSettings(python="no-such-program python3"), target, [5])


def test_the_target_runs_in_the_type_of_its_draft(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    draft = Speculation(str(tmp_path), 3, 1, 4)

    def dtype(*words: str) -> str | None:
        return words[words.index("--dtype") + 1] if "--dtype" in words else None

    for product in ("sglang", "vllm"):
        assert dtype(*launches(product, ServerSettings(), CPU, [5], draft)[0].argv) == "bfloat16"
        assert dtype(*launches(product, ServerSettings(), CPU, [5])[0].argv) is None
        float32 = CPU.model_copy(update={"dtype": "float32"})
        assert dtype(*launches(product, ServerSettings(), float32, [5], draft)[0].argv) == "float32"


def test_speculation_in_the_words_of_both_servers() -> None:
    draft = Speculation("d", 3, 1, 4)
    words = " ".join(launches("sglang", ServerSettings(), CPU, [5], draft)[0].argv)
    assert "--speculative-algorithm EAGLE3 --speculative-draft-model-path d --speculative-num-steps 3" in words
    assert "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4" in words
    vllm = launches("vllm", ServerSettings(), CPU, [5], draft)[0].argv
    assert '{"method": "eagle3", "model": "d", "num_speculative_tokens": 3}' in vllm


def test_sglang_is_told_the_window_of_the_draft(tmp_path: Path) -> None:
    """It does not read it from the draft's config, and counts one key fewer."""
    path = tmp_path / "config.json"
    draft = Speculation(str(tmp_path), 3, 1, 4)
    window = {"layer_types": ["sliding_attention"], "sliding_window": 512}
    for config in (window, {"speculators_model_type": "eagle3", "transformer_layer_config": window}):
        path.write_text(json.dumps(config))
        words = " ".join(launches("sglang", ServerSettings(), CPU, [5], draft)[0].argv)
        assert "--speculative-draft-window-size 511" in words
    path.write_text(json.dumps({"sliding_window": 512}))  # of no layer: a copy of the target's
    assert "--speculative-draft-window-size" not in launches("sglang", ServerSettings(), CPU, [5], draft)[0].argv


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    process = ServerProcess(Launch(("x",), 1), tmp_path / "log")
    assert process.tail() == ""
    (tmp_path / "log").write_text("".join(f"line {i}\n" for i in range(100)) + "GET /health 200\n")
    assert process.last_line() == "line 99"
    assert len(process.tail().splitlines()) == server.TAIL_LINES
    (tmp_path / "log").write_text("torch.OutOfMemoryError: CUDA out of memory\n")
    assert "--mem-fraction-static" in str(process.error("it ended").fix)
