"""Finds the tensors in what a checkpoint holds: a state dict, or a training checkpoint with one inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.errors import InputRefused
from app.limits import Limits, check_tensor_name, shown
from worker.checkpoint import Dropped
from worker.formats.pickle_tensors import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network", "weights", "params", "parameters")
"""Keys under which training code keeps the state dict; names inside do not repeat them."""

_LONGEST = Limits().tensor_name_chars
_TRAINING = ("optim", "scheduler", "lr_sched", "scaler", "rng_state", "amp", "grad_scaler", "callbacks", "loops", "loss_scaler")


@dataclass
class Found:
    """`tensors` by name, in order; `others` are tensors of dropped parts, which the file's checks must still cover."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    others: list[Tensor] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repeated: int = 0


class _Contents:
    """Which containers hold tensors. A pickle may name one container a thousand times: each is looked into once."""

    def __init__(self):
        self.holding: dict[int, bool] = {}
        self.claimed: set[int] = set()

    def holds(self, value: Any) -> bool:
        if type(value) is Tensor:
            return True
        if type(value) not in (dict, list, tuple):
            return False
        if id(value) not in self.holding:  # as deep as the walk's limit, no deeper
            self.holding[id(value)] = any([self.holds(v) for v in (value.values() if type(value) is dict else value)])
        return self.holding[id(value)]

    def claim(self, value: Any) -> list[Tensor]:
        """The tensors in a value that no earlier claim has returned."""
        out, work = [], [value]
        while work:
            v = work.pop()
            if id(v) in self.claimed or not self.holds(v):
                continue
            self.claimed.add(id(v))
            if type(v) is Tensor:
                out.append(v)
            else:
                work.extend(v.values() if type(v) is dict else v)
        return out


def _items(value: Any) -> list[tuple[str, Any]]:
    """Names of what a container holds. A name too long to be taken is cut where it is still too long."""
    if type(value) is dict:
        return [(str(k)[: _LONGEST + 1], v) for k, v in value.items()]
    return [(str(i), v) for i, v in enumerate(value)]


def _is_training(key: str, value: Any) -> bool:
    return type(value) is not Tensor and (key.lower().startswith(_TRAINING) or "optimizer" in key.lower())


def _is_bookkeeping(tensor: Tensor) -> bool:
    """A number (a loss, a best score) or the bytes of a random generator's state."""
    return not tensor.shape or (tensor.dtype == "U8" and len(tensor.shape) == 1)


def find_tensors(root: Any, limits: Limits = Limits()) -> Found:
    """The tensors under their names, and what is left behind.

    A checkpoint's wrapper (`{"model": {...}, "epoch": 3}`) is stepped into when it is the only container with tensors; otherwise the names say
    where the tensors stand (`generator.conv.weight`). State of an optimizer, a scheduler or a random generator is dropped.

    Args:
        root: plain data from `pickle_walk.Walk`, nested no deeper than its limit.

    Raises:
        InputRefused: no-tensors, bad-tensor-name, limit-name, limit-entries.
    """
    found, contents = Found(), _Contents()
    if type(root) is Tensor:
        root = {"tensor": root}
    if not contents.holds(root):
        raise InputRefused("no-tensors", f"the checkpoint holds no tensor (a value of type {type(root).__name__})")
    path, left = "", []
    while True:
        left += [(path + k, v, "state of training, not of the model") for k, v in _items(root) if _is_training(k, v)]
        parts = [(k, v) for k, v in _items(root) if not _is_training(k, v)]
        holding = [(k, v) for k, v in parts if contents.holds(v)]
        inner = [(k, v) for k, v in holding if type(v) is not Tensor]
        if len(inner) != 1 or inner[0][0] not in WRAPPERS:
            break
        key, root = inner[0]
        if not key.endswith("state_dict") and not all(_is_bookkeeping(v) for _, v in holding if type(v) is Tensor):
            break  # the tensors beside it may be weights
        left += [(path + k, v, "beside the state dict") for k, v in parts if k != key]
        path = f"{path}{key}."
    if path:
        found.notes.append(f"the state dict was found under {shown(path[:-1])}")
    seen: set[int] = set()
    for key, value in parts:
        _flatten(key, value, found, left, seen, contents, limits)
    if not found.tensors:
        raise InputRefused("no-tensors", "the checkpoint holds no tensor outside the state of training")
    if found.repeated:
        found.notes.append(f"{found.repeated} containers of the checkpoint stand in it more than once; their tensors are named once")
    contents.claimed.update(map(id, found.tensors.values()))
    _drop(found, left, contents)
    return found


def _flatten(name: str, value: Any, found: Found, left: list, seen: set[int], contents: _Contents, limits: Limits) -> None:
    """Depth first, as deep as the walk's limit. A container that comes twice is named once."""
    if type(value) is Tensor:
        check_tensor_name(name, limits)
        if name in found.tensors:
            raise InputRefused("bad-tensor-name", f"two tensors of the checkpoint are both named {shown(name)}")
        found.tensors[name] = value
        if len(found.tensors) > limits.tensors:
            raise InputRefused("limit-entries", f"the checkpoint has more than {limits.tensors} tensors")
    elif not contents.holds(value):
        left.append((name, value, "not a tensor"))
    elif id(value) in seen:
        found.repeated += 1
    else:
        check_tensor_name(name, limits)
        seen.add(id(value))
        for key, inner in _items(value):
            _flatten(f"{name}.{key}", inner, found, left, seen, contents, limits)


def _drop(found: Found, left: list[tuple[str, Any, str]], contents: _Contents) -> None:
    """One row for each part left behind, under a name that no tensor has."""
    taken = set(found.tensors)
    for name, value, why in left:
        if value in ((), [], {}):
            continue
        tensors = contents.claim(value)
        found.others += tensors
        name = shown(name)[1:-1]
        if name in taken:
            name += f" (beside the tensors, {len(taken)})"
        taken.add(name)
        what = why if type(value) in (Tensor, dict, list, tuple) else f"{why}: a value of type {type(value).__name__}"
        found.dropped.append(Dropped(name, sum(t.nbytes for t in tensors), what))
