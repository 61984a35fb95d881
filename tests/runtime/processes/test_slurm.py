"""Tasks that srun has started find each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.runtime.processes.slurm import PORTS, as_torchrun, first_host

NAME = st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z]{1,3})?", fullmatch=True)
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
}


@st.composite
def entries(draw: st.DrawFn) -> tuple[str, list[str]]:
    """An entry of a node list, and the hosts that it stands for, expanded the slow way."""
    written, hosts = draw(NAME), [""]
    hosts = [written]
    for _ in range(draw(st.integers(0, 2))):
        numbers, items = list[str](), list[str]()
        for _ in range(draw(st.integers(1, 3))):
            low, width = draw(st.integers(0, 200)), draw(st.integers(1, 4))
            high = low + draw(st.integers(0, 5))
            numbers += [str(n).zfill(width) for n in range(low, high + 1)]
            items.append(str(low).zfill(width) + (f"-{str(high).zfill(width)}" if high > low else ""))
        suffix = draw(st.sampled_from(["", "-ib", "x"]))
        written += f"[{','.join(items)}]{suffix}"
        hosts = [f"{host}{number}{suffix}" for host in hosts for number in numbers]
    return written, hosts


@given(st.lists(entries(), min_size=1, max_size=4))
def test_the_first_host_of_any_list(found: list[tuple[str, list[str]]]) -> None:
    assert first_host(",".join(written for written, _ in found)) == found[0][1][0]


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-05,9]", "gpu03"), ("localhost", "localhost"), ("a1,b[2-3]", "a1"), ("r[1,3]n[08-10]-ib", "r1n08-ib")],
)
def test_lists_by_hand(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_task_joins_the_others() -> None:
    found = as_torchrun(TASK)
    assert found | {"MASTER_PORT": ""} == {
        **{"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"},
        **{"MASTER_ADDR": "gpu03", "MASTER_PORT": ""},
    }
    assert int(found["MASTER_PORT"]) in PORTS
    assert as_torchrun({**TASK, "SLURM_PROCID": "3"})["MASTER_PORT"] == found["MASTER_PORT"]
    assert as_torchrun({**TASK, "SLURM_JOB_ID": "4712"})["MASTER_PORT"] != found["MASTER_PORT"]
    assert as_torchrun({**TASK, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != found["MASTER_PORT"]


def test_what_somebody_has_set_stays() -> None:
    assert as_torchrun({**TASK, "MASTER_PORT": "1234"})["MASTER_PORT"] == "1234"
    assert as_torchrun({**TASK, "WORLD_SIZE": "8"}) == {}  # torchrun, started by srun


@pytest.mark.parametrize(
    "alone",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the job's script
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
    ],
)
def test_one_task_is_one_process(alone: dict[str, str]) -> None:
    assert as_torchrun(alone) == {}
