"""How much of a GPU a live target may take for itself, beside the training of its draft on the same one."""

from __future__ import annotations

from dataclasses import replace

from eagle3cli.backends.target.hf import read_auto_config
from eagle3cli.backends.target.weights.quantization import quantization_of
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.inputs import device_of, inspect_inputs
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.forecast.plan import SPARE, planned_draft
from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.forecast.workload import training_workload

LARGEST_SHARE = 0.85
"""What SGLang takes where nothing else is on the GPU: its workspaces need the rest."""
OF_TARGET = ("process", "target weights", "target's keys and values")
"""Parts of the forecast that the share holds, or that are taken before it is asked for."""


def target_share(settings: Settings, ranks: Ranks) -> float | None:
    """The share of the memory that is free now for the target's weights and cache; the settings' own goes first.

    None, which leaves it to the target's backend, where there is no GPU. All ranks must ask.
    """
    target = settings.target
    if target.mem_fraction_static is not None or device_of(target.device) == "cpu":
        return target.mem_fraction_static
    inputs = inspect_inputs(settings, planned_draft(settings))
    if inputs.available is None:
        return None
    quantization = quantization_of(read_auto_config(target).to_dict())
    bits = None if quantization is None else quantization.bits
    share = share_beside(training_workload(settings, inputs, ranks.world_size), inputs.available, bits)
    return -ranks.all_reduce_max([-share])[0]  # a target over several GPUs has the same of each


def share_beside(work: Workload, room: int, bits: int | None = None) -> float:
    """What is left of ``room`` bytes when the draft trains, in whole hundredths; ``bits`` of a quantised weight.

    At least what the target needs for one pass over the longest sequence: the forecast is a little high, and a run that
    does not fit is told so with its parts.
    """
    reserved = max(
        sum(size for name, size in phase.parts.items() if name not in OF_TARGET) for phase in forecast(work).phases
    )
    weights = replace(work.target, kept_bits=bits).weight_bytes(work.state_bytes) // work.tp_size
    cache = 2 * work.target.key_value * work.target.layers * work.state_bytes * work.longest_sequence // work.tp_size
    needed = -(-100 * (weights + cache) // room) + 1
    left = min(100 * LARGEST_SHARE, 100 * (1 - SPARE - reserved / room))
    return min(99, max(needed, int(left))) / 100
