"""What regenerate and bench would do: rows and requests that are left, by which engine, and what is there already."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from eagle3cli.data.conversations import to_conversation
from eagle3cli.data.sources import parse_line, read_raw_lines
from eagle3cli.errors import DataError
from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench import load_tasks, made_with_of
from eagle3cli.serving.bench_engines import SERVERS, open_engine
from eagle3cli.serving.configs import parse_config, with_baselines
from eagle3cli.serving.engines import engine_of
from eagle3cli.serving.regenerate import input_path_of, range_of, shards_in, survey
from eagle3cli.serving.regenerate import made_with_of as shards_made_with
from eagle3cli.serving.results import Case, Results
from eagle3cli.serving.script import write_script
from eagle3cli.serving.shards import Shard, ShardFolder
from eagle3cli.settings.tables import Settings

ENGINES = {"local": "this process", "running": "the servers that are given", "started": "servers that it starts"}


def plan_regenerate(settings: Settings) -> Plan:
    """The rows without an outcome and the replies that they ask for; ``recorded`` ones may save some of these.

    Raises as the command would for its input, and for shards that were made with other settings.
    """
    wanted = settings.regenerate
    path = input_path_of(wanted)
    total, digest = survey(path)
    first, end = range_of(wanted.sample_range, total)
    shards, folder = shards_in(wanted, first, end), ShardFolder(wanted.output_dir)
    engine = engine_of(wanted.engine, settings.server)
    failed = 0
    if not wanted.overwrite:
        named = engine != "running" or bool(settings.target.model_path)  # else only the servers know
        folder.look(shards_made_with(settings, digest) if named else {})
        failed = sum((folder.summary(shard) or {}).get("errors", 0) for shard in shards)
    left = set(range(first, end)) if wanted.overwrite else _left(folder, shards)
    replies, rejected = _replies(settings, path, first, end, left)
    again = failed if wanted.retry_errors else 0
    rows = end - first
    notes = [f"about {again:,} failed rows once more"] if again else []
    if wanted.recorded and left:
        notes.append(f"replies of {wanted.recorded} are used where they match, the others are generated")
    return Plan(
        "regenerate",
        reads=(f"{path}: rows {first:,} to {end:,} of {total:,}",),
        done=(f"{rows - len(left):,} rows in {wanted.output_dir}",) if len(left) < rows else (),
        does=(
            f"{replies:,} replies for {len(left):,} rows, each of at most {wanted.max_tokens:,} tokens",
            f"by {ENGINES[engine]}",
            *([f"{rejected:,} rows cannot be used and go to the error files"] if rejected else []),
            *notes,
        ),
        writes=(f"{wanted.output_dir}: {len(shards)} shards of {wanted.num_per_shard:,} rows",),
        numbers={
            "rows": rows,
            "rows_left": len(left),
            "requests": replies,
            "tokens_at_most": replies * wanted.max_tokens,
            "rows_rejected": rejected,
            "rows_failed_before": failed,
            "shards": len(shards),
            "engine": engine,
        },
    )


def _left(folder: ShardFolder, shards: list[Shard]) -> set[int]:
    return {row for shard in shards for row in folder.rows_left(shard)}


def _replies(settings: Settings, path: Path, first: int, end: int, left: set[int]) -> tuple[int, int]:
    """Replies that the target would write for these rows, and rows that are no conversation."""
    replies = rejected = 0
    for row, (number, raw) in enumerate(islice(read_raw_lines(path), first, end), first):
        if row not in left:
            continue
        value = parse_line(number, raw, str(path)).value
        try:
            if value is None:
                raise DataError("not a row")
            replies += write_script(row, to_conversation(value), settings.regenerate.turns, None).lines.count(None)
        except DataError:
            rejected += 1
    return replies, rejected


def plan_bench(settings: Settings) -> Plan:
    """The configurations that are not in the results yet, and the answers that they ask for.

    Raises as the command would for configurations, tasks and results of other settings.
    """
    wanted = settings.bench
    configs = with_baselines([parse_config(text) for text in wanted.config_list])
    engine = engine_of(wanted.engine, settings.server)
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
