"""A state of training as a file, from which another process goes on: weights, what Adam remembers, and how far it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from worker.images.learned.descent import Descent


def save(path: Path, network: torch.nn.Module, descent: Descent, told: dict, beside: dict[str, torch.Tensor]) -> None:
    """Args:
    told: goes through JSON.
    beside: further tensors.
    """
    tensors = {f"network/{k}": v for k, v in network.state_dict().items()} | {f"adam/{k}": v for k, v in descent.tensors().items()} | beside
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, {"training": json.dumps(told)})
    os.replace(part, path)


def restore(path: Path, network: torch.nn.Module, descent: Descent) -> dict | None:
    """What was told with a state, which network and Adam then have; None where it is not whole or of another network."""
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["training"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        network.load_state_dict({k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")})
        descent.take({k.removeprefix("adam/"): v for k, v in tensors.items() if k.startswith("adam/")})
        return told
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError):
        return None
