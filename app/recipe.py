"""Recipes: the steps of a job in their order, and the rules that hold between them. The steps themselves are in `app.steps`, by the kind of the input.

Everything is strict: no coercion, no unknown fields, no non-finite numbers. Wrong input raises `InvalidJobSpec` (or a child of it) with a JSON
pointer into the request's own body.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Union

from pydantic import Field, create_model

from app.errors import ConflictingSteps, InvalidJobSpec, NoTensorMatched
from app.patterns import Targeted, matcher, wild
from app.steps import METHODS, STEPS, Auto, Lossless, Prune, Quantize, Restore, Step
from app.strict import Strict, validate

__all__ = ["METHODS", "RECIPES", "STEPS", "Auto", "Lossless", "Prune", "Quantize", "Recipe", "Restore", "Step", "Targeted", "check_matched", "kind_of", "matcher", "narrows", "parse_recipe", "recipe_of"]

MAX_STEPS = 512  # a searched recipe has one for each choice, and names the tensors; what patterns cost is bounded below
MAX_MATCHES = 2_000_000  # of patterns with wildcards against names, which each take about a microsecond


class Recipe(Strict):
    steps: Annotated[list[Step], Field(min_length=1, max_length=MAX_STEPS)]

    def step(self, cls: type) -> list:
        """The steps of one params class, in order."""
        return [s for s in self.steps if isinstance(s, cls)]

    @property
    def needs_gradients(self) -> bool:
        """Whether a step asks how the loss feels each weight, by uploaded gradients or from data, and no training before it has seen that."""
        asking = [i for i, s in enumerate(self.steps) if getattr(s, "needs_gradients", False)]
        return any(not getattr(self.steps[i], "recover", None) or not any(getattr(s, "recover", None) for s in self.steps[:i]) for i in asking)

    @property
    def recovers(self) -> bool:
        """Whether a step trains what it has changed, which takes data."""
        return any(getattr(s, "recover", None) for s in self.steps)

    @property
    def searches(self) -> bool:
        """Whether the steps are still to be found, by a search of the job's own."""
        return any(isinstance(s, Auto) for s in self.steps)

    @property
    def trains(self) -> bool:
        """Whether a step makes something by training for a time of its own, from which another attempt goes on."""
        return any(getattr(s, "trains", False) for s in self.steps)

    @property
    def stand_in(self) -> Recipe:
        """What is like the recipe that a search will find, for what has to be known before it: the tensors, the memory."""
        found = [Quantize(method="quantize", mapping="gradient", num_bits=4, targets=s.targets, ignore=s.ignore) if isinstance(s, Auto) else s for s in self.steps]
        return Recipe(steps=found)

    @property
    def reconstructs(self) -> bool:
        """Whether a step goes through the model block by block, by what goes into each layer, which takes data."""
        return any(getattr(s, "reconstructs", False) for s in self.steps)

    @property
    def kind(self) -> str:
        """`restore`, `lossless` (no step changes a value) or `lossy`."""
        if any(isinstance(s, Restore) for s in self.steps):
            return "restore"
        return "lossless" if all(isinstance(s, Lossless) or getattr(s, "keeps_values", False) for s in self.steps) else "lossy"


def _of_kind(kind: str) -> type[Recipe]:
    classes = tuple(STEPS[kind].values())
    return create_model(f"{kind.capitalize()}Recipe", __base__=Recipe, steps=(Annotated[list[Annotated[Union[classes], Field(discriminator="method")]], Field(min_length=1, max_length=MAX_STEPS)], ...))


RECIPES: dict[str, type[Recipe]] = {"model": Recipe} | {kind: _of_kind(kind) for kind in STEPS if kind != "model"}
"""By the kind of the input."""


def narrows(step: Step) -> bool:
    """Whether a step makes tensors smaller (`app.width`); that goes before all else."""
    return isinstance(step, Prune) and step.narrows


def recipe_of(spec: dict) -> Recipe:
    """Of a resolved job spec as JSON."""
    return parse_recipe(spec["recipe"], kind=spec.get("kind", "model"))


def kind_of(data: Any) -> str | None:
    """The one kind of input that has all the methods of a recipe as it was given; None where there are several or none."""
    steps = data.get("steps") if isinstance(data, dict) else None
    named = {str(s.get("method")) for s in steps if isinstance(s, dict)} if isinstance(steps, list) else set()
    fitting = [kind for kind, methods in STEPS.items() if named and named <= methods.keys()]
    return fitting[0] if len(fitting) == 1 else None


def _check_kind(data: Any, prefix: str, kind: str) -> None:
    """Raises: InvalidJobSpec: a step is of another kind of input; it says what this one takes."""
    steps = data.get("steps") if isinstance(data, dict) else None
    for i, step in enumerate(steps if isinstance(steps, list) else ()):
        name = step.get("method") if isinstance(step, dict) else None
        others = [k for k, methods in STEPS.items() if isinstance(name, str) and name in methods]
        if others and kind not in others:
            takes = f"{name} is for input of kind {' or '.join(others)}, and this is of kind {kind}, which takes {', '.join(STEPS[kind])}"
            raise InvalidJobSpec(f"{takes}; the kind is chosen at the upload (kind={others[0]})", pointer=f"{prefix}/steps/{i}/method")


def parse_recipe(data: Any, prefix: str = "/recipe", kind: str = "model") -> Recipe:
    """A recipe for input of a kind, with the rules that hold between its steps."""
    _check_kind(data, prefix, kind)
    methods = STEPS[kind]
    recipe = validate(RECIPES[kind], data, prefix, methods)
    if recipe.recovers and recipe.reconstructs:
        at = next(i for i, s in enumerate(recipe.steps) if getattr(s, "reconstructs", False))
        raise ConflictingSteps("gptq, awq, autoround, wanda and sparsegpt go layer by layer, and recover trains all layers at once: use one of them", pointer=f"{prefix}/steps/{at}")
    _one_pass(recipe, prefix)
    order = [list(methods).index(s.method) for s in recipe.steps]
    named: dict[tuple, set[str]] = {}
    for i, step in enumerate(recipe.steps):
        pointer = f"{prefix}/steps/{i}"
        others = [s for s in recipe.steps if s is not step and s.method not in getattr(step, "after", ())]
        if (isinstance(step, Restore | Auto) or getattr(step, "alone", False)) and others:
            raise ConflictingSteps(f"{step.method} stands alone in a recipe", pointer=pointer)
        if i and order[i] < order[i - 1]:
            raise ConflictingSteps(f"{step.method} comes before {recipe.steps[i - 1].method}: the order is {', '.join(m for m in methods if m not in ('auto', 'restore'))}", pointer=pointer)
        if narrows(step) and not all(map(narrows, recipe.steps[:i])):
            raise ConflictingSteps("ffn-width comes first: it changes the shapes that other steps work on", pointer=pointer)
        if isinstance(step, Targeted):
            earlier = named.setdefault((type(step), narrows(step)), set())
            if not earlier.isdisjoint(step.targets):
                raise ConflictingSteps(f"two {step.method} steps name the same targets; give each its own", pointer=pointer)
            earlier.update(step.targets)
    return recipe


def _one_pass(recipe: Recipe, prefix: str) -> None:
    """Steps that reconstruct do so in one pass over the model.

    Raises:
        ConflictingSteps: pointing at what is told otherwise than before.
    """
    told: dict[str, Any] = {}
    for i, step in enumerate(recipe.steps):
        for field in ("sequential", "damping") if getattr(step, "reconstructs", False) else ():
            value = getattr(step, field)
            if value is not None and told.setdefault(field, value) != value:
                raise ConflictingSteps(f"{field} is {told[field]} in an earlier step; gptq, awq, autoround, wanda and sparsegpt go through the model once, so give one value", pointer=f"{prefix}/steps/{i}/{field}")


def check_matched(recipe: Recipe, names: Collection[str]) -> None:
    """Refuse a step whose patterns match none of a model's tensor names.

    Raises:
        NoTensorMatched: with a pointer to the step's targets. InvalidJobSpec: so many patterns against so many names would take too long.
    """
    count = sum(map(wild, (p for step in recipe.steps if isinstance(step, Targeted) for p in (*step.targets, *step.ignore))))
    if count > 1 and count * len(names) > MAX_MATCHES:
        why = f"the steps have {count} patterns with wildcards; against {len(names)} tensors at most {max(1, MAX_MATCHES // len(names))} are taken"
        raise InvalidJobSpec(f"{why}; names without wildcards do not count", pointer="/recipe/steps")
    for i, step in enumerate(recipe.steps):
        if isinstance(step, Targeted) and not any(map(matcher(step), names)):
            some = ", ".join(sorted(names)[:5]) or "none"
            raise NoTensorMatched(f"step {i} ({step.method}) matches none of the {len(names)} tensors; there are {some}", pointer=f"/recipe/steps/{i}/targets")
