"""Acceptance and speed with and without the draft, on the same prompts in the same batches, by the local engine.

A configuration is in the result file whole or not at all, so a second run of the same command does what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eagle3cli.backends.hf import HfTarget, load_target, read_target_config
from eagle3cli.data.manifest import digest_file
from eagle3cli.data.messages import Message
from eagle3cli.data.system_prompt import system_prompt_text, with_system
from eagle3cli.data.tokenizer import eos_ids, load_tokenizer, render_prompt
from eagle3cli.errors import UsageError
from eagle3cli.models.draft import Draft
from eagle3cli.models.export import find_draft
from eagle3cli.models.opened import open_draft
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.serving.decode import Decoded, Speed, decode
from eagle3cli.serving.results import Config, Results, Row, compared, parse_config, with_baselines
from eagle3cli.serving.tasks import Question, Task, load_task
from eagle3cli.settings.tables import Settings

TIE = 1e-4
"""Logits closer than this may change places between two exact ways of computing them."""


@dataclass
class Bench:
    """What a run of the benchmark gave; ``table`` holds the wanted configurations, ``measured`` how many are new."""

    output: Path
    table: list[Row]
    measured: int


@dataclass
class Engine:
    """The target, the draft, and what turns messages into prompts and tokens into text."""

    target: HfTarget
    draft: Draft | None
    tokenizer: Any
    ends: frozenset[int]
    chat_template: str
    context: int

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids before the reply."""
        return render_prompt(self.tokenizer, messages, chat_template=self.chat_template)

    def text(self, token_ids: Sequence[int]) -> str:
        """A reply as text."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


def bench(settings: Settings, report: Reporter) -> Bench:
    """Measure every wanted configuration on every task; those in the output file are not measured again."""
    wanted = settings.bench
    configs = with_baselines([parse_config(text) for text in wanted.config_list])
    tasks = [load_task(text, report) for text in wanted.benchmark_list]
    draft_folder = _draft_folder(settings, configs)
    set_threads(settings.target.threads)
    results = Results.open(wanted.output, _made_with(settings, draft_folder), overwrite=wanted.overwrite)
    missing = [(task, config) for task in tasks for config in configs if not results.configuration(task.name, config)]
    engine = load_engine(settings, draft_folder, report) if missing else None
    with catch_stop(report) as stop:
        fitting: dict[str, Task] = {}
        for task, config in missing:
            assert engine is not None
            if task.name not in fitting:
                fitting[task.name] = _fitting(task, engine, settings, report)
            check = partial(stop.check, f"finished configurations are in {wanted.output}")
            run = _Run(engine, fitting[task.name], config, settings, report, check)
            results.add(run.rows(results.requests(task.name, Config(config.batch, 0))))
    table = [compared(results, task.name, config) for task in tasks for config in configs]
    return Bench(wanted.output, table, len(missing))


def _draft_folder(settings: Settings, configs: Sequence[Config]) -> Path | None:
    if all(config.k == 0 for config in configs):
        return None
    if settings.draft.path is None:
        fix = "give a draft folder, or only baselines (--config-list 1,0,0,0)"
        raise UsageError("no draft", where="--speculative-draft-model-path", fix=fix)
    return find_draft(Path(settings.draft.path))


def _made_with(settings: Settings, draft_folder: Path | None) -> Row:
    weights = sorted(draft_folder.glob("*.safetensors")) if draft_folder else []
    target, wanted = settings.target, settings.bench
    return {
        "target": target.model_path,
        "draft": [digest_file(path) for path in weights],
        "dtype": target.dtype,
        "device": target.device,
        "threads": torch.get_num_threads(),
        "chat_template": settings.data.chat_template,
        "max_tokens": wanted.max_tokens,
        "multi_turn": wanted.multi_turn,
        "system_prompt": system_prompt_text(wanted.system_prompt),
    }


def load_engine(settings: Settings, draft_folder: Path | None, report: Reporter) -> Engine:
    """Load the target and, where a folder is given, the draft, in the target's type and on its device."""
    path = settings.target.model_path
    tokenizer = load_tokenizer(
        path, revision=settings.target.revision, trust_remote_code=settings.target.trust_remote_code
    )
    draft = None
    if draft_folder is not None:
        draft = open_draft(draft_folder, read_target_config(settings.target), settings.draft.aux_layers)
    target = load_target(settings.target, report, draft.config.aux_layers if draft else None)
    if draft is not None:
        draft = draft.to(target.device).cast(target.dtype)
    context = int(getattr(target.model.config, "max_position_embeddings", 0) or 1 << 30)
    return Engine(target, draft, tokenizer, eos_ids(tokenizer, path), settings.data.chat_template, context)


def _fitting(task: Task, engine: Engine, settings: Settings, report: Reporter) -> Task:
    """The task without the questions that leave no room for an answer; raises UsageError where none is left."""
    limit, system = settings.bench.max_tokens, system_prompt_text(settings.bench.system_prompt)
    asked = [[*_opening(q, system), {"role": "user", "content": q.turns[0]}] for q in task.questions]
    sizes = [len(engine.prompt(messages)) for messages in asked]
    kept = tuple(q for q, size in zip(task.questions, sizes, strict=True) if size + limit <= engine.context)
    if not kept:
        what = f"{min(sizes)} prompt tokens and {limit} new ones do not fit into {engine.context}"
        raise UsageError(what, where=f"task {task.name}", fix="lower --max-tokens, or ask shorter questions")
    if len(kept) < len(sizes):
        why = f"with {limit} new tokens they do not fit into {engine.context}"
        report.warn(f"task {task.name}: {len(sizes) - len(kept)} of {len(sizes)} questions are left out: {why}")
    return replace(task, questions=kept)


@dataclass
class _Run:
    """One configuration on one task."""

    engine: Engine
    task: Task
    config: Config
    settings: Settings
    report: Reporter
    check: Callable[[], None]
    prefill: float = 0.0
    decoding: float = 0.0

    def rows(self, baseline: Sequence[Row]) -> list[Row]:
        """The rows of all requests, then that of the configuration."""
        wanted = self.settings.bench
        turns = max(len(q.turns) for q in self.task.questions) if wanted.multi_turn else 1
        system = system_prompt_text(wanted.system_prompt)
        talks = [_opening(question, system) for question in self.task.questions]
        expected = {(row["question"], row["turn"]): row for row in baseline}
        name = {"kind": "request", "task": self.task.name, "config": str(self.config)}
        self._warm_up()
        requests: list[Row] = []
        total = sum(min(turns, len(q.turns)) for q in self.task.questions)
        with self.report.task(f"bench {self.task.name} {self.config}", total=total, unit="answers") as task:
            for turn in range(turns):
                asked = [i for i, q in enumerate(self.task.questions) if turn < len(q.turns)]
                for i in asked:
                    talks[i].append({"role": "user", "content": self.task.questions[i].turns[turn]})
                prompts = [self.engine.prompt(talks[i]) for i in asked]
                for at, found in self._answers(prompts):
                    task.advance()
                    i = asked[at]
                    text = self.engine.text(found.token_ids)
                    talks[i].append({"role": "assistant", "content": text})
                    place = {"question": i, "id": self.task.questions[i].id, "turn": turn + 1}
                    compared_with = _comparison(found, expected.get((i, turn + 1)))
                    requests.append({**name, **place, **_request(found), "answer": text, **compared_with})
        return [*requests, {**name, "kind": "configuration", **self._summary(requests)}]

    def _answers(self, prompts: Sequence[list[int]]) -> Iterator[tuple[int, Decoded]]:
        """Answers batch by batch, prompts of similar length together."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.config.batch):
            self.check()
            part = order[start : start + self.config.batch]
            found, speed = self._decode([prompts[i] for i in part], self.settings.bench.max_tokens)
            self.prefill += speed.prefill
            self.decoding += speed.decode
            yield from zip(part, found, strict=True)

    def _decode(self, prompts: list[list[int]], limit: int) -> tuple[list[Decoded], Speed]:
        longest = max(map(len, prompts))
        if longest + limit > self.engine.context:
            what = f"{longest} prompt tokens and {limit} new ones do not fit into {self.engine.context}"
            raise UsageError(
                what, where=f"task {self.task.name}", fix="lower --max-tokens, or leave long questions out"
            )
        return decode(
            self.engine.target,
            self.engine.draft if self.config.k else None,
            prompts,
            k=self.config.k,
            max_new_tokens=limit,
            eos_ids=self.engine.ends,
            batch_size=self.config.batch,
        )

    def _warm_up(self) -> None:
        """A few tokens that nobody times: first calls allocate and choose kernels."""
        question = self.task.questions[0]
        prompt = self.engine.prompt([{"role": "user", "content": question.turns[0]}])
        self._decode([prompt], min(4, self.settings.bench.max_tokens))

    def _summary(self, requests: Sequence[Row]) -> Row:
        tokens, seconds = sum(row["tokens"] for row in requests), self.prefill + self.decoding
        told: Row = {
            "batch": self.config.batch,
            "k": self.config.k,
            "requests": len(requests),
            "tokens": tokens,
            "prefill_seconds": round(self.prefill, 3),
            "decode_seconds": round(self.decoding, 3),
            "tokens_per_s": round(tokens / seconds, 2),
        }
        if not self.config.k:
            return told
        steps = sum(row["steps"] for row in requests)
        return told | {
            "steps": steps,
            "acceptance_length": round(sum(row["tokens"] - 1 for row in requests) / max(1, steps), 4),
            "accepted_per_position": [
                round(sum(row["accepted_at"][i] for row in requests) / max(1, steps), 4) for i in range(self.config.k)
            ],
            "identical": sum(row["identical"] for row in requests),
            "differences_at_ties": sum(row["tie"] for row in requests),
        }


def _opening(question: Question, system: str | None) -> list[Message]:
    own = [{"role": "system", "content": question.system}] if question.system else []
    return own if system is None else with_system(own, system)


def _request(found: Decoded) -> Row:
    return {
        "tokens": len(found.token_ids),
        "steps": found.steps,
        "accepted_at": found.accepted_at,
        "finish": found.finish,
        "token_ids": found.token_ids,
    }


def _comparison(found: Decoded, baseline: Row | None) -> Row:
    """Whether the answer equals the baseline's token by token, and if not, whether two logits nearly tied in it."""
    if baseline is None:
        return {}
    identical = found.token_ids == baseline["token_ids"]
    return {"identical": identical, "tie": not identical and found.smallest_margin < TIE}
