"""What a process takes that holds the target alone, where the draft has processes of its own."""

from __future__ import annotations

from eagle3cli.backends.capture.memory import pass_parts
from eagle3cli.backends.roles.serve import UNSENT
from eagle3cli.backends.target.padding import PASS_TOKENS
from eagle3cli.training.forecast.phases import Forecast, Phase
from eagle3cli.training.forecast.sizes import Workload


def forecast_target_rank(work: Workload) -> Forecast:
    """What a rank that holds the target alone takes, where a draft rank has this workload: one pass at a time, and
    the states of those before that wait to be fetched."""
    padded = min(work.sequences * work.longest_sequence, work.keys + PASS_TOKENS)  # as in target_pass_parts
    states = work.keys * (work.draft.aux_width + work.target.hidden) * work.state_bytes
    standing = {
        "process": work.process_bytes,
        "target weights": work.target.weight_bytes(work.state_bytes) // work.tp_size,
        "states on their way": (1 + UNSENT) * states,
    }
    of_pass = pass_parts(
        work.target,
        padded,
        work.keys,
        aux=work.draft.aux_width,
        each=work.state_bytes,
        tp_size=work.tp_size,
        shared_prefix=work.shared_prefix,
    )
    return Forecast((Phase("the target's pass", {**standing, **of_pass}),))
