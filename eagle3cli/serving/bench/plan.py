"""What bench would do: configurations and answers that are left, by which engine, and what is there already."""

from __future__ import annotations

from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench.bench import load_tasks, result_settings
from eagle3cli.serving.bench.configs import parse_config, with_baselines
from eagle3cli.serving.bench.engines import SERVERS, open_provider
from eagle3cli.serving.bench.results import Case, Results
from eagle3cli.serving.engine import ENGINES, resolve_engine
from eagle3cli.settings.tables import Settings


def plan_bench(settings: Settings) -> Plan:
    """The configurations that are not in the results yet, and the answers that they ask for.

    Raises as the command would for configurations, tasks and results of other settings.
    """
    config = settings.bench
    configs = with_baselines([parse_config(text) for text in settings.bench.config_list])
    engine = resolve_engine(config.engine, settings.server)
    quiet = Silent()
    tasks, failed = load_tasks(settings, quiet)
    if engine == "running":  # they would be asked
        name, model = SERVERS, None
    else:
        provider = open_provider(settings, configs, quiet)
        name, model = provider.name, provider.target
    results = Results.open(config.output, result_settings(settings, name, model), overwrite=config.overwrite)
    temperatures = dict.fromkeys(config.temperature)
    cases = [Case(task, each, t) for task in tasks for t in temperatures for each in configs]
    missing = [case for case in cases if results.configuration(case) is None]
    turns = {t.name: sum(len(q.turns) if config.multi_turn else 1 for q in t.questions) for t in tasks.values()}
    answers = config.repeats * sum(turns[case.task] for case in missing)
    started = len({case.config.shape for case in missing}) if engine == "started" else 0
    return Plan(
        "bench",
        reads=tuple(f"{task.name}: {len(task.questions):,} questions" for task in tasks.values()),
        done=(f"{len(cases) - len(missing)} configurations in {config.output}",) if len(missing) < len(cases) else (),
        does=(
            f"{len(missing)} configurations, {answers:,} answers of at most {config.max_tokens:,} tokens, "
            f"by {ENGINES[engine]}" + (f" ({started}, one after the other)" if started else ""),
            *(str(case) for case in missing),
            *([f"a search measures at most {config.search_runs} for each batch size"] if config.search else []),
        ),
        writes=(str(config.output), f"{config.output.with_suffix('.md')}, {config.output.with_suffix('.html')}"),
        warnings=tuple(f"task {name} cannot be had without a network: {why}" for name, why in failed.items()),
        numbers={
            "configurations": len(cases),
            "configurations_left": len(missing),
            "requests": answers,
            "servers_started": started,
            "engine": engine,
        },
    )
