"""The settings of every command: one frozen table each, all in one file of the user's; a field is written once.

The tables stand in the files that are named as the folders that they serve; others take them from here.
"""

from __future__ import annotations

from pydantic import model_validator

from eagle3cli.settings.data import CacheTable, Data, HiddenStates, Merge, Prepare, View
from eagle3cli.settings.models import Draft, Export, Target
from eagle3cli.settings.runs import Report, Watch
from eagle3cli.settings.serving import Bench, Regenerate, Server
from eagle3cli.settings.table import Table
from eagle3cli.settings.training import Eval, Launch, Run, Train

__all__ = [
    "Bench",
    "CacheTable",
    "Data",
    "Draft",
    "Eval",
    "Export",
    "HiddenStates",
    "Launch",
    "Merge",
    "Prepare",
    "Regenerate",
    "Report",
    "Run",
    "Server",
    "Settings",
    "Table",
    "Target",
    "Train",
    "View",
    "Watch",
]


class Settings(Table):
    """All tables; one file serves all commands."""

    target: Target = Target()
    draft: Draft = Draft()
    data: Data = Data()
    prepare: Prepare = Prepare()
    server: Server = Server()
    regenerate: Regenerate = Regenerate()
    merge: Merge = Merge()
    cache: CacheTable = CacheTable()
    view: View = View()
    hidden_states: HiddenStates = HiddenStates()
    train: Train = Train()
    launch: Launch = Launch()
    eval: Eval = Eval()
    export: Export = Export()
    bench: Bench = Bench()
    run: Run = Run()
    report: Report = Report()
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> Settings:
        micro, batch = self.train.micro_batch_size, self.train.batch_size
        if micro is not None and batch % micro:
            raise ValueError(
                f"train.micro_batch_size {micro} does not divide train.batch_size {batch}; "
                f"make the batch a multiple of the micro batch"
            )
        return self
