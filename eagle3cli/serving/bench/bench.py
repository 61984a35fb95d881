"""Acceptance and speed with and without the draft, on the same prompts with the same number of replies under way.

A configuration is in the result file whole or not at all, so a second run of the same command does what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from eagle3cli.data.conversations.system_prompt import system_prompt_text
from eagle3cli.errors import DataError, Eagle3Error, ModelError, Stopped, UsageError
from eagle3cli.models.folders import draft_files
from eagle3cli.runtime.machine import machine
from eagle3cli.runtime.provenance import digest_file
from eagle3cli.runtime.report import ProgressBar, Reporter
from eagle3cli.runtime.stop import Stop, catch_stop
from eagle3cli.serving.bench.configs import Config, parse_config, with_baselines
from eagle3cli.serving.bench.engines import EngineProvider, StartedProvider, open_provider
from eagle3cli.serving.bench.judge import compare, identity, judge, unjudged
from eagle3cli.serving.bench.questions import Question
from eagle3cli.serving.bench.results import Case, ResultRow, Results
from eagle3cli.serving.bench.rounds import KeptRounds, Round, spread
from eagle3cli.serving.bench.session import Engine, Measurement, MeasureOptions, merged, open_conversations, prompt_size
from eagle3cli.serving.bench.summary import configuration_row, grade, request_rows
from eagle3cli.serving.bench.tasks import Task, load_task
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.settings.tables import Settings

WARM_UP_TOKENS = 16
WARM_UP_PROMPT = "Count from one to ten."


@dataclass
class BenchResult:
    """What a run of the benchmark gave; ``table`` holds the configurations asked for, ``measured`` how many are new."""

    output: Path
    engine: str
    target: str
    """The model that was measured, as the engine names it."""
    table: list[ResultRow]
    measured: int
    failed: dict[str, str] = field(default_factory=dict)
    """Tasks and configurations that could not be measured, and why."""


def bench(settings: Settings, report: Reporter) -> BenchResult:
    """Measure every configuration of the settings on every task; those in the output file are not measured again."""
    configs = with_baselines([parse_config(text) for text in settings.bench.config_list])
    with open_run(settings, configs, report) as run:
        cases = run.cases(configs)
        run.measure(cases)
        run.judge(cases)
        return run.result(cases)


@contextmanager
def open_run(settings: Settings, configs: Sequence[Config], report: Reporter) -> Iterator[BenchRun]:
    """A benchmark within whose block stop signals are heeded.

    Everything that can be wrong is told here, before anything is loaded or started.
    """
    if not settings.bench.temperature or min(settings.bench.temperature) < 0:
        raise UsageError("invalid-value", "a temperature is at least 0", where="--temperature", fix="0 is greedy")
    provider = open_provider(settings, configs, report)
    tasks, failed = load_tasks(settings, report)
    identity = result_settings(settings, provider.name, provider.target)
    results = Results.open(settings.bench.output, identity, overwrite=settings.bench.overwrite)
    kept = KeptRounds.open(settings.bench.output, identity, overwrite=settings.bench.overwrite)
    with catch_stop(report) as stop:
        yield BenchRun(settings, provider, tasks, results, kept, report, stop, failed)


@dataclass
class BenchRun:
    """A benchmark under way."""

    settings: Settings
    provider: EngineProvider
    tasks: dict[str, Task]
    results: Results
    kept: KeptRounds
    report: Reporter
    stop: Stop
    failed: dict[str, str]
    _new: set[Case] = field(default_factory=set)
    _fitting: dict[str, Task] = field(default_factory=dict)

    @cached_property
    def system(self) -> str | None:
        """The system message that takes the place of the questions' own."""
        return system_prompt_text(self.settings.bench.system_prompt)

    @cached_property
    def machine(self) -> ResultRow:
        """What this process runs on."""
        return machine()

    def cases(self, configs: Sequence[Config]) -> list[Case]:
        """Every task at every temperature with every configuration, baselines before what is compared with them."""
        configs = [config for config in configs if self.provider.has_baseline or not config.is_baseline]
        temperatures = dict.fromkeys(self.settings.bench.temperature)
        return [Case(name, config, t) for name in self.tasks for t in temperatures for config in configs]

    def result(self, cases: Sequence[Case]) -> BenchResult:
        """What is known of these cases now."""
        rows = {case: row for case in cases if (row := self.results.configuration(case)) is not None}
        new = len(self._new & rows.keys())
        return BenchResult(
            self.results.path, self.provider.name, self.provider.target, list(rows.values()), new, self.failed
        )

    def measure(self, cases: Sequence[Case]) -> None:
        """Measure what is not in the results yet; configurations that are compared take turns where all engines are
        there, else every speculation has its server once, and the baselines' comes first."""
        missing = [case for case in cases if self.results.configuration(case) is None]
        if self.provider.has_all:
            compared: dict[Case, list[Case]] = {}
            for case in missing:
                compared.setdefault(case.baseline, []).append(case)
            for group in compared.values():
                with ExitStack() as stack:
                    engines = {
                        case: stack.enter_context(self.provider.engine(case.config.shape, case.config.batch))
                        for case in group
                    }
                    self._measure_group(engines)
            return
        for shape in sorted({case.config.shape for case in missing}):
            group = [case for case in missing if case.config.shape == shape]
            try:
                with self.provider.engine(shape, max(case.config.batch for case in group)) as engine:
                    for case in group:
                        self._measure_group({case: engine})
            except (UsageError, Stopped):
                raise
            except Eagle3Error as error:
                if group[0].config.is_baseline:
                    raise  # the drafts would fail in the same way, or have nothing to be compared with
                self._fail(group, error)

    def judge(self, cases: Sequence[Case]) -> None:
        """Ask an engine without the draft how near a tie the differences were that are not judged yet."""
        left = {case: rows for case in cases if unjudged(rows := self.results.requests(case))}
        if not left:
            return
        count = sum(len(unjudged(rows)) for rows in left.values())
        self.report.info(
            f"{count} answers differ from plain decoding; the target without the draft is asked about them"
        )
        try:
            with self.provider.judge() as engine:
                for case, rows in left.items():
                    self._check()
                    task = self._fitted(case.task, engine)
                    judge(rows, self.results.requests(case.baseline), task, self.system, engine)
                    summary = self.results.configuration(case)
                    assert summary is not None, "rows are written with their configuration"
                    summary |= identity(rows, engine.tie_limit)
                    self.results.write()
        except (UsageError, Stopped):
            raise
        except Eagle3Error as error:
            self.report.warn(f"the differences could not be judged, and count as such: {error}")

    def _fitted(self, name: str, engine: Engine) -> Task:
        if name not in self._fitting:
            self._fitting[name] = self._fit(self.tasks[name], engine)
        return self._fitting[name]

    def _measure_group(self, engines: Mapping[Case, Engine]) -> None:
        """Measure configurations of one task in turns, and keep them; the baseline comes first where it is among them.

        One that fails is left out unless it is the baseline.
        """
        self._check()
        measured = self._measure_repeats(engines)
        for case, passes in measured.items():
            engine = engines[case]
            baseline = None if case.config.is_baseline else self.results.configuration(case.baseline)
            if baseline is not None:
                self._require_one_type(baseline, engine)
            notes = engine.notes if case.temperature and not case.config.is_baseline else ()
            drawn = case.temperature and not case.config.is_baseline and engine.drafting
            drafting = {"drafting": engine.drafting} if drawn else {}
            environment = {**engine.facts, **drafting, "machine": self.machine}
            repeats = [merged(parts) for parts in passes]
            rows = self._rows(case, repeats, engine)
            summary = configuration_row(case, repeats, rows, baseline, engine.tie_limit, notes, environment)
            plain = None if case.config.is_baseline else measured.get(case.baseline)
            summary |= spread(_rounds(passes), None if plain is None else _rounds(plain))
            if not summary.get("counters_fit", True):
                self.report.warn(f"{case}: the server's counters of acceptance do not fit the tokens that it gave")
            self.results.add([*rows, summary])
            self._new.add(case)
        self.kept.clear()

    def _require_one_type(self, baseline: ResultRow, engine: Engine) -> None:
        """Warn where servers that are started here ran the baseline in another type: older versions did."""
        before = (baseline.get("environment") or {}).get("dtype", "a type that is not told")
        now = engine.facts["dtype"]
        if isinstance(self.provider, StartedProvider) and before != now:
            self.report.warn(
                f"the baseline was measured earlier in {before}, this is {now}: measure anew (--overwrite)"
            )

    def _measure_repeats(self, engines: Mapping[Case, Engine]) -> dict[Case, list[list[Measurement]]]:
        """Every repeat of the configurations, in its rounds."""
        settings = self.settings.bench
        measured: dict[Case, list[list[Measurement]]] = {case: [] for case in engines}
        first = next(iter(engines))
        task = self._fitted(first.task, engines[first])
        answers = settings.repeats * sum(len(q.turns) if settings.multi_turn else 1 for q in task.questions)
        name = f"bench {', '.join([str(first), *(str(case.config) for case in engines if case != first)])}"
        with self.report.task(name, total=answers * len(engines), unit="answers") as progress:
            for repeat in range(settings.repeats):
                opened = {
                    case: open_conversations(task.questions, self.system, multi_turn=settings.multi_turn)
                    for case in engines
                }
                rounds = engines[first].rounds(opened[first], first.config.batch)
                warm: set[Case] = set()
                for case in measured:
                    measured[case].append([])
                for number, places in enumerate(rounds):
                    # To and fro: what grows within a round slows the one that comes last in it.
                    for case in [*measured] if number % 2 == 0 else reversed([*measured]):
                        conversations = [opened[case][place] for place in places]
                        one = self.kept.get(case, repeat, number)
                        if one is not None:
                            progress.advance(len(one.responses), free=True)
                            measured[case][repeat].append(one)
                            continue
                        try:
                            one = self._measure_round(
                                case, engines[case], conversations, repeat, progress, warm_up=case not in warm
                            )
                        except (UsageError, Stopped):
                            raise
                        except Eagle3Error as error:
                            if case.config.is_baseline or not self.provider.has_all:
                                raise  # the drafts would fail in the same way, or have nothing to be compared with
                            self._fail([case], error)
                            del measured[case]
                        else:
                            warm.add(case)
                            self.kept.add(case, repeat, number, one)
                            measured[case][repeat].append(one)
        return measured

    def _measure_round(
        self,
        case: Case,
        engine: Engine,
        conversations: Sequence[OpenConversation],
        repeat: int,
        progress: ProgressBar,
        *,
        warm_up: bool,
    ) -> Measurement:
        settings = self.settings.bench
        sampling = (case.temperature, settings.top_p, settings.top_k, settings.seed)
        options = MeasureOptions(case.config, settings.max_tokens, *sampling, repeat)
        if warm_up:
            short = replace(options, max_tokens=min(WARM_UP_TOKENS, settings.max_tokens), repeat=0)
            prompt = engine.tokenizer.encode(OpenConversation(0, [{"role": "user", "content": WARM_UP_PROMPT}, None]))
            engine.warm_up(prompt, short, settings.warm_up, self._check)
        return engine.measure(conversations, options, progress.advance, self._check)

    def _rows(self, case: Case, repeats: Sequence[Measurement], engine: Engine) -> list[ResultRow]:
        """The rows of the replies, compared with the baseline's where they can be."""
        task = self._fitted(case.task, engine)
        greedy_draft = not case.config.is_baseline and not case.temperature
        baseline = self.results.requests(case.baseline) if greedy_draft else []
        rows: list[ResultRow] = []
        for repeat, measurement in enumerate(repeats):
            new = request_rows(case, repeat, measurement, task.questions, engine.tokenizer.decode)
            grade(new, task.questions, run_code=self.settings.bench.run_code)
            compare(new, baseline)
            rows += new
        return rows

    def _fit(self, task: Task, engine: Engine) -> Task:
        """The task without the questions that leave no room for a reply; raises UsageError where none is left."""
        limit = self.settings.bench.max_tokens
        sized = self._sizes(task, engine)
        fitting = tuple(question for question, size in sized if size + limit <= engine.context)
        if not fitting:
            smallest = min(size for _, size in sized)
            what = f"{smallest} prompt tokens and {limit} new ones do not fit into {engine.context}"
            fix = "lower --max-tokens, or ask shorter questions"
            raise UsageError("context-too-short", what, where=f"task {task.name}", fix=fix)
        if len(fitting) < len(sized):
            why = f"with {limit} new tokens they do not fit into {engine.context}"
            left_out = len(sized) - len(fitting)
            self.report.warn(f"task {task.name}: {left_out} of {len(sized)} questions are left out: {why}")
        return replace(task, questions=fitting)

    def _sizes(self, task: Task, engine: Engine) -> list[tuple[Question, int]]:
        """The questions with their tokens, without those that the chat template refuses, as it does in rows of data.

        Raises what it says of the first where it refuses all.
        """
        sized: list[tuple[Question, int]] = []
        refused: list[DataError | ModelError] = []
        conversations = open_conversations(task.questions, self.system, multi_turn=self.settings.bench.multi_turn)
        for question, conversation in zip(task.questions, conversations, strict=True):
            try:
                sized.append((question, prompt_size(conversation, engine)))
            except (DataError, ModelError) as error:
                refused.append(error)
        if not sized:
            raise refused[0]
        if refused:
            left_out = f"{len(refused)} of {len(task.questions)} questions are left out"
            self.report.warn(f"task {task.name}: {left_out}: {refused[0].message}")
        return sized

    def _fail(self, cases: Sequence[Case], error: Eagle3Error) -> None:
        missing = [case for case in cases if self.results.configuration(case) is None]
        for case in missing:
            self.failed[str(case)] = error.message.splitlines()[0].removesuffix("; its last lines:")
        self.report.warn(f"{', '.join(map(str, missing))}: not measured: {error}")

    def _check(self) -> None:
        self.stop.check(f"finished configurations are in {self.settings.bench.output}")


def _rounds(repeats: Sequence[Sequence[Measurement]]) -> list[Round]:
    return [Round.of(part) for repeat in repeats for part in repeat]


def load_tasks(settings: Settings, report: Reporter) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks by name; one whose data cannot be had is left out and told. Raises DataError where none is left."""
    words = settings.bench.benchmark_list
    folder = settings.bench.benchmark_dir
    if folder is not None and not folder.is_dir():
        raise UsageError("no-such-path", "no such folder", where=f"--benchmark-dir {folder}", fix="check the path")
    tasks: dict[str, Task] = {}
    failed: dict[str, str] = {}
    for word in words:
        try:
            task = load_task(word, report, folder)
        except DataError as error:
            if len(words) == 1 or "@" in word or Path(word.rpartition(":")[0] or word).is_file():
                raise
            failed[word] = error.message
            report.warn(f"task {word} is left out: {error}")
            continue
        if task.name in tasks:
            raise UsageError(
                "task-name",
                f"two tasks are called {task.name}",
                where="--benchmark-list",
                fix="rename one of the files",
            )
        tasks[task.name] = task
    if not tasks:
        raise DataError("no-task", "no task can be run", where="--benchmark-list", fix="see the warnings above")
    return tasks, failed


def result_settings(settings: Settings, engine: str, model: str | None) -> ResultRow:
    """What decides the numbers: results of other settings do not go into the same file. ``model`` is the
    target as the engine names it, None where it was not asked yet."""
    target = settings.target
    config = settings.bench
    server = settings.server
    files = draft_files(Path(settings.draft.path)) if settings.draft.path else []
    if engine == "local":
        of_engine: ResultRow = {"threads": target.threads}
    else:
        of_engine = {"server_args": server.args, "tp_size": server.tp_size, "addresses": list(server.address_port)}
    return {
        **({} if model is None else {"target": model}),
        "draft": [digest_file(path) for path in files],
        "engine": engine,
        "dtype": target.dtype,
        "device": target.device,
        **of_engine,
        "chat_template": settings.data.chat_template,
        "max_tokens": config.max_tokens,
        "multi_turn": config.multi_turn,
        "system_prompt": system_prompt_text(config.system_prompt),
        "repeats": config.repeats,
        "seed": config.seed,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "run_code": config.run_code,
    }
