"""The settings of every command: one frozen table each, all in one file of the user's; a field is written once.

The tables stand in the files that are named as the folders that they serve.
"""

from __future__ import annotations

from pydantic import model_validator

from eagle3cli.settings.data import (
    CacheSettings,
    DataSettings,
    HiddenStatesSettings,
    MergeSettings,
    PrepareSettings,
    ViewSettings,
)
from eagle3cli.settings.models import DraftSettings, ExportSettings, TargetSettings
from eagle3cli.settings.refresh import RefreshSettings
from eagle3cli.settings.runs import ReportSettings, WatchSettings
from eagle3cli.settings.serving import BenchSettings, RegenerateSettings, ServerSettings
from eagle3cli.settings.table import Table
from eagle3cli.settings.training import EvalSettings, LaunchSettings, RunSettings, TrainSettings


class Settings(Table):
    """All tables; one file serves all commands."""

    target: TargetSettings = TargetSettings()
    draft: DraftSettings = DraftSettings()
    data: DataSettings = DataSettings()
    prepare: PrepareSettings = PrepareSettings()
    server: ServerSettings = ServerSettings()
    regenerate: RegenerateSettings = RegenerateSettings()
    merge: MergeSettings = MergeSettings()
    cache: CacheSettings = CacheSettings()
    view: ViewSettings = ViewSettings()
    hidden_states: HiddenStatesSettings = HiddenStatesSettings()
    train: TrainSettings = TrainSettings()
    launch: LaunchSettings = LaunchSettings()
    eval: EvalSettings = EvalSettings()
    export: ExportSettings = ExportSettings()
    bench: BenchSettings = BenchSettings()
    run: RunSettings = RunSettings()
    refresh: RefreshSettings = RefreshSettings()
    report: ReportSettings = ReportSettings()
    watch: WatchSettings = WatchSettings()

    @model_validator(mode="after")
    def _one_micro_batch_that_divides_batch(self) -> Settings:
        micro = self.train.micro_batch_size
        tokens = self.train.max_tokens_per_gpu
        batch = self.train.batch_size
        if micro is not None and tokens is not None:
            raise ValueError(
                f"train.micro_batch_size {micro} and train.max_tokens_per_gpu {tokens} both cut a batch; "
                f"leave one out, or give --set train.max_tokens_per_gpu=none"
            )
        if micro is not None and batch % micro:
            raise ValueError(
                f"train.micro_batch_size {micro} does not divide train.batch_size {batch}; "
                f"make the batch a multiple of the micro batch"
            )
        return self

    def updated(self, table: str, **values: object) -> Settings:
        """These settings with other values in one table; they are not validated again."""
        return self.model_copy(update={table: getattr(self, table).model_copy(update=values)})
