"""The commands of a refresh: what each reads and writes below its work folder. Each goes on from what a kill left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle3cli.data.sources.lines import read_raw_lines
from eagle3cli.models.config import DraftConfig
from eagle3cli.pipeline.refresh.rows import split_rows
from eagle3cli.pipeline.stages import StageOut, evaluate, run_command
from eagle3cli.runtime.files import free_bytes, write_folder, writing
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.data.hidden_states.quantize import Quantization
    from eagle3cli.data.tokens.rows import TokenRows

NEVER = 10**9
"""Steps between evaluations of a training that holds nothing out: the held-out rows judge the end, once."""


RATE = 0.2
"""Of the earlier run's peak learning rate: enough for the logs in few passes. What it stirs up of the old data settles
between the served and the trained weights: see ``decision.furthest``."""
LOGS = "logs"
"""Name of the store of all rows of the logs."""
EXACT: Quantization = "bf16"
"""Encoding of held-out states: an evaluation on states that lost something would measure that loss too."""


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

    def split(self, held_out: int) -> tuple[Path, Path]:
        """The usable rows to train on, and as many as asked for to hold out."""
        train, rest = self.path("dataset", "train.jsonl"), self.path("dataset", "eval.jsonl")
        mixed = split_rows(self.path("shards", "shard_0-0.jsonl"), train, rest, held_out)
        if mixed:
            self.out.warn(f"{mixed:,} held-out rows begin with the same message as rows that are trained on")
        return train, rest

    def train(self, rows: Path, old: Path, time_left: Callable[[], float | None] = lambda: None) -> Path:
        """Train the served draft on with ``rows`` and ``old`` ones, ``num_epochs`` times: the folder of the draft.

        ``time_left``, asked once the target has read the rows, says after how many seconds training ends before that.
        """
        options = self.settings.refresh
        train = self.settings.train
        mixed = self.path("mixed.jsonl")
        with writing(mixed, "wb") as file:
            for path in (rows, old):
                file.writelines(raw.rstrip(b"\r\n") + b"\n" for _, raw in read_raw_lines(path))
        settings = self.rows_settings(mixed)
        is_begun = self._store("own") or self._store("rest")  # by a refresh that was killed
        mode = "offline" if train.mode == "offline" or is_begun or self.states_fit(mixed) else "online"
        if mode == "offline":
            settings = settings.updated("data", train_hidden_states_path=self._stores(rows, old))
        settings = settings.updated("draft", init="draft", path=str(self.served))
        settings = in_these_processes(
            settings.updated("train", mode=mode, echo_factor=1, keep_states=False)
        )  # the passes are counted
        seconds = time_left()
        steps = options.num_epochs * -(-sum(1 for _ in read_raw_lines(mixed)) // train.batch_size)
        settings = settings.updated(
            "train",
            output_dir=self.path("train"),
            num_epochs=options.num_epochs,
            total_steps=None if seconds is None else steps,
            time_budget=None if seconds is None else f"{max(1, round(seconds))}s",
            learning_rate=options.learning_rate or train.learning_rate * RATE,
            eval_interval=NEVER,
            early_stop=None,
            keep_checkpoints=1,
            resume=True,
        )
        run_command("train")(settings, self.out)
        return self.path("train", "best")

    def read_traffic(self) -> Path | None:
        """The target's states of the logs' rows, from the one pass that judges them as well; None where they find no
        room, or where none is of use: prompts that alone are too long."""
        rows = self.path("traffic.jsonl")
        if self._store(LOGS) is None and not (self._teach(rows) and self.states_fit(rows)):
            return None
        return self._states(rows, LOGS)

    def _stores(self, rows: Path, old: Path) -> tuple[Path, ...]:
        """The states of rows of the logs and of old ones: those that the target has read with the logs are copied."""
        own = self._own_rows()
        rest = self.path("rest.jsonl")
        chosen: list[int] = []
        with writing(rest, "wb") as file:
            for _, raw in read_raw_lines(rows):
                number = own.get(json.loads(raw)["id"])
                if number is None:
                    file.write(raw.rstrip(b"\r\n") + b"\n")
                else:
                    chosen.append(number)
            file.write(old.read_bytes())
        stores = [self._selected(chosen, "own")] if chosen else []
        if rest.stat().st_size and self._teach(rest):
            stores.append(self._states(rest, "rest"))
        return tuple(stores)

    def _own_rows(self) -> dict[str, int]:
        """Of the rows that are used as the logs have them: id, and number in the store of the logs."""
        if self._store(LOGS) is None:
            return {}
        own = {json.loads(raw)["id"] for _, raw in read_raw_lines(self.path("own.jsonl"))}
        tokens = self._tokens(self.rows_settings(self.path("traffic.jsonl")))
        return {row.id: number for number, row in enumerate(tokens) if row.id in own}

    def _teach(self, rows: Path) -> bool:
        """Whether some of these rows have a token that carries loss: a few old ones may all be cut before their
        replies."""
        from eagle3cli.data.hidden_states.rows import count_rows

        return bool((count_rows(self._tokens(self.rows_settings(rows))).counts_N3 > 0).all(1).any())

    def _selected(self, numbers: list[int], name: str) -> Path:
        """Rows of the store of the logs as a store of their own."""
        from eagle3cli.data.hidden_states.select import select_rows
        from eagle3cli.data.hidden_states.store import Store

        folder = self._folder(name)
        select_rows(Store(self._folder(LOGS)), numbers, folder, self.out)
        return folder

    def _held_out(self, rows: Path, name: str, *, whole: bool) -> Path | None:
        """The states of held-out rows, for all drafts that are measured on them; None where they find no room."""
        from eagle3cli.data.hidden_states.store import Store

        if self._store(name) is None and not self.states_fit(rows, whole=whole, encoding=EXACT):
            return None
        own = {} if whole else self._own_rows()
        numbers = [own.get(json.loads(raw)["id"], -1) for _, raw in read_raw_lines(rows)] if own else [-1]
        if min(numbers, default=-1) >= 0 and Store(self._folder(LOGS)).meta.encoding == EXACT:
            return self._selected(numbers, name)
        return self._states(rows, name, whole=whole, encoding=EXACT)

    def _states(self, rows: Path, name: str, *, whole: bool = False, encoding: Quantization | None = None) -> Path:
        """The target's states of some rows, on disk."""
        settings = self.rows_settings(rows, whole=whole)
        settings = settings.updated(
            "hidden_states",
            output_path=self._folder(name).parent,
            split="train",
            sample_size=None,
            encoding=encoding or settings.hidden_states.encoding,
        )
        run_command("hidden-states")(settings, self.out)
        return self._folder(name)

    def _folder(self, name: str) -> Path:
        return self.path("hidden_states", name, "train")

    def _store(self, name: str) -> Path | None:
        """A store, perhaps not finished; None where there is none."""
        return self._folder(name) if (self._folder(name) / "manifest.json").is_file() else None

    def _tokens(self, settings: Settings) -> TokenRows:
        """The rows as tokens."""
        from eagle3cli.data.tokens.cache import open_or_build

        return open_or_build(settings, self.config.draft_vocab_size, self.config.vocab_size, self.out).train

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

    def states_fit(self, rows: Path, *, whole: bool = False, encoding: Quantization | None = None) -> bool:
        """Whether the target reads the rows once for all that needs them: its states wait on disk, where half of what
        is free suffices."""
        from eagle3cli.data.hidden_states.forecast import AUTO_SHARE, SPARE_BYTES, choose_quantization, store_bytes
        from eagle3cli.data.hidden_states.rows import count_rows

        shape = {"layers": len(self.config.aux_layers), "hidden": self.config.target_hidden_size}
        counts = count_rows(self._tokens(self.rows_settings(rows, whole=whole)))
        wanted = encoding or self.settings.hidden_states.encoding
        chosen = choose_quantization(wanted, counts, self.folder, **shape)
        needed = store_bytes(counts, chosen, **shape)
        free = free_bytes(self.folder)
        return needed <= AUTO_SHARE * free and needed + SPARE_BYTES <= free

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

    def acceptance(self, draft: Path, rows: Path, name: str, *, whole: bool = False) -> float:
        """Acceptance length of a draft folder on the held-out rows of this name, for the k of ``run.k``."""
        k = self.settings.run.k
        settings = self.rows_settings(rows, whole=whole)
        settings = settings.updated("data", train_path=None, eval_path=rows)
        if store := self._held_out(rows, name, whole=whole):
            settings = settings.updated("data", eval_hidden_states_path=store).updated("target", tp_size=1)
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
