"""Kernels for a GPU that were compiled before (`triton_compiling`), launched by the driver itself: a jailed child can run no compiler.

`MODELPRESS_GPU_KERNELS` names their folder; without it there are none.
"""

from __future__ import annotations

import ctypes
import json
import os
from functools import cache
from pathlib import Path

import torch

_TYPES = {"q": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float}


def there(name: str) -> bool:
    return name in _told()


@cache
def _told() -> dict[str, dict]:
    folder = os.environ.get("MODELPRESS_GPU_KERNELS")
    listed = Path(folder, "kernels.json") if folder else None
    return json.loads(listed.read_text()) if listed and listed.exists() else {}


def launch(name: str, grid: int, tensors: tuple[torch.Tensor, ...], numbers: tuple[float, ...], types: str) -> None:
    """Start `grid` instances on the current stream of the tensors' device.

    Args:
        tensors: come first among the arguments. numbers: after them, of `types` (q int64, i int32, f float32).

    Raises:
        RuntimeError: the driver refused.
    """
    told = _told()[name]
    with torch.cuda.device(tensors[0].device):
        values = [*(ctypes.c_void_p(t.data_ptr()) for t in tensors), *(_TYPES[t](n) for t, n in zip(types, numbers, strict=True)), *(ctypes.c_void_p() for _ in range(told["hidden"]))]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(_driver().cuLaunchKernel(_function(name, torch.cuda.current_device()), grid, 1, 1, 32 * told["warps"], 1, 1, told["shared"], stream, pointers, None))


@cache
def _function(name: str, device: int) -> ctypes.c_void_p:
    """Args: device: modules belong to one."""
    code = Path(os.environ["MODELPRESS_GPU_KERNELS"], f"{name}.cubin").read_bytes()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), code))
    _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.split("-")[0].encode()))
    return function


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")  # torch has opened it, or there were no tensor on a GPU


def _check(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"the GPU's driver: {(text.value or b'error').decode()} ({result})")
