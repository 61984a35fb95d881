"""Nobody but this machine can talk to the processes that a command starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tiny import SETTINGS, conversations

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc, which Linux has")
LISTENS = "0A"


def family(process: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def listening() -> dict[str, str]:
    """The address of every listening socket by its inode."""
    found = {}
    for name in ("tcp", "tcp6"):
        path = Path("/proc/net", name)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == LISTENS:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found[fields[9]] = socket.inet_ntop(socket.AF_INET if name == "tcp" else socket.AF_INET6, words)
    return found


def addresses_of(processes: list[int]) -> set[str]:
    sockets, found = listening(), set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in sockets:
                found.add(sockets[target[8:-1]])
    return found


@pytest.mark.slow
def test_ranks_of_one_machine_meet_on_its_loopback_device(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "train.jsonl").write_text(conversations(14, 0))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny).replace('eval_path = "eval.jsonl"', ""))
    words = [sys.executable, "-m", "eagle3cli", "train", "--gpus", "2", "--total-steps", "4", "--output-dir", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen: set[str] = set()
    while process.poll() is None:
        seen |= addresses_of(family(process.pid))
        time.sleep(0.05)
    assert process.stdout is not None
    assert process.returncode == 0, process.stdout.read()
    assert seen, "the ranks have met somewhere"
    assert all(ip_address(address).is_loopback for address in seen), seen
