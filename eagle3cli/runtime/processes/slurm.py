"""What SLURM tells a task that ``srun`` has started, in torchrun's words."""

from __future__ import annotations

import re
from collections.abc import Mapping

PORTS = range(12_000, 32_000)
"""Below those that systems give to outgoing connections."""


def first_host(nodes: str) -> str:
    """The first host of a node list: ``gpu03`` of ``gpu[03-05,9],login``."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def as_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would set for this task; none where it is the only one, or torchrun has set them.

    Only ``srun`` says how many tasks its step has: in the script of a job, and in an interactive shell, the numbers of
    the job stand in the environment although nobody has started anything. Task 0 is on the first node of the step.
    """
    count = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1 or "WORLD_SIZE" in environment:
        return {}
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    meeting = {"MASTER_ADDR": first_host(nodes), "MASTER_PORT": str(PORTS[(31 * job + step) % len(PORTS)])}
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        **{name: environment.get(name, value) for name, value in meeting.items()},
    }
