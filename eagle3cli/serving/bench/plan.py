"""What bench would do: configurations and answers that are left, by which engine, and what is there already."""

from __future__ import annotations

from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.bench import load_tasks, made_with_of
from eagle3cli.serving.bench.configs import parse_config, with_baselines
from eagle3cli.serving.bench.engines import SERVERS, open_engine
from eagle3cli.serving.bench.results import Case, Results
from eagle3cli.serving.engine import ENGINES, resolve_engine
from eagle3cli.settings.tables import Settings


def plan_bench(settings: Settings) -> Plan:
    """The configurations that are not in the results yet, and the answers that they ask for.

    Raises as the command would for configurations, tasks and results of other settings.
    """
    wanted = settings.bench
    configs = with_baselines([parse_config(text) for text in wanted.config_list])
    engine = resolve_engine(wanted.engine, settings.server)
    quiet = Silent()
    tasks, missing = load_tasks(settings, quiet)
    name = SERVERS if engine == "running" else open_engine(settings, configs, quiet).name  # those would be asked
    results = Results.open(wanted.output, made_with_of(settings, name), overwrite=wanted.overwrite)
    temperatures = dict.fromkeys(wanted.temperature)
    cases = [Case(task, config, t) for task in tasks for t in temperatures for config in configs]
    left = [case for case in cases if results.configuration(case) is None]
    turns = {t.name: sum(len(q.turns) if wanted.multi_turn else 1 for q in t.questions) for t in tasks.values()}
    answers = wanted.repeats * sum(turns[case.task] for case in left)
    started = len({case.config.speculation for case in left}) if engine == "started" else 0
    return Plan(
        "bench",
        reads=tuple(f"{task.name}: {len(task.questions):,} questions" for task in tasks.values()),
        done=(f"{len(cases) - len(left)} configurations in {wanted.output}",) if len(left) < len(cases) else (),
        does=(
            f"{len(left)} configurations, {answers:,} answers of at most {wanted.max_tokens:,} tokens, "
            f"by {ENGINES[engine]}" + (f" ({started}, one after the other)" if started else ""),
            *(str(case) for case in left),
            *([f"a search measures at most {wanted.search_runs} for each batch size"] if wanted.search else []),
        ),
        writes=(str(wanted.output), f"{wanted.output.with_suffix('.md')}, {wanted.output.with_suffix('.html')}"),
        warnings=tuple(f"task {name} cannot be had without a network: {why}" for name, why in missing.items()),
        numbers={
            "configurations": len(cases),
            "configurations_left": len(left),
            "requests": answers,
            "servers_started": started,
            "engine": engine,
        },
    )
