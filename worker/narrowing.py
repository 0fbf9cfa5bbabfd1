"""Feed-forward layers made narrower: the checkpoint as it is without the hidden units that a step takes out. What comes after sees no other model.

A unit's score is the sum of its saliencies: over its rows in the weights up, its entry in their bias, and its column in the weight down. Of F units the
floor(sparsity * F) lowest go, ties by lowest index. Gradients of biases count where there are any (uploaded ones may have them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from app.errors import InputRefused
from app.limits import shown
from app.recipe import Prune, Recipe
from app.targets import treat
from app.width import Cut, Layer, Narrowing, narrowing
from worker.checkpoint import Checkpoint
from worker.devices import CPU
from worker.encoded import Encoded
from worker.kernels import saliency, select, units
from worker.report import errors
from worker.statistics import INPUTS, Statistics, check


@dataclass(frozen=True)
class Shrunk:
    """A tensor that has lost units: `places` (int64, ascending) along `cut.side.dim` are what stays of it; `load` gives it as it was."""

    cut: Cut
    places: torch.Tensor
    load: Callable[[], torch.Tensor]

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """What stays of a tensor of the old shape, contiguous."""
        return whole.index_select(self.cut.side.dim, self.places.to(whole.device))

    def row(self, told: dict, encoded: Encoded) -> dict:
        """Its line of the report, given the one of what stays: shapes and bytes as it was, and errors that count what is gone as zeros."""
        whole, spec = self.load(), self.cut.spec
        placed = torch.zeros_like(whole).index_copy_(self.cut.side.dim, self.places, encoded.dense)
        kept = {k: v for k, v in told.items() if k != "reason"} | errors(whole, placed)
        kept |= {"shape": list(spec.shape), "shape_after": list(self.cut.shape), "bytes_before": spec.nbytes}
        return kept | {"action": "quantized" if encoded.quantized is not None else "pruned", "units": {"before": self.cut.before, "after": self.cut.after}}


class CutStatistics(Statistics):
    """Statistics of the model as it was, for the one that is left."""

    def __init__(self, whole: Statistics, shrunk: Mapping[str, Shrunk]):
        self.whole, self.shrunk = whole, shrunk
        self.names, self.uploaded = whole.names, whole.uploaded

    def _of(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        return self.shrunk[name].of(whole) if name in self.shrunk else whole

    def absolute(self, name: str) -> torch.Tensor:
        return self._of(name, self.whole.absolute(name))

    def square(self, name: str) -> torch.Tensor:
        return self._of(name, self.whole.square(name))

    def inputs(self, name: str) -> torch.Tensor | None:
        found = self.whole.inputs(name)
        inner = found is not None and name in self.shrunk and self.shrunk[name].cut.side.inner
        return found.index_select(0, self.shrunk[name].places) if inner else found

    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return self.whole.stored()

    def parts(self, name: str) -> list[tuple[str, torch.Tensor]]:
        return [(p, self.inputs(name) if p == INPUTS else self._of(name, t)) for p, t in self.whole.parts(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shrunk[name].cut.shape if name in self.shrunk else self.whole.shape(name)


def narrow(
    checkpoint: Checkpoint, recipe: Recipe, scratch: Path, statistics: Statistics | None = None, device: torch.device = CPU
) -> tuple[Checkpoint, Statistics | None, dict | None]:
    """The checkpoint that a recipe's `ffn-width` steps leave, the statistics that go with it, and what the report says of it; the same and None where
    there is no such step. Its config.json is a new file in `scratch`; closing it closes the original.

    Raises:
        InputRefused: non-finite, and what `app.width.narrowing` and `worker.statistics.check` raise.
    """
    found = narrowing(checkpoint, recipe)
    if found is None:
        return checkpoint, statistics, None
    if needed := [n for layer in found.layers if layer.step.needs_gradients for n in layer.feed_forward.weights]:
        check(statistics or Statistics([]), checkpoint, needed)
    notes: list[str] = []
    places: dict[str, torch.Tensor] = {}
    for layer in found.layers:
        kept = _kept(checkpoint, layer, statistics, device, notes)
        places |= {s.name: units.places(kept, layer.feed_forward.units, s.blocks) for s in layer.feed_forward.sides}
    shrunk = {name: Shrunk(cut, places[name], lambda name=name: checkpoint.load(name)) for name, cut in found.cuts.items()}

    def load(name: str) -> torch.Tensor:
        whole = checkpoint.load(name)
        return shrunk[name].of(whole) if name in shrunk else whole

    config = scratch / "narrowed" / "config.json"
    config.parent.mkdir(exist_ok=True)
    config.write_bytes(found.text)
    left = replace(
        checkpoint, files=checkpoint.files | {found.path: config}, tensors=found.tensors(checkpoint), config=found.config, load=load,
        segments={}, offsets={}, shrunk=shrunk, whole=checkpoint, notes=[*checkpoint.notes, *notes],
    )  # fmt: skip
    return left, statistics and CutStatistics(statistics, shrunk), _told(checkpoint, found)


def _kept(checkpoint: Checkpoint, layer: Layer, statistics: Statistics | None, device: torch.device, notes: list[str]) -> torch.Tensor:
    """The units that stay: int64, ascending."""
    scores = _scores(checkpoint, layer, layer.step, statistics, device)
    if layer.step.needs_gradients and not bool(scores.any()):
        notes.append(f"no gradient reaches {layer.feed_forward.name}: its units are ranked by magnitude, not by {layer.step.saliency}")
        scores = _scores(checkpoint, layer, layer.step.model_copy(update={"saliency": "magnitude"}), None, device)
    dropped = select.lowest_per_row(scores[None, :], layer.feed_forward.units - layer.after)[0]
    return (~dropped).nonzero()[:, 0].cpu()


def _scores(checkpoint: Checkpoint, layer: Layer, step: Prune, statistics: Statistics | None, device: torch.device) -> torch.Tensor:
    """Of each unit, [F] float64."""
    kind = saliency.statistic(step.saliency, step.norm)
    total = torch.zeros(layer.feed_forward.units, dtype=torch.float64, device=device)
    for side in layer.feed_forward.sides:
        w = checkpoint.read(side.name).to(device)
        if not bool(torch.isfinite(w).all()):
            raise InputRefused("non-finite", f"{shown(side.name)} holds NaN or infinite values, so the units of its layer cannot be ranked; ignore it, or mend it")
        if kind is not None and side.name not in statistics.names and w.ndim == 1:
            continue
        g = None if kind is None else getattr(statistics, kind)(side.name).to(device)
        total += units.sums(w, g, step.saliency, step.norm, side.dim, side.blocks)
    return total


def _told(checkpoint: Checkpoint, found: Narrowing) -> dict:
    """What the report says of the whole model. Parameters are counted without those that are tied."""
    before = sum(_elements(s.shape) for s in checkpoint.tensors.values())
    gone = sum(_elements(c.spec.shape) - _elements(c.shape) for c in found.cuts.values())
    widths = {".".join(f.place): {"before": f.units, "after": after} for f, _, after in found.layers}
    return {"layers": len(found.layers), "config": widths, "parameters_before": before, "parameters_after": before - gone}


def reached(checkpoint: Checkpoint, recipe: Recipe) -> frozenset[str]:
    """What training moves once a layer is narrower: all weights that a step of the same targets would prune, since any of them can make up for what is gone."""
    names: set[str] = set()
    for step in (s for s in recipe.step(Prune) if s.narrows and s.recover):
        every = Recipe.model_construct(steps=[step.model_copy(update={"mask_structure": "unstructured"})])
        names |= {name for name, t in treat(checkpoint.tensors, checkpoint.config, every, "packed").items() if t.steps}
    return frozenset(names)


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
