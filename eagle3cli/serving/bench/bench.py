"""Acceptance and speed with and without the draft, on the same prompts with the same number of answers under way.

A configuration is in the result file whole or not at all, so a second run of the same command does what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from eagle3cli.data.conversations.system_prompt import system_prompt_text
from eagle3cli.errors import DataError, Eagle3Error, Stopped, UsageError
from eagle3cli.models.export import find_draft
from eagle3cli.runtime.provenance import digest_file
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop, catch_stop
from eagle3cli.serving.bench.configs import Config, parse_config, with_baselines
from eagle3cli.serving.bench.engines import Engine, open_engine
from eagle3cli.serving.bench.results import Case, Results, Row
from eagle3cli.serving.bench.session import Measured, Speaker, Voice, Wanted, talks_of
from eagle3cli.serving.bench.summary import compare, configuration_row, judge, prompts_of, request_rows
from eagle3cli.serving.bench.tasks import Task, load_task
from eagle3cli.settings.tables import Settings

WARM_UP_TOKENS = 16
GREETING = "Count from one to ten."


@dataclass
class Bench:
    """What a run of the benchmark gave; ``table`` holds the wanted configurations, ``measured`` how many are new."""

    output: Path
    engine: str
    table: list[Row]
    measured: int
    failed: dict[str, str] = field(default_factory=dict)
    """Tasks and configurations that could not be measured, and why."""


def bench(settings: Settings, report: Reporter) -> Bench:
    """Measure every wanted configuration on every task; those in the output file are not measured again."""
    configs = with_baselines([parse_config(text) for text in settings.bench.config_list])
    with Work.open(settings, configs, report) as work:
        cases = work.cases(configs)
        before = sum(work.results.configuration(case) is not None for case in cases)
        work.measure(cases)
    table = [row for case in cases if (row := work.results.configuration(case)) is not None]
    return Bench(settings.bench.output, work.engine.name, table, len(table) - before, work.failed)


@dataclass
class Work:
    """A benchmark at work; use it as a context, within which stop signals are heeded."""

    settings: Settings
    engine: Engine
    tasks: dict[str, Task]
    results: Results
    report: Reporter
    failed: dict[str, str] = field(default_factory=dict)
    _fitting: dict[str, Task] = field(default_factory=dict)
    _stop: Stop = field(default_factory=Stop)

    @classmethod
    def open(cls, settings: Settings, configs: Sequence[Config], report: Reporter) -> Work:
        """Everything that can be wrong is told here, before anything is loaded or started."""
        if not settings.bench.temperature or min(settings.bench.temperature) < 0:
            raise UsageError("a temperature is at least 0", where="--temperature", fix="0 is greedy")
        engine = open_engine(settings, configs, report)
        tasks, failed = load_tasks(settings, report)
        made_with = made_with_of(settings, engine.name)
        results = Results.open(settings.bench.output, made_with, overwrite=settings.bench.overwrite)
        return cls(settings, engine, tasks, results, report, failed)

    def __enter__(self) -> Work:
        self._catching = catch_stop(self.report)
        self._stop = self._catching.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._catching.__exit__(None, None, None)

    def cases(self, configs: Sequence[Config]) -> list[Case]:
        """Every task at every temperature with every configuration, baselines before what is compared with them."""
        configs = [config for config in configs if self.engine.has_baseline or not config.is_baseline]
        temperatures = dict.fromkeys(self.settings.bench.temperature)
        return [Case(name, config, t) for name in self.tasks for t in temperatures for config in configs]

    def measure(self, cases: Sequence[Case]) -> None:
        """Measure what is not in the results yet; every speculation has its server once, the baselines' comes first."""
        missing = [case for case in cases if self.results.configuration(case) is None]
        for spoken in sorted({case.config.speculation for case in missing}):
            group = [case for case in missing if case.config.speculation == spoken]
            try:
                with self.engine.speaking(spoken, max(case.config.batch for case in group)) as speaker:
                    for case in group:
                        self._measure_one(case, speaker)
            except (UsageError, Stopped):
                raise
            except Eagle3Error as error:
                if group[0].config.is_baseline:
                    raise  # the drafts would fail in the same way, or have nothing to be compared with
                self._fail(group, error)

    def _measure_one(self, case: Case, speaker: Speaker) -> None:
        self._check()
        if case.task not in self._fitting:
            self._fitting[case.task] = _fitting(self.tasks[case.task], speaker, self.settings, self.report)
        task = self._fitting[case.task]
        rows, passes = _rows(case, task, speaker, self)
        baseline = None if case.config.is_baseline else self.results.configuration(case.baseline)
        summary = configuration_row(case, passes, rows, baseline, speaker.tie, _notes(case, speaker))
        if not summary.get("counters_fit", True):
            self.report.warn(f"{case}: the server's counters of acceptance do not fit the tokens that it gave")
        self.results.add([*rows, summary])

    def _fail(self, cases: Sequence[Case], error: Eagle3Error) -> None:
        left = [case for case in cases if self.results.configuration(case) is None]
        for case in left:
            self.failed[str(case)] = error.what.splitlines()[0].removesuffix("; its last lines:")
        self.report.warn(f"{', '.join(map(str, left))}: not measured: {error}")

    def _check(self) -> None:
        self._stop.check(f"finished configurations are in {self.settings.bench.output}")


def _rows(case: Case, task: Task, speaker: Speaker, work: Work) -> tuple[list[Row], list[Measured]]:
    """Every repeat of a configuration: what was measured, and the rows of its answers."""
    settings, rows, passes = work.settings.bench, [], []
    wanted = Wanted(case.config, settings.max_tokens, case.temperature, settings.seed)
    voice: Voice = speaker.voice
    greeting = voice.prompt([{"role": "user", "content": GREETING}])
    short = replace(wanted, max_tokens=min(WARM_UP_TOKENS, settings.max_tokens))
    baseline = [] if case.config.is_baseline or case.temperature else work.results.requests(case.baseline)
    system = system_prompt_text(settings.system_prompt)
    total = settings.repeats * sum(len(q.turns) if settings.multi_turn else 1 for q in task.questions)
    with work.report.task(f"bench {case}", total=total, unit="answers") as shown:
        for repeat in range(settings.repeats):
            speaker.warm_up(greeting, short, settings.warm_up)
            talks = talks_of(task.questions, system, multi_turn=settings.multi_turn)
            measured = speaker.measure(talks, replace(wanted, repeat=repeat), shown.advance, work._check)
            new = request_rows(case, repeat, measured, task.questions, partial(_text, voice))
            judge(new, task.questions, run_code=settings.run_code)
            compare(new, baseline, prompts_of(measured), speaker.margin)
            passes.append(measured)
            rows += new
    return rows, passes


def _text(voice: Voice, text: str, token_ids: Sequence[int] | None) -> str:
    return text if token_ids is None else voice.text(token_ids)


def _notes(case: Case, speaker: Speaker) -> tuple[str, ...]:
    return speaker.notes if case.temperature and not case.config.is_baseline else ()


def load_tasks(settings: Settings, report: Reporter) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks by name; one whose data cannot be had is left out and told. Raises DataError where none is left."""
    words, folder = settings.bench.benchmark_list, settings.bench.benchmark_dir
    if folder is not None and not folder.is_dir():
        raise UsageError("no such folder", where=f"--benchmark-dir {folder}", fix="check the path")
    tasks: dict[str, Task] = {}
    failed: dict[str, str] = {}
    for word in words:
        try:
            task = load_task(word, report, folder)
        except DataError as error:
            if len(words) == 1 or "@" in word or Path(word.rpartition(":")[0] or word).is_file():
                raise
            failed[word] = error.what
            report.warn(f"task {word} is left out: {error}")
            continue
        if task.name in tasks:
            raise UsageError(
                f"two tasks are called {task.name}", where="--benchmark-list", fix="rename one of the files"
            )
        tasks[task.name] = task
    if not tasks:
        raise DataError("no task can be run", where="--benchmark-list", fix="see the warnings above")
    return tasks, failed


def made_with_of(settings: Settings, engine: str) -> Row:
    """What decides the numbers: results of other settings do not go into the same file."""
    target, wanted, server = settings.target, settings.bench, settings.server
    folder = find_draft(Path(settings.draft.path)) if settings.draft.path else None
    weights = sorted(folder.glob("*.safetensors")) if folder else []
    local = {"threads": target.threads} if engine == "local" else {}
    remote = {"server_args": server.args, "tp_size": server.tp_size, "addresses": list(server.address_port)}
    return {
        "target": target.model_path,
        "draft": [digest_file(path) for path in weights],
        "engine": engine,
        "dtype": target.dtype,
        "device": target.device,
        **(local if engine == "local" else remote),
        "chat_template": settings.data.chat_template,
        "max_tokens": wanted.max_tokens,
        "multi_turn": wanted.multi_turn,
        "system_prompt": system_prompt_text(wanted.system_prompt),
        "repeats": wanted.repeats,
        "seed": wanted.seed,
        "run_code": wanted.run_code,
    }


def _fitting(task: Task, speaker: Speaker, settings: Settings, report: Reporter) -> Task:
    """The task without the questions that leave no room for an answer; raises UsageError where none is left."""
    limit, system = settings.bench.max_tokens, system_prompt_text(settings.bench.system_prompt)
    sizes = [len(talk.ask(speaker.voice)) for talk in talks_of(task.questions, system, multi_turn=False)]
    kept = tuple(q for q, size in zip(task.questions, sizes, strict=True) if size + limit <= speaker.context)
    if not kept:
        what = f"{min(sizes)} prompt tokens and {limit} new ones do not fit into {speaker.context}"
        raise UsageError(what, where=f"task {task.name}", fix="lower --max-tokens, or ask shorter questions")
    if len(kept) < len(sizes):
        why = f"with {limit} new tokens they do not fit into {speaker.context}"
        report.warn(f"task {task.name}: {len(sizes) - len(kept)} of {len(sizes)} questions are left out: {why}")
    return replace(task, questions=kept)
