"""``eagle3 run --list``: the packaged recipes and the stages of a run."""

from __future__ import annotations

from eagle3cli.console.out import Out
from eagle3cli.pipeline.stages import STAGES
from eagle3cli.settings.packaged import recipes, summary


def overview(out: Out) -> None:
    """Show both as tables, or as one result with --json."""
    named = {name: summary(path) for name, path in recipes().items()}
    steps = {stage.name: stage.summary for stage in STAGES}
    if out.json_wanted:
        out.result({"recipes": named, "stages": steps}, "")
        return
    out.table("Recipes: eagle3 run NAME", ("recipe", "what for"), list(named.items()))
    out.table("Stages: --from, --to or --only STAGE", ("stage", "what it makes"), list(steps.items()))
