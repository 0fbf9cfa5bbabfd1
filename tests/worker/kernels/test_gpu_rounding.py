"""Triton's kernel beside its reference: the same bits. Without a GPU Triton's interpreter runs it, where Triton is installed: `pip install triton`, and TRITON_INTERPRET=1 for pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from devices import DEVICES
from kernel_values import kinds

from worker.kernels import gpu_rounding, native, scale_search, uniform

ROOT = Path(__file__).parents[3]
ON_GPU = len(DEVICES) > 1
INTERPRETED = ((16, 4, torch.bfloat16), (256, 8, torch.float32))


def expected(x: torch.Tensor, size: int, num_bits: int, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    groups, levels = x.float().reshape(-1, size), uniform.Levels(num_bits)
    scale = scale_search.search(groups, levels, scale_dtype)
    return levels.round(uniform.divide(groups, scale)).to(torch.int8).reshape(x.shape), scale.reshape(len(x), -1)


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.setattr(native, "takes", lambda *tensors, **kwargs: False)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """As a worker has it: compiled by another process."""
    folder = tmp_path_factory.mktemp("kernels")
    subprocess.run([sys.executable, "-m", "worker.kernels.triton_compiling", folder], cwd=ROOT, check=True, timeout=300)
    os.environ["MODELPRESS_GPU_KERNELS"] = str(folder)
    yield folder
    del os.environ["MODELPRESS_GPU_KERNELS"]


@pytest.mark.skipif(not ON_GPU, reason="there is no GPU here")
@pytest.mark.parametrize("size", gpu_rounding.SIZES)
@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7, 8])
def test_what_the_gpu_finds_is_what_the_reference_finds(compiled, reference, size, num_bits):
    for kind, x in kinds(37, 2 * size, seed=size + num_bits).items():
        for dtype in gpu_rounding.DTYPES:
            for scale_dtype in gpu_rounding.DTYPES:
                if not torch.isfinite(m := x.to(dtype)).all():
                    continue
                on_gpu, levels = m.cuda(), uniform.Levels(num_bits)
                assert gpu_rounding.takes(on_gpu, levels, size)
                codes, scales = gpu_rounding.search(on_gpu, levels, size, scale_dtype)
                wanted_codes, wanted_scales = expected(m, size, num_bits, scale_dtype)
                assert torch.equal(codes.cpu(), wanted_codes) and torch.equal(scales.cpu(), wanted_scales), (kind, dtype, scale_dtype)


@pytest.mark.skipif(not ON_GPU, reason="there is no GPU here")
def test_parts_of_a_matrix_that_lie_anywhere_are_taken(compiled, reference):
    x = kinds(9, 64, seed=1)["plain"].cuda().reshape(-1)[1 : 1 + 8 * 64].reshape(8, 64)
    codes, scales = gpu_rounding.search(x, uniform.Levels(4), 32, torch.float16)
    wanted_codes, wanted_scales = expected(x.cpu(), 32, 4, torch.float16)
    assert torch.equal(codes.cpu(), wanted_codes) and torch.equal(scales.cpu(), wanted_scales)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET=1 runs it without a GPU")
@pytest.mark.parametrize(("size", "num_bits", "dtype"), INTERPRETED)
def test_the_kernel_interpreted_is_the_reference(reference, size, num_bits, dtype):
    from worker.kernels.triton_rounding import search_and_round

    steps, shift = scale_search.multipliers(num_bits)
    for kind in ("heavy", "tied", "zeros", "tiny"):
        x = kinds(3, size, seed=size)[kind].to(dtype)
        codes, scales, info, levels = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x), 1), torch.finfo(torch.float16), uniform.Levels(num_bits)
        numbers = (len(x), int(levels.low), int(levels.high), shift, 1, info.max, info.eps)
        search_and_round[(2,)](x, codes, scales, torch.tensor(steps, dtype=torch.int32), *numbers, SIZE=size, ROWS=2, COUNT=len(steps))
        wanted_codes, wanted_scales = expected(x, size, num_bits, torch.float16)
        assert torch.equal(codes, wanted_codes) and torch.equal(scales, wanted_scales), kind
