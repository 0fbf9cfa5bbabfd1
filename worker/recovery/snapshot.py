"""The state of a training in one file, so that another process goes on where this one was: a safetensors file that is replaced as a whole.

    `NAME/KEY`        what each weight says of itself (`state`)
    `best/NAME/KEY`   the same of the best step so far
    metadata          JSON under `training`: the phase, its step, and what was measured
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

State = dict[str, dict[str, torch.Tensor]]


def save(path: Path, weights: State, best: State | None, training: dict) -> None:
    tensors = {f"now/{name}/{key}": t for name, state in weights.items() for key, t in state.items()}
    tensors |= {f"best/{name}/{key}": t for name, state in (best or {}).items() for key, t in state.items()}
    part = path.with_name(f".{path.name}")
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, part, {"training": json.dumps(training)})
    os.replace(part, path)


def load(path: Path, device: torch.device) -> tuple[State, State | None, dict] | None:
    """What `save` was given; None where there is no such file, or one that is not whole."""
    if not path.is_file():
        return None
    found: dict[str, State] = {"now": {}, "best": {}}
    try:
        with safe_open(path, "pt") as file:
            training = json.loads((file.metadata() or {})["training"])
            for key in file.keys():
                which, name, part = key.split("/", 1)[0], *key.split("/", 1)[1].rsplit("/", 1)
                found[which].setdefault(name, {})[part] = file.get_tensor(key).to(device)
    except (SafetensorError, KeyError, ValueError, OSError):
        return None
    return found["now"], found["best"] or None, training
