"""The commands of a refresh: what each reads and writes below its work folder. Each goes on from what a kill left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.data.sources.lines import read_raw_lines
from eagle3cli.models.config import DraftConfig
from eagle3cli.pipeline.stages import StageOut, evaluate, run_command
from eagle3cli.runtime.files import free_bytes, write_folder, writing
from eagle3cli.settings.tables import Settings

NEVER = 10**9
"""Steps between evaluations of a training that holds nothing out: the held-out rows judge the end, once."""


RATE = 0.1
"""Of the earlier run's peak learning rate: the few steps of a refresh cannot settle what a higher one stirs up."""


@dataclass(frozen=True)
class Work:
    """The folder of a refresh under way, the settings of all its stages, and the draft that it begins with."""

    folder: Path
    settings: Settings
    served: Path
    config: DraftConfig
    out: StageOut

    def path(self, *parts: str) -> Path:
        """A place in the folder."""
        return self.folder.joinpath(*parts)

    def rows_settings(self, train: Path, *, whole: bool = False) -> Settings:
        """The settings with these rows as training data; of the logs' rows the last reply alone is the server's own.

        ``whole``: as the earlier run read its rows.
        """
        values: dict[str, Any] = {
            "train_path": train,
            "eval_path": None,
            "cache_dir": self.path("cache"),
            "train_hidden_states_path": (),
            "eval_hidden_states_path": None,
        }
        if not whole:
            values["last_turn_only"] = True
        settings = self.settings.updated("data", **values)
        return settings.updated("draft", config="auto", vocab_size=None, aux_layers=self.config.aux_layers)

    def regenerate(self) -> Path:
        """The target's own replies to the prompts whose replies are not: the folder of their shards."""
        folder = self.path("regenerated")
        settings = self.settings.updated(
            "regenerate", input_path=self.path("off_policy.jsonl"), output_dir=folder, turns="last", temperature=0.0
        )
        run_command("regenerate")(settings, self.out)
        return folder

    def merge(self, eval_size: int) -> tuple[Path, Path]:
        """The rows to train on and those held out; rows with an equal first message are on one side."""
        folder = self.path("dataset")
        settings = self.settings.updated(
            "merge", input_dir=self.path("shards"), output_dir=folder, eval_size=eval_size, train_size=None
        )
        run_command("merge")(settings, self.out)
        return folder / "train.jsonl", folder / "eval.jsonl"

    def train(self, rows: Path, rehearsed: Path) -> Path:
        """Train the served draft on: the folder of what comes out.

        ``rows`` are passed ``num_epochs`` times; those of ``rehearsed`` once, or as often as the share of old data asks
        for where they are too few: the more often they are seen, the more they are learned by heart.
        """
        options = self.settings.refresh
        train = self.settings.train
        passes = {rows: options.num_epochs}
        if old := sum(1 for _ in read_raw_lines(rehearsed)):
            wanted = options.rehearsal * options.num_epochs * sum(1 for _ in read_raw_lines(rows))
            passes[rehearsed] = min(options.num_epochs, max(1, round(wanted / old)))
        if train.mode == "offline" or self.states_fit(list(passes)):
            stores = [store for part, times in passes.items() for store in [self._states(part)] * times]
            settings = self.rows_settings(rows).updated("data", train_hidden_states_path=tuple(stores))
            mode = "offline"
        else:
            mixed = self.path("mixed.jsonl")
            with writing(mixed, "wb") as file:
                for part, times in passes.items():
                    file.write(part.read_bytes() * times)
            settings = self.rows_settings(mixed)
            mode = "online"
        settings = settings.updated("draft", init="draft", path=str(self.served))
        settings = in_these_processes(
            settings.updated("train", mode=mode, echo_factor=1, keep_states=False)
        )  # the passes are counted
        settings = settings.updated(
            "train",
            output_dir=self.path("train"),
            num_epochs=1,
            total_steps=None,
            time_budget=options.time_budget,
            learning_rate=options.learning_rate or train.learning_rate * RATE,
            eval_interval=NEVER,
            early_stop=None,
            keep_checkpoints=1,
            resume=True,
        )
        run_command("train")(settings, self.out)
        return self.path("train", "best")

    def _states(self, rows: Path) -> Path:
        """The target's states of some rows, on disk."""
        stores = self.path("hidden_states", rows.stem)
        settings = self.rows_settings(rows)
        settings = settings.updated("hidden_states", output_path=stores, split="train", sample_size=None)
        run_command("hidden-states")(settings, self.out)
        return stores / "train"

    def part_of_the_way(self, trained: Path, share: float) -> Path:
        """A draft between the served one (``share`` 0) and the trained one (1), weight by weight: it forgets less."""
        if share == 1:
            return trained
        import torch

        from eagle3cli.backends.target.hf import read_target_config
        from eagle3cli.models.checkpoint import load_draft, save_draft

        config, new = load_draft(trained, aux_layers=self.config.aux_layers)
        _, old = load_draft(self.served, aux_layers=self.config.aux_layers)
        state = {
            name: torch.lerp(old[name].float(), value.float(), share) if value.is_floating_point() else value
            for name, value in new.items()
        }
        target = read_target_config(self.settings.target)
        folder = self.path("between")
        write_folder(
            folder, lambda at: save_draft(at, state, config, dtype=getattr(torch, config.dtype), target=target)
        )
        return folder

    def states_fit(self, parts: Sequence[Path]) -> bool:
        """Whether the target reads the rows once for all passes: its states wait on disk, where half of what is free
        suffices."""
        options = self.settings.refresh
        if options.num_epochs == 1 and options.time_budget is None:
            return False
        from eagle3cli.data.hidden_states.forecast import AUTO_SHARE, choose_quantization, store_bytes
        from eagle3cli.data.hidden_states.rows import count_rows
        from eagle3cli.data.tokens.cache import open_or_build

        shape = {"layers": len(self.config.aux_layers), "hidden": self.config.target_hidden_size}
        needed = 0
        for part in parts:
            settings = self.rows_settings(part)
            rows = open_or_build(settings, self.config.draft_vocab_size, self.config.vocab_size, self.out).train
            counts = count_rows(rows)
            encoding = choose_quantization(settings.hidden_states.encoding, counts, self.folder, **shape)
            needed += store_bytes(counts, encoding, **shape)
        return needed <= AUTO_SHARE * free_bytes(self.folder)

    def export(self, draft: Path) -> Path:
        """The draft as a folder for servers, in the layout and type of the one that is served."""
        from eagle3cli.models.checkpoint import read_config
        from eagle3cli.models.contract import serving_layout

        raw = read_config(self.served)
        layout = "speculators" if "speculators_model_type" in raw else serving_layout(self.config)
        if "layout" in self.settings.export.model_fields_set:
            layout = self.settings.export.layout
        dtype = raw.get("torch_dtype")
        dtype = dtype if dtype in ("float32", "float16") else "bfloat16"
        folder = self.path("draft")
        settings = self.settings.updated("draft", path=str(draft), aux_layers=None)
        settings = settings.updated(
            "export", output_path=folder, layout=layout, dtype=dtype, push=None, overwrite=folder.exists()
        )
        run_command("export")(settings, self.out)
        return folder

    def acceptance(self, draft: Path, rows: Path, *, whole: bool = False) -> float:
        """Acceptance length of a draft folder on rows, for the k of ``run.k``."""
        k = self.settings.run.k
        settings = self.rows_settings(rows, whole=whole)
        settings = settings.updated("data", train_path=None, eval_path=rows)
        settings = settings.updated("draft", path=str(draft)).updated("eval", depths=k, rows=None)
        self.out.data = {}
        evaluate(settings, self.out)
        lengths: Any = self.out.data["acceptance_length"]
        return float(lengths[k])


def in_these_processes(settings: Settings) -> Settings:
    """The settings without what an earlier run, or a settings file, says of more processes than ``launch.gpus`` starts,
    or of the other mode."""
    from eagle3cli.runtime.processes.launch import processes

    count = processes(settings.launch.gpus, settings.target.device)
    train = settings.train
    if train.mode != "offline" or count % train.context_parallel:
        settings = settings.updated("train", context_parallel=1)
    if train.mode == "offline" or count <= settings.launch.targets:
        settings = settings.updated("launch", target_gpus=None, transfer_encoding="exact")
    return settings
