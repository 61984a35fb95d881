"""Triton kernels of training, one file a job; imported on a GPU only, since Triton comes with torch for CUDA.

What each must equal is in plain torch: the rows of the loss in ``plain_rows``, own keys in ``ttt/attention.py``.
"""

from __future__ import annotations

from eagle3cli.models.kernels import triton_runs

__all__ = ["triton_runs"]
