"""Compiles the Triton kernels for GPUs that are not there and prints what each takes of them, as JSON.

Triton brings NVIDIA's assembler along, so neither a GPU nor its driver is needed. By hand:
``python -m tests.training.ttt.compile_kernels 90`` (the H100's number; 80 is the A100's, 100 the B200's).
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from eagle3cli.models.kernels import rms_norm, rotary, silu_gate
from eagle3cli.training.ttt.kernels import draft_kv, loss_rows

POINTERS = {
    "logits_ptr": "*bf16",
    "teacher_ptr": "*bf16",
    **dict.fromkeys(("lse_ptr", "teacher_lse_ptr", "whole_lse_ptr", "weights_ptr", "sums_ptr"), "*fp32"),
    **dict.fromkeys(("answer_ptr", "draft_ids_ptr", "at_ptr", "step_ptr", "slot_ptr"), "*i64"),
    **dict.fromkeys(("query_ptr", "out_ptr", "merged_ptr", "grad_ptr"), "*bf16"),
    **dict.fromkeys(("d_query_ptr", "d_out_ptr", "d_kv_ptr"), "*bf16"),
    **dict.fromkeys(("total_ptr", "d_lse_ptr"), "*fp32"),
    **dict.fromkeys(
        (
            "x_ptr",
            "y_ptr",
            "weight_ptr",
            "d_x_ptr",
            "cos_ptr",
            "sin_ptr",
            "gate_ptr",
            "up_ptr",
            "d_gate_ptr",
            "d_up_ptr",
        ),
        "*bf16",
    ),
    **dict.fromkeys(("inverse_ptr", "d_weight_ptr"), "*fp32"),
    **dict.fromkeys(("scale", "eps"), "fp32"),
}
STRIDES = ("x_row", "x_head", "table_row", "out_row", "out_head", "grad_row", "grad_head")
KV = {"K": 8, "G": 4, "D": 128, "G_BLOCK": 4, "D_BLOCK": 128}
"""Heads of Llama-3.1-8B."""


def kernels() -> dict[str, tuple[Any, dict[str, Any], int]]:
    """By name: the kernel, its constants and its warps."""
    rows = {"BLOCK": loss_rows.BLOCK}
    found = {"log-sum-exp": (loss_rows.lse_kernel, rows, loss_rows.WARPS)}
    for rates in (False, True):
        for training in (False, True):
            constants = {**rows, "RATES": rates, "TRAINING": training}
            found[f"score, {rates=} {training=}"] = (loss_rows.score_kernel, constants, loss_rows.WARPS)
    for steps in (1, 6):
        constants = {**KV, "J": steps}
        found[f"merge, {steps} own keys"] = (draft_kv.forward_kernel, constants, draft_kv.WARPS)
        found[f"merge backward, {steps} own keys"] = (draft_kv.backward_kernel, constants, draft_kv.WARPS)
    for width in (2880, 4096, 8192):
        constants = {"BLOCK": triton.next_power_of_2(width)}
        warps = rms_norm.sizes(width)["num_warps"]
        found[f"norm of {width}"] = (rms_norm.forward_kernel, constants, warps)
        found[f"norm backward of {width}"] = (rms_norm.backward_kernel, constants, warps)
    for size in (64, 128):
        half = {"HALF": size // 2, "HALF_BLOCK": size // 2, "HEADS": rotary.HEADS}
        for backward in (False, True):
            found[f"rotary, {size} channels, {backward=}"] = (
                rotary.rotate_kernel,
                {**half, "BACKWARD": backward},
                rotary.WARPS,
            )
    gate = {"BLOCK": silu_gate.BLOCK}
    found["gate"] = (silu_gate.forward_kernel, gate, silu_gate.WARPS)
    found["gate backward"] = (silu_gate.backward_kernel, gate, silu_gate.WARPS)
    return found


def signature(kernel: Any, constants: dict[str, Any]) -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in ("keys", "values"):
            types[name] = ("*bf16",) * constants["J"]
        else:
            types[name] = POINTERS.get(name, "i32")
    return types


def aligned(types: dict[str, Any]) -> dict[tuple[int, ...], list[list[Any]]]:
    """What Triton finds out at every call: addresses and row lengths that are multiples of 16, as in real models."""
    paths: list[tuple[int, ...]] = []
    for index, (name, kind) in enumerate(types.items()):
        if isinstance(kind, tuple):
            paths += [(index, j) for j in range(len(kind))]
        elif kind.startswith("*") or name in ("width", "size") or name.endswith("stride") or name in STRIDES:
            paths.append((index,))
    return {path: [["tt.divisibility", 16]] for path in paths}


def assembler(capability: int) -> str:
    """Triton's own choice; up to 3.4 it had one for all."""
    tool = get_ptxas(capability) if inspect.signature(get_ptxas).parameters else get_ptxas()
    return str(tool.path)


def takes(kernel: Any, constants: dict[str, Any], warps: int, capability: int) -> dict[str, int]:
    """Registers of a thread, bytes spilled from them, and shared memory of a program."""
    types = signature(kernel, constants)
    source = ASTSource(kernel, types, constexprs=constants, attrs=aligned(types))
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    ptx = compiled.asm["ptx"]
    architecture = re.search(r"\.target (\w+)", ptx)
    assert architecture is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler(capability), "-v", f"-arch={architecture[1]}", file.name, "-o", "/dev/null"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", text)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
    assert registers is not None
    assert spilled is not None
    return {
        "registers": int(registers[1]),
        "spilled": int(spilled[1]) + int(spilled[2]),
        "shared": int(compiled.metadata.shared),
    }


if __name__ == "__main__":
    capabilities = [int(word) for word in sys.argv[1:]]
    table = {
        f"sm_{capability} {name}": takes(*kernel, capability)
        for capability in capabilities
        for name, kernel in kernels().items()
    }
    print(json.dumps(table, indent=1))
