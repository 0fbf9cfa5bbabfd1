"""The devices that are here, and two ways to look for tensors on a wrong one without a GPU."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]

ELSEWHERE = torch.device("lazy")
"""A device for fake tensors that every build of torch knows: fake tensors on cuda need a build with CUDA for some operators."""


class DevicesNamed(TorchFunctionMode):
    """Every call that makes a tensor out of nothing must say on which device; data are real."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in _device_constructors():
            assert (kwargs or {}).get("device") is not None, f"{function.__name__} makes a tensor on whatever device is the default"
        return function(*args, **(kwargs or {}))
