"""How fast the machine is that a run is planned for: a GPU by a roofline, this processor by a product that is timed.

What nobody has measured here lies between two bounds: the roofline's own share of the peak, and a part of it. What was
calibrated on this machine with these models (:mod:`eagle3cli.pipeline.forecast.calibration`) takes their place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from eagle3cli.pipeline.forecast.calibration import Calibration, Conditions, this_machine
from eagle3cli.pipeline.forecast.models import Shapes
from eagle3cli.pipeline.forecast.ranges import Range, as_range
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.devices import compute_type, memory_of
from eagle3cli.runtime.processes.launch import processes
from eagle3cli.runtime.provenance import digest_json, json_value
from eagle3cli.serving.engine import resolve_engine
from eagle3cli.settings.fields import fields
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast import gpu_time
from eagle3cli.training.forecast.inputs import device_of
from eagle3cli.training.forecast.speed import ASSUMED_GPU, product_flops
from eagle3cli.training.forecast.throughput import GPUS

GPU_MEMORY = 80_000_000_000
"""Bytes of the GPU that is planned for where there is none here."""
GPU_FORWARD = Range(0.25, gpu_time.PRODUCTS)
"""Share of a GPU's peak FLOP/s that a target's forward pass reaches."""
CPU_FORWARD = Range(0.2, 1.2)
"""Share of a large product's speed on a processor."""
CPU_BANDWIDTH = Range(1e10, 5e10)
"""Bytes/s of a processor's memory: from a virtual machine to a server."""
SERVER_SHARE = Range(0.25, 0.8)
"""Of the decoding roofline, what servers reach with all requests under way."""
LOCAL_SHARE = Range(0.05, 0.8)
"""The same of transformers in this process, one batch after the other."""
CPU_SHARE = Range(0.5, 1.0)
"""The same on a processor, whose bandwidth is a range already."""
MEAN_CONTEXT = 0.6
"""Of a row's tokens, those that are there on average while it is written."""
LAYER_SECONDS = Range(5e-5, 2e-3)
"""Of one layer in one decoding step where there is next to nothing to compute."""
START_SECONDS = Range(1, 90)
"""Until a model is loaded; a server that captures graphs takes longer."""
SERVER_START = Range(20, 300)
VERIFIED = Range(0.3, 3.0)
"""Time of a token with a draft against one without: from one that helps to one that does not, on a processor."""
ACCEPTED = 0.75
"""Of the tokens that a draft proposes, at most so many are accepted on average."""


@dataclass(frozen=True)
class Machine:
    """Where the run is planned to be."""

    device: str
    """cpu or cuda."""
    gpus: int
    """Processes that train, a GPU each."""
    name: str
    flops: Range
    """FLOP/s of a forward pass, of all GPUs together."""
    capture_flops: Range
    """The same in the type that hidden states are captured in."""
    bandwidth: Range
    """Bytes/s, of all GPUs together."""
    engine: str
    """local, started or running."""
    memory: int | None
    """Bytes of a device."""
    settings: Settings
    """The settings with the device that is planned for."""
    is_assumed: bool = False
    """The GPU that is planned for is not here."""
    calibration: Calibration | None = None
    """What was timed here with these models and settings."""

    def capture_seconds(self, tokens: Range, shapes: Shapes) -> Range:
        """The target over ``tokens``, in the type that hidden-states computes in."""
        if self.calibration and self.calibration.capture_rate:
            devices = self.gpus if self.device == "cuda" else 1
            return tokens / (self.calibration.capture_rate * devices)
        return tokens * (2 * shapes.active) / self.capture_flops

    def decode_seconds(
        self, tokens: Range, replies: float, context: Range, shapes: Shapes, batch: int, depth: int = 0
    ) -> Range:
        """``tokens`` in ``replies`` of rows with ``context`` tokens; ``batch`` are decoded at once, with a draft that
        proposes ``depth`` tokens."""
        timed = self._timed_decoding(tokens, replies, context, batch, depth)
        if timed is not None:
            return timed
        fast = self._decoding(tokens.low, replies, MEAN_CONTEXT * context.low, shapes, batch)
        slow = self._decoding(tokens.high, replies, MEAN_CONTEXT * context.high, shapes, batch)
        plain = Range(fast.low, slow.high)
        return plain * VERIFIED if depth else plain

    def _timed_decoding(self, tokens: Range, replies: float, context: Range, batch: int, depth: int) -> Range | None:
        """The same by steps that were timed; None where none were."""
        calibration = self.calibration
        if calibration is None or self.engine != "local":
            return None
        at_once = min(batch, max(1.0, replies))
        step = calibration.decoding_seconds(at_once, depth)
        pass_of_one = calibration.decoding_seconds(1, 0)
        if step is None or pass_of_one is None:
            return None
        steps = tokens / at_once / Range(1.0, 1.0 + ACCEPTED * depth)
        prompts = Range(0.0, replies * max(0.0, context.high - tokens.low / max(1.0, replies)))
        rate = calibration.capture_rate or as_range(1 / pass_of_one.high)
        reading = prompts / rate + Range(0.0, replies * pass_of_one.high)
        return steps * step + reading

    def _decoding(self, tokens: float, replies: float, context: float, shapes: Shapes, batch: int) -> Range:
        """Every step reads the weights and what is cached, or waits for products, or for Python."""
        is_local = self.engine == "local"
        each = 4 if self.device == "cpu" else 2
        weights = each * (shapes.target.weights if batch > self.gpus else shapes.active)
        cached = 2 * shapes.target.key_value * shapes.target.layers * each * max(1.0, context)
        at_once = min(batch, max(1.0, replies))
        room = self.gpus * (self.memory or GPU_MEMORY) * 0.85 - each * shapes.target.weights
        if self.device == "cuda" and room > cached:
            at_once = min(at_once, room / cached)
        steps = as_range(tokens / at_once)
        share = CPU_SHARE if self.device == "cpu" else LOCAL_SHARE if is_local else SERVER_SHARE
        by_memory = steps * (weights + cached * at_once) / self.bandwidth / share
        by_products = as_range(tokens * 2 * shapes.active) / self.flops
        waiting = steps * shapes.target.layers * LAYER_SECONDS if is_local else as_range(0.0)
        low = max(by_memory.low, by_products.low, waiting.low)
        return Range(low, by_memory.high + by_products.high + waiting.high)

    def start_seconds(self, times: int = 1) -> Range:
        """Until the target is loaded, ``times`` over."""
        if self.engine != "local":
            return as_range(times) * SERVER_START
        return as_range(times) * ((self.calibration and self.calibration.load) or START_SECONDS)


SPEED_FIELDS = (
    *("target.dtype", "data.max_length", "hidden_states.dtype", "hidden_states.encoding", "regenerate.engine"),
    *(f"train.{name}" for name in ("mode", "dtype", "batch_size", "micro_batch_size", "max_tokens_per_gpu")),
    *(
        f"train.{name}"
        for name in ("ttt_length", "anchor_fraction", "loss", "optimizer", "attention_backend", "echo_factor")
    ),
    "train.activation_checkpointing",
)
"""Settings that change how long a step takes."""


def conditions_of(machine: Machine, shapes: Shapes) -> Conditions:
    """What a calibration of this run on this machine holds for."""
    settings = machine.settings
    values = {key: field.value(settings) for key, field in fields().items() if key in SPEED_FIELDS}
    if settings.train.keep_states:  # calibrations of before the setting do not have it
        values["train.keep_states"] = True
    values |= {"device": machine.device, "gpus": machine.gpus, "threads": settings.target.threads}
    values["draft"] = digest_json(asdict(shapes.draft))
    # What its speed depends on: other weights of the same model are as fast, and a .gguf file is as what it becomes.
    quantization = None if shapes.is_converted else shapes.config.get("quantization_config")
    shape = {key: value for key, value in asdict(shapes.target).items() if key != "kept_bits"}
    kind = [shapes.config.get("model_type"), shape, quantization]
    target = {"name": settings.target.model_path, "kind": digest_json(json_value(kind))}
    return Conditions(this_machine(), target, json_value(values))


def machine_of(settings: Settings) -> Machine:
    """This machine; one H100 where there is no GPU and the settings ask for some (``launch.gpus``)."""
    wants_gpu = settings.target.device == "auto" and settings.launch.gpus is not None
    is_assumed = not torch.cuda.is_available() and (wants_gpu or device_of(settings.target.device) == "cuda")
    device = "cuda" if is_assumed else device_of(settings.target.device)
    settings = settings.updated("target", device="cuda" if device == "cuda" else settings.target.device)
    if device == "cpu":
        return _this_processor(settings)
    gpus = settings.launch.gpus
    count = int(gpus) if gpus and gpus != "auto" else 1 if is_assumed else processes(gpus, "cuda")
    count = max(count, settings.target.tp_size)
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ASSUMED_GPU
    kind = next((name for name in GPUS if name in here), ASSUMED_GPU)
    engine = resolve_engine(settings.regenerate.engine, settings.server)
    if is_assumed and settings.regenerate.engine == "auto" and engine == "local":
        engine = "started"
    name = f"{count} x {kind} of {GPU_MEMORY // 10**9} GB, by a roofline"
    name += "; no GPU is here: --set target.device=cpu is for this processor" if is_assumed else ""
    gpu = GPUS[kind]
    flops = GPU_FORWARD * (count * gpu.peak_flops)
    bandwidth = count * gpu_time.MEMORY * gpu.memory_bandwidth
    memory = GPU_MEMORY if is_assumed else memory_of("cuda")
    return Machine("cuda", count, name, flops, flops, Range(bandwidth, bandwidth), engine, memory, settings, is_assumed)


def _this_processor(settings: Settings) -> Machine:
    cores = settings.target.threads or len(available_cpus())
    dtype = torch.bfloat16 if settings.target.dtype == "bfloat16" else torch.float32
    capture = compute_type(settings.hidden_states.dtype, torch.device("cpu"))
    flops = CPU_FORWARD * (cores * product_flops(dtype))
    capture_flops = CPU_FORWARD * (cores * product_flops(capture))
    gpus = settings.launch.gpus
    count = int(gpus) if gpus and gpus != "auto" else 1
    engine = resolve_engine(settings.regenerate.engine, settings.server)
    name = f"this processor, {cores} cores, by a product that was timed now"
    return Machine("cpu", count, name, flops, capture_flops, CPU_BANDWIDTH, engine, memory_of("cpu"), settings)
