"""The call of the compiled inner loop of `compensation.solve`, which is the reference beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from worker.kernels.library import LIBRARY as _LIBRARY
from worker.kernels.library import Compensate

if TYPE_CHECKING:
    from worker.kernels.compensation import Line


def takes(w: torch.Tensor, upper: torch.Tensor, kept: torch.Tensor | None) -> bool:
    """Whether it can be called on these: built, on the CPU, row by row."""
    return _LIBRARY is not None and all(t.device.type == "cpu" and t.is_contiguous() and t.dtype == torch.float32 for t in (w, upper)) and (kept is None or (kept.is_contiguous() and kept.dtype == torch.bool))


def rounded(w: torch.Tensor, codes: torch.Tensor, errors: torch.Tensor, kept: torch.Tensor | None, upper: torch.Tensor, block: tuple[int, int], inputs: tuple[int, int], line: Line) -> None:
    """Round `inputs` (first, last) of a `block` (start, end) of w float32 [O, I] in place, which must lie in one group.

    Args:
        codes: float32 [O, I], written at these inputs.
        errors: float32 [O, end - start], written likewise.
        kept: bool [O, I], or None.
        upper: float32 [I, I].
    """
    start, end = block
    rows, columns = w.shape
    if not 0 <= start <= inputs[0] <= inputs[1] <= end <= columns or errors.shape != (rows, end - start) or codes.shape != w.shape or upper.shape != (columns, columns) or not errors.is_contiguous() or not codes.is_contiguous():
        raise ValueError(f"inputs {inputs} of block {block} of {tuple(w.shape)}")
    scale, zero = (None if t is None else t.float().expand(rows).contiguous() for t in (line.scale, line.zero))
    call = Compensate(
        w.data_ptr() + 4 * start, errors.data_ptr(), codes.data_ptr() + 4 * start, upper.data_ptr() + 4 * (start * columns + start), scale.data_ptr(),
        None if zero is None else zero.data_ptr(), None if kept is None else kept.data_ptr() + start,
        rows, columns, columns, inputs[0] - start, inputs[1] - start, end - start, line.low, line.high,
    )  # fmt: skip
    if _LIBRARY.modelpress_compensate(call, torch.get_num_threads()):
        raise MemoryError("no memory for what a kernel keeps beside its output")
