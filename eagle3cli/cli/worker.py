"""What each process that ``--gpus`` starts runs: the same command, with the settings that the first one was given."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED, Eagle3Error
from eagle3cli.settings.tables import Settings

MODULE = "eagle3cli.cli.worker"


class WorkerOut(Out):
    """Progress and remarks as usual; the result goes to a file, for the process that started this one."""

    _following: tuple[str, Mapping[str, object]] | None = None

    def next(self, command: str, values: Mapping[str, object] | None = None) -> None:
        """Keep which command goes on: what was typed is known where it was typed."""
        self._following = (command, values or {})

    def result(self, data: dict[str, object], text: str) -> None:
        """Keep the result."""
        path = Path(os.environ["EAGLE3_LAUNCH"]) / "result.json"
        content = {"data": data, "text": text, "next": self._following}
        path.write_text(json.dumps(content, default=str), encoding="utf-8")

    def print(self, text: str) -> None:
        """Show no tables: stdout belongs to the process that started this one."""


def in_processes(command: Command, settings: Settings, out: Out) -> bool:
    """Run the command in the processes that the settings ask for and show its result; False where it is but one."""
    from eagle3cli.runtime.processes.launch import launch, processes

    count = processes(settings.launch.gpus, settings.target.device)
    if count == 1:
        return False
    payload = {"command": command.name, "settings": settings.model_dump(mode="json", exclude_unset=True)}
    targets = settings.launch.targets if command.name == "train" else 0
    result = launch(["-m", MODULE], count, payload, settings.target.threads, out, targets)
    if result["next"] is not None:
        out.next(*result["next"])
    out.result(result["data"], result["text"])
    return True


def main() -> int:
    """One rank of a command."""
    from eagle3cli.runtime.processes.launch import begin_rank, tell_error

    payload = begin_rank()
    from eagle3cli.runtime.distributed import LostRankError
    from eagle3cli.settings.tables import Settings

    module = importlib.import_module(f"eagle3cli.commands.{payload['command'].replace('-', '_')}")
    rank = int(os.environ["RANK"])
    try:
        module.COMMAND.run(Settings.model_validate(payload["settings"]), WorkerOut())
    except Eagle3Error as error:
        tell_error(rank, error, lost=isinstance(error, LostRankError))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        tell_error(
            rank, Eagle3Error("unexpected", f"{type(error).__name__}: {error}", fix="its traceback stands above")
        )
        return FAILED
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not waiting for the threads of a process group that has lost a member
