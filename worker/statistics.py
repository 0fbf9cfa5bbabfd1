"""How much the output of a model depends on each weight: what saliencies and codebooks weigh with. Collected here from data, or uploaded as gradients.

    statistics.safetensors     `absolute:NAME`  float32, the tensor's shape   sum over samples of |g|
                               `square:NAME`    float32, the tensor's shape   sum over samples of g^2
                               `inputs:NAME`    float32 [I], linear layers    sum over tokens of x_i^2 of the layer's input
    uploaded gradients         `NAME`           any float, the tensor's shape g, of which |g| and g^2 are taken

Sums are of |g| and g^2 *of each sample*: a sum of signed gradients cancels out. Files are mapped, one tensor is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from app.errors import InputRefused
from app.limits import Limits, shown
from app.targets import FLOATING
from worker.checkpoint import Checkpoint
from worker.formats.safetensors_file import SafetensorsFile

ABSOLUTE, SQUARE, INPUTS = PREFIXES = ("absolute:", "square:", "inputs:")
_PART = 1 << 20
_LARGEST = math.sqrt(torch.finfo(torch.float32).max)  # its square is still a float32


class Statistics:
    """Made by `open`. Everything is float32; `absolute` and `square` are >= 0.

    Attributes:
        names: tensors that have statistics.
        uploaded: plain gradients of a user, so that g^2 is the square of one sum and there are no `inputs`.
    """

    def __init__(self, files: Iterable[SafetensorsFile]):
        self._owner: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.specs:
                if self._owner.setdefault(name, file) is not file:
                    raise InputRefused("gradients-mismatch", f"tensor {shown(name)} is in more than one file of the gradients; keep one of them")
        self.uploaded = not all(name.startswith(PREFIXES) for name in self._owner)
        self.names = frozenset(self._owner if self.uploaded else (n.removeprefix(SQUARE) for n in self._owner if n.startswith(SQUARE)))

    @classmethod
    def open(cls, path: Path, limits: Limits = Limits()) -> Statistics:
        """Args: path: a safetensors file, or a folder with one or several (shards of one model).

        Raises:
            InputRefused: unsupported-format where there is none; what their headers are refused for; gradients-mismatch for a name that is in two of them.
        """
        path = Path(path)
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*.safetensors") if p.is_file())
        if not found:
            raise InputRefused("unsupported-format", "the gradients hold no .safetensors file; upload one whose tensors have the names and shapes of the model's")
        return cls(SafetensorsFile(p, p.name, limits) for p in found)

    def absolute(self, name: str) -> torch.Tensor:
        """Sum over samples of |g|."""
        return self._load(ABSOLUTE, name).abs()

    def square(self, name: str) -> torch.Tensor:
        """Sum over samples of g^2: the diagonal of the empirical Fisher information, up to a factor common to all tensors."""
        loaded = self._load(SQUARE, name)
        return loaded.square() if self.uploaded else loaded

    def inputs(self, name: str) -> torch.Tensor | None:
        """[I]: sum over the tokens of all samples of x_i^2, x the input of the linear layer whose weight this is; None where it was not seen."""
        return self._load(INPUTS, name) if INPUTS + name in self._owner and not self.uploaded else None

    def shape(self, name: str) -> tuple[int, ...]:
        key = self._key(SQUARE, name)
        return self._owner[key].specs[key].shape

    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What the files hold: name there -> safetensors' dtype name and shape."""
        return {key: (file.specs[key].dtype, file.specs[key].shape) for key, file in self._owner.items()}

    def parts(self, name: str) -> list[tuple[str, torch.Tensor]]:
        """All that there is of a tensor, by prefix ("" for an uploaded gradient)."""
        prefixes = ("",) if self.uploaded else PREFIXES
        return [(prefix, self._load(prefix, name)) for prefix in prefixes if prefix + name in self._owner]

    def _key(self, prefix: str, name: str) -> str:
        return name if self.uploaded else prefix + name

    def _load(self, prefix: str, name: str) -> torch.Tensor:
        key = self._key(prefix, name)
        if key not in self._owner:
            raise _mismatch(f"there are no gradients of tensor {shown(name)}; add them, or leave the tensor out with `ignore`")
        return self._owner[key].load(key).float()


def beside(spec: dict) -> Statistics | None:
    """What a job brings, uploaded before computed; None when nothing of it is there. Raises: see `Statistics.open`."""
    paths = spec.get("beside") or {}
    path = paths.get("gradients") or paths.get("statistics")
    return Statistics.open(Path(path)) if path else None


def check(statistics: Statistics, checkpoint: Checkpoint, needed: Iterable[str]) -> frozenset[str]:
    """Hold statistics against the model that they are to be of.

    Args:
        needed: tensors that a step weighs by them; others may be missing.

    Returns:
        those of `needed` that no gradient reaches (zero everywhere): they rank nothing, and are to be treated by other means.

    Raises:
        InputRefused: gradients-mismatch (a name that the model lacks, a needed one that is missing, a shape or dtype), gradients-not-finite,
            gradients-zero (all that is needed is zero). Each names the tensor.
    """
    needed = list(needed)
    known = checkpoint.tensors | {alias: checkpoint.tensors[name] for alias, name in checkpoint.aliases.items()}
    if unknown := sorted(statistics.names - known.keys()):
        some = ", ".join(map(shown, unknown[:3]))
        example = shown(next(iter(checkpoint.tensors)))
        raise _mismatch(f"{len(unknown)} of {len(statistics.names)} tensors are not in the model ({some}); use the names of its weights file, such as {example}")
    if missing := [name for name in needed if name not in statistics.names]:
        some = ", ".join(map(shown, missing[:3]))
        raise _mismatch(f"{len(missing)} of {len(needed)} tensors that the recipe ranks by gradients have none ({some}); add them, or leave them out with `ignore`")
    for key, (dtype, _) in statistics.stored().items():
        if dtype not in FLOATING:
            raise _mismatch(f"the gradients of {shown(key)} are {dtype}; one of {', '.join(FLOATING)} is needed")
    for name in statistics.names:
        if (got := statistics.shape(name)) != known[name].shape:
            raise _mismatch(f"the gradients of {shown(name)} have shape {list(got)}, the tensor has {list(known[name].shape)}; gradients of this model are needed")
    zero = {name for name in sorted(statistics.names) if not _checked(statistics, name)}
    if needed and zero.issuperset(needed):
        raise InputRefused("gradients-zero", f"all gradients of the {len(needed)} tensors that the recipe ranks by them are zero, {shown(needed[0])} first; "
                           "take them where the loss is not at rest, before an optimizer clears them")  # fmt: skip
    return frozenset(zero.intersection(needed))


def _mismatch(detail: str) -> InputRefused:
    return InputRefused("gradients-mismatch", detail)


def _checked(statistics: Statistics, name: str) -> bool:
    """Whether a tensor's gradients are other than zero, once they are found to be finite, and their squares too."""
    bound = _LARGEST if statistics.uploaded else math.inf
    parts, other = statistics.parts(name), False
    if not statistics.uploaded and parts[0][0] != ABSOLUTE:
        raise _mismatch(f"of {shown(name)} there is {SQUARE} without {ABSOLUTE}; upload plain gradients under the model's names")
    for prefix, whole in parts:
        if prefix == INPUTS and (whole.ndim != 1 or len(whole) not in statistics.shape(name)[:2]):
            raise _mismatch(f"{prefix}{shown(name)} has shape {list(whole.shape)}; one value for each input is needed")
        for part in whole.reshape(-1).split(_PART):
            top = part.abs().max().item() if len(part) else 0.0
            if not top < bound:  # NaN is not
                what = f"values up to {top:.2g}, whose squares leave float32" if math.isfinite(top) else "NaN or infinite values"
                raise InputRefused("gradients-not-finite", f"the gradients of {shown(name)} hold {what}; leave out the samples that overflow, or scale the loss down")
            if prefix and bool((part < 0).any()):
                raise _mismatch(f"{prefix}{shown(name)} holds negative values; upload plain gradients under the model's names")
            other |= prefix != INPUTS and top > 0
    return other
