"""What stages of a course have come to, a file each, so that another process goes on where this one was.

    resume/00003.safetensors
        NAME/dense                        the tensor's shape and dtype, where not quantized
        NAME/mask                         bool, the tensor's shape, where pruned
        NAME/codes, NAME/scale/values..   the tensors of what it was quantized to, by the fields of its class in `worker.encoded`
        metadata                          `told`: JSON, of each NAME its action, reason, notes, and the other fields of that class;
                                          `recipe`: JSON, that of the whole job, for an `auto` may find another one when it searches again;
                                          `digest`: SHA-256 of it and of the tensors' bytes
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from app.recipe import Quantize
from worker.checkpoint import DTYPES
from worker.encoded import Codebook, Encoded, Factors, Grid, Quantized
from worker.methods.quantize import decoded
from worker.plan import TensorPlan

_CLASSES = {cls.__name__: cls for cls in (Quantized, Grid, Codebook, Factors)}


def save(path: Path, found: dict[str, Encoded], recipe: str) -> None:
    """Args: found: by tensor name. recipe: JSON, of the job."""
    tensors: dict[str, torch.Tensor] = {}
    told = {}
    for name, encoded in found.items():
        parts = {"dense": encoded.dense if encoded.quantized is None else None, "mask": encoded.mask}
        tensors |= {f"{name}/{part}": _flat(t) for part, t in parts.items() if t is not None}
        told[name] = {"action": encoded.action, "reason": encoded.reason, "notes": encoded.notes, "quantized": _told(encoded.quantized, name, tensors)}
    text = json.dumps(told)
    part = path.with_name(f".{path.name}")
    save_file(tensors, part, {"told": text, "recipe": recipe, "digest": _digest(text, tensors)})
    os.replace(part, path)


def _flat(t: torch.Tensor) -> torch.Tensor:
    return t.detach().cpu().contiguous()


def _told(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A field as JSON; tensors go to `tensors`, under its name."""
    if isinstance(value, torch.Tensor):
        tensors[name] = _flat(value)
        return {"tensor": name}
    if isinstance(value, Quantize):
        return {"step": value.model_dump(mode="json", by_alias=True)}
    if is_dataclass(value):
        return {"class": type(value).__name__, "fields": {f.name: _told(getattr(value, f.name), f"{name}/{f.name}", tensors) for f in fields(value)}}
    return value


def _made(told: Any, get: Callable[[str], torch.Tensor]) -> Any:
    """What `_told` was given."""
    if not isinstance(told, dict):
        return told
    if "tensor" in told:
        return get(told["tensor"])
    if "step" in told:
        return _step(told["step"])
    return _CLASSES[told["class"]](**{name: _made(field, get) for name, field in told["fields"].items()})


def _step(told: dict[str, Any]) -> Quantize:
    """One whose bits were allotted has the width that it was given beside the bits that were asked for, which no step of a recipe has."""
    allotted = told["num_bits"] is not None and told["avg_bits"] is not None
    return Quantize(**(told | {"avg_bits": None})).model_copy(update={"avg_bits": told["avg_bits"]}) if allotted else Quantize(**told)


def load(path: Path, plans: dict[str, TensorPlan], recipe: str) -> dict[str, Encoded] | None:
    """What `save` was given, of the tensors of `plans`; None where there is no such file, or one that is not whole, of other tensors, of another recipe, or
    of a worker of another version."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        told = json.loads(metadata["told"])
        if told.keys() != plans.keys() or metadata["recipe"] != recipe or metadata["digest"] != _digest(metadata["told"], tensors):
            return None
        return {name: _encoded(plan, told[name], tensors.__getitem__, tensors) for name, plan in plans.items()}
    except (SafetensorError, AttributeError, KeyError, RecursionError, TypeError, ValueError, OSError):  # one of another version may have other fields
        return None


def read(path: Path, plan: TensorPlan) -> Encoded:
    """One tensor of what this process has saved, or found to be whole."""
    with safe_open(path, "pt") as file:
        return _encoded(plan, json.loads(file.metadata()["told"])[plan.spec.name], file.get_tensor, file.keys())


def _encoded(plan: TensorPlan, told: dict, get: Callable[[str], torch.Tensor], keys: Collection[str]) -> Encoded:
    mask, dense = (get(key) if (key := f"{plan.spec.name}/{part}") in keys else None for part in ("mask", "dense"))
    quantized = _made(told["quantized"], get)
    if quantized is not None:
        dtype = DTYPES[plan.spec.dtype]
        dense = plan.shaped(quantized.dequantize().to(dtype) if isinstance(quantized, Codebook) else decoded(quantized, dtype))
    return Encoded(plan.spec, told["action"], dense, told["reason"], mask, quantized, notes=tuple(told["notes"]))


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
