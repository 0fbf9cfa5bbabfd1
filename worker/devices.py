"""What a job is computed on. Nothing here touches CUDA before a job asks for it: a process that has may not fork any more."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def device_of(spec: dict) -> torch.device:
    """The worker has put cpu or cuda in the place of `auto`; what is left of it, offline, is cpu."""
    return torch.device("cuda") if spec.get("device") == "cuda" else CPU


def describe(device: torch.device) -> str:
    """cpu, or cuda and the GPU's name."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
