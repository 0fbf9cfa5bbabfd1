"""Pruning with `mask_structure: ffn-width`: hidden units of feed-forward layers go, and with them rows, columns and biases, so that tensors and config.json
shrink. Which units is for the worker to say; how many, and what shapes are left, is said here, so that an estimate knows it too.

Every layer keeps as many units as the others that share its number in config.json: all but floor(sparsity * units). Each chooses its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from app.compressed import config_path
from app.errors import ConflictingSteps, InvalidJobSpec, NoTensorMatched
from app.feed_forward import FeedForward, Side, by_place, find, kept
from app.outline import Model, Outline, TensorSpec
from app.recipe import Prune, Recipe, matcher, narrows
from app.targets import Treatment, treat


class Cut(NamedTuple):
    """A tensor that shrinks: `spec` as it was, `side` where its units lie, `units` before and after."""

    spec: TensorSpec
    side: Side
    before: int
    after: int

    @property
    def shape(self) -> tuple[int, ...]:
        """What is left."""
        return tuple(self.side.blocks * self.after if d == self.side.dim else n for d, n in enumerate(self.spec.shape))

    @property
    def left(self) -> TensorSpec:
        return replace(self.spec, shape=self.shape, nbytes=self.spec.nbytes // math.prod(self.spec.shape) * math.prod(self.shape))


class Layer(NamedTuple):
    """A feed-forward layer that a step makes narrower."""

    feed_forward: FeedForward
    step: Prune
    after: int


@dataclass(frozen=True)
class Narrowing:
    """What a recipe does to the widths of a model.

    Attributes:
        layers: in the order of the model's tensors.
        cuts: by the names of the tensors that shrink.
        config: the parsed config.json with the new numbers; it stands at `path`.
    """

    layers: list[Layer]
    cuts: dict[str, Cut]
    config: dict[str, Any]
    path: str

    @property
    def text(self) -> bytes:
        """Of config.json."""
        return (json.dumps(self.config, indent=2) + "\n").encode()

    def tensors(self, model: Model) -> dict[str, TensorSpec]:
        return {name: self.cuts[name].left if name in self.cuts else spec for name, spec in model.tensors.items()}


def narrowing(model: Model, recipe: Recipe) -> Narrowing | None:
    """None where no step of the recipe asks for it.

    Raises:
        InputRefused: see `app.feed_forward.find`. NoTensorMatched, InvalidJobSpec: targets that reach no layer, or some of those that share a number.
        ConflictingSteps: two steps reach one layer.
    """
    steps = [(i, step) for i, step in enumerate(recipe.steps) if narrows(step)]
    if not steps:
        return None
    found = find(model, f"/recipe/steps/{steps[0][0]}/mask_structure")
    chosen: dict[tuple[str, ...], Prune] = {}
    for i, step in steps:
        _choose(chosen, found, step, f"/recipe/steps/{i}")
    layers = [Layer(f, step, kept(f.units, step.sparsity)) for f in found if (step := chosen.get(f.place))]
    cuts = {s.name: Cut(model.tensors[s.name], s, f.units, after) for f, _, after in layers for s in f.sides}
    config = dict(model.config)
    for f, _, after in layers:
        *parts, field = f.place
        for part in parts:
            config[part] = dict(config[part])
        (config[parts[0]] if parts else config)[field] = after
    return Narrowing(layers, cuts, config, config_path(model))


def _choose(chosen: dict[tuple[str, ...], Prune], found: list[FeedForward], step: Prune, pointer: str) -> None:
    match, some = matcher(step), False
    for place, layers in by_place(found).items():
        reached = [layer for layer in layers if any(map(match, layer.weights))]
        if not reached:
            continue
        if len(reached) < len(layers):
            left = next(layer.name for layer in layers if layer not in reached)
            why = f"the step reaches {len(reached)} of {len(layers)} layers ({left} is not among them), and config.json has one width for all of them"
            raise InvalidJobSpec(f"{why} ({'.'.join(place)}); target all, or choose mask_structure channel", pointer=f"{pointer}/targets")
        if place in chosen:
            raise ConflictingSteps(f"two steps make {layers[0].name} narrower; give each its own targets", pointer=pointer)
        chosen[place], some = step, True
    if not some:
        names = ", ".join(layer.name for layer in found[:3])
        raise NoTensorMatched(f"the step reaches none of {len(found)} feed-forward layers ({names})", pointer=f"{pointer}/targets")


def narrow_outline(model: Outline, found: Narrowing) -> Outline:
    """The model as it will be. Where cut tensors lie in their files says nothing any more."""
    files = model.files | {found.path: len(found.text)}
    offsets = {name: at for name, at in model.offsets.items() if name not in found.cuts}
    return replace(model, files=files, tensors=found.tensors(model), offsets=offsets, config=found.config)


def treated(model: Outline, recipe: Recipe, output: str) -> tuple[Outline, dict[str, Treatment], Narrowing | None]:
    """The model as the steps that keep shapes find it, and what happens to every tensor.

    Raises: what `narrowing` and `app.targets.treat` raise.
    """
    found = narrowing(model, recipe)
    if found is None:
        return model, treat(model.tensors, model.config, recipe, output), None
    model = narrow_outline(model, found)
    return model, treat(model.tensors, model.config, recipe, output, found.cuts), found


Read = Callable[[str, int, int], bytes]


def reader(read: Read | None, found: Narrowing) -> Read | None:
    """`read` with the new config.json."""
    if read is None:
        return None
    return lambda path, begin, end: found.text[begin:end] if path == found.path else read(path, begin, end)
