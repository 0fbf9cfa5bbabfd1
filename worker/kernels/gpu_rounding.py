"""`search_and_round` of `triton_rounding` on matrices that lie on a GPU; where it was not compiled, or does not take one, torch does the same (`scale_search`, `uniform`)."""

from __future__ import annotations

from functools import cache

import torch

from worker.kernels import cubins, scale_search
from worker.kernels.uniform import Levels

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
SIZES = (16, 32, 64, 128, 256)
"""Of groups: what is compiled. Sums of integers over more could go beyond 32 bits from 512 on."""
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def name(dtype: str, size: int) -> str:
    return f"search_and_round-{dtype}-{size}"


def rows(size: int) -> int:
    """Groups of a program."""
    return 2048 // size


def takes(matrix: torch.Tensor, levels: Levels, group_size: int) -> bool:
    """Whether `search` takes this [R, C]: on a GPU, compiled, integers, whole groups."""
    plain = matrix.device.type == "cuda" and not levels.floating and matrix.dtype in DTYPES and group_size in SIZES
    return plain and matrix.shape[1] % group_size == 0 and matrix.numel() > 0 and cubins.there(name(DTYPES[matrix.dtype], group_size))


def search(matrix: torch.Tensor, levels: Levels, group_size: int, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [R, C] under the scales of least squared error, float32 [R, C / group_size] as they are read back (see `scale_search`)."""
    matrix = matrix.contiguous()
    if matrix.data_ptr() % 16:
        matrix = matrix.clone()
    groups = matrix.numel() // group_size
    codes = torch.empty(matrix.shape, dtype=torch.int8, device=matrix.device)
    scales = torch.empty(matrix.shape[0], matrix.shape[1] // group_size, device=matrix.device)
    _, shift = scale_search.multipliers(levels.num_bits)
    info = torch.finfo(scale_dtype)
    most = min(info.max, torch.finfo(torch.float32).max)
    steps = _steps(levels.num_bits, matrix.device)
    numbers = (groups, int(levels.low), int(levels.high), shift, _KINDS[scale_dtype], float(most), float(info.eps))
    cubins.launch(name(DTYPES[matrix.dtype], group_size), -(-groups // rows(group_size)), (matrix, codes, scales, steps), numbers, "qiiiiff")
    return codes, scales


@cache
def _steps(num_bits: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(scale_search.multipliers(num_bits)[0], dtype=torch.int32, device=device)
