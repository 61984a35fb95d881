"""eagle3 watch: follow a run from another terminal."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import FAILED
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Show the run until it ends, or once; exit code 1 if it ended without finishing."""
    from dataclasses import asdict

    from eagle3cli.console.live import LiveView
    from eagle3cli.console.screen import lines
    from eagle3cli.pipeline.report import training_folder
    from eagle3cli.runs.find import find_run, newest_run
    from eagle3cli.runs.state import FINISHED
    from eagle3cli.runs.watch import RunWatcher, follow

    options = settings.watch
    run = newest_run() if options.run is None else find_run(options.run)
    watcher = RunWatcher(run, training_folder(run.path) if run.kind == "chain" else run.path)
    text = ""
    if options.once:
        view, state = watcher.view()
    else:
        with LiveView(quiet=out.json_wanted) as screen:
            view, state = follow(watcher, screen)
        text = f"{view.name}: {state.message}" if screen.live is not None else ""
    text = text or "\n".join(lines(view))
    out.result(
        {"kind": run.kind, **asdict(view), "ended": state.ended, "state": state.name, "told": state.message}, text
    )
    return None if options.once or state.name == FINISHED else FAILED


COMMAND = Command(
    name="watch",
    summary="Follow a run from another terminal, by its files; the newest one where none is named.",
    examples=("eagle3 watch", "eagle3 watch runs/quickstart", "eagle3 watch runs/train --once"),
    fields=("watch.*",),
    arguments=("watch.run",),
    run=run,
)
