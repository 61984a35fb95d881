"""GFLOPS of one core in float32 and bfloat16, on the shapes of a small target's layer.

Run it as: python tests/speed/step/matrix_products.py

Prints one JSON line a shape. What `dtype = "fastest"` chooses should be what wins here.
"""

from __future__ import annotations

import json
import time

import torch

SHAPES = ((64, 576, 1536), (640, 576, 1536), (640, 1536, 576), (2048, 576, 1536))
SECONDS = 0.5


def gflops(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """Of ``[rows, inner] @ [inner, columns]``, in CPU seconds."""
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    for _ in range(3):
        torch.mm(left, right.T, out=out)
    count, begun = 0, time.process_time()
    while time.process_time() - begun < SECONDS:
        torch.mm(left, right.T, out=out)
        count += 1
    return 2 * rows * inner * columns * count / (time.process_time() - begun) / 1e9


def main() -> None:
    """Measure all shapes."""
    torch.set_num_threads(1)
    for shape in SHAPES:
        found = {str(d).removeprefix("torch."): round(gflops(*shape, d), 1) for d in (torch.float32, torch.bfloat16)}
        print(
            json.dumps({"shape": shape, **found, "ratio": round(found["bfloat16"] / found["float32"], 2)}), flush=True
        )


main()
