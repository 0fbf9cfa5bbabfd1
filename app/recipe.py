"""Recipes: one params class per method, which selects it (`worker.methods.METHODS` is keyed by these classes), and the rules between steps.

Everything is strict: no coercion, no unknown fields, no non-finite numbers. Wrong input raises `InvalidJobSpec` (or a child of it) with a JSON
pointer into the request's own body.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, Union

import re2
from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.errors import ConflictingSteps, InvalidJobSpec, NoTensorMatched
from app.strict import Strict, validate

MAX_STEPS = 8
MAX_MATCHES = 2_000_000  # of patterns with wildcards against names, which each take about a microsecond
_WILD = frozenset("*?[")


def _pattern(value: str) -> str:
    """A glob on tensor names (`*`, `?`, `[...]`), or RE2 behind `re:` (linear time, so no pattern can hang a worker)."""
    if not value or len(value) > 256 or not value.isprintable():
        raise PydanticCustomError("pattern", "a pattern has 1 to 256 printable characters")
    if value.startswith("re:"):
        try:
            options = re2.Options()
            options.log_errors = False
            options.max_mem = 1 << 20
            re2.compile(value[3:], options)
        except re2.error as e:
            raise PydanticCustomError("pattern", "not an RE2 expression: {why}", {"why": str(e)[:200]}) from None
    elif re.search(r"[(){}\\^$|+]", value):
        raise PydanticCustomError("pattern", "a glob knows only * ? [...]; write a regular expression (RE2) behind 're:'")
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
Patterns = Annotated[list[Pattern], Field(max_length=1000)]


class Targeted(Strict):
    """Which tensors a step works on. `ignore` wins; a pattern is matched against the whole tensor name."""

    targets: Annotated[Patterns, Field(min_length=1)] = ["*"]
    ignore: Patterns = []


class Prune(Targeted):
    """Set the least salient weights to zero.

    `norm` decides how saliency is summed over the members of a block, an N:M candidate or a channel; for unstructured magnitude pruning L1 and
    L2 give one and the same mask. With `mask_structure: "N:M"`, N of M consecutive inputs are kept and the sparsity follows from it.
    """

    method: Literal["prune"]
    saliency: Literal["magnitude"] = "magnitude"
    norm: Literal["l1", "l2"] = "l2"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mask_structure: Annotated[str, StringConstraints(max_length=40)] = "unstructured"
    scope: Literal["row", "tensor", "global"] = "row"

    @model_validator(mode="after")
    def _structure(self):
        kind, a, b = self.structure
        if kind == "n:m" and "sparsity" in self.model_fields_set and abs(self.sparsity - (1 - a / b)) > 1e-9:
            raise PydanticCustomError("sparsity", "mask_structure {s} fixes the sparsity at {v}; leave it out", {"s": self.mask_structure, "v": 1 - a / b, "field": "sparsity"})
        return self

    @property
    def structure(self) -> tuple[str, int, int]:
        """`("unstructured", 1, 1)`, `("n:m", n, m)`, `("block", rows, columns)` or `("channel", 1, 0)`."""
        if self.mask_structure == "unstructured":
            return "unstructured", 1, 1
        if self.mask_structure == "channel":
            return "channel", 1, 0
        if m := re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", self.mask_structure):
            n, total = int(m[1]), int(m[2])
            if n < total:
                return "n:m", n, total
        if m := re.fullmatch(r"block:([1-9]\d{0,3})x([1-9]\d{0,3})", self.mask_structure):
            return "block", int(m[1]), int(m[2])
        raise PydanticCustomError(
            "mask_structure",
            "{value} is none of: unstructured, N:M (1 <= N < M <= 9999, e.g. 2:4), block:RxC (e.g. block:4x4), channel",
            {"value": self.mask_structure, "field": "mask_structure"},
        )


class Quantize(Targeted):
    """Map weights to levels at equal distance: codes of `num_bits` and scale factors per tensor, channel (row) or group of inputs.

    `type: float` is fp8 (e4m3) and needs 8 bits. `scale_search: mse` tries a grid of signed scales with least-squares refinement.
    `activations: dynamic` declares that a loader shall quantize activations per token at run time (W8A8); it changes no weight.
    """

    method: Literal["quantize"]
    mapping: Literal["uniform"] = "uniform"
    num_bits: Annotated[int, Field(ge=2, le=8)]
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: Literal["tensor", "channel", "group"] = "channel"
    group_size: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    scale_search: Literal["absmax", "mse"] = "absmax"
    activations: Literal["none", "dynamic"] = "none"
    strict: bool = False

    @model_validator(mode="before")
    @classmethod
    def _strategy(cls, data: Any):
        if isinstance(data, dict):
            if data.get("group_size", 0) is None and "group_size" in data and data.get("strategy") == "group":
                raise PydanticCustomError("group_size", "null is not a group size", {"field": "group_size"})
            if "group_size" in data and "strategy" not in data and data["group_size"] is not None:
                data = data | {"strategy": "group"}
            if data.get("strategy") == "group" and "group_size" not in data:
                data = data | {"group_size": 128}
        return data

    @model_validator(mode="after")
    def _combination(self):
        def refuse(field: str, text: str):
            raise PydanticCustomError(field, text, {"field": field})

        if self.type == "float" and self.num_bits != 8:
            refuse("num_bits", "type float has 8 bits (e4m3) here; for other widths choose type int")
        if self.type == "float" and not self.symmetric:
            refuse("symmetric", "type float is symmetric; asymmetric needs type int")
        if self.strategy != "group" and self.group_size is not None:
            refuse("group_size", "group_size goes with strategy group only")
        if self.activations == "dynamic" and (self.num_bits != 8 or self.strategy == "group" or not self.symmetric):
            refuse("activations", "dynamic activations go with 8 symmetric bits per tensor or channel")
        return self


class Lossless(Targeted):
    """Entropy-code tensors without changing a bit. Alone in a recipe it keeps whole files, so that `restore` gives them back byte for byte."""

    method: Literal["lossless"]


class Restore(Strict):
    """Turn a packed or compressed artifact back into the original files, names, shapes and dtypes."""

    method: Literal["restore"]


Step = Annotated[Union[Prune, Quantize, Lossless, Restore], Field(discriminator="method")]
METHODS = {"prune": Prune, "quantize": Quantize, "lossless": Lossless, "restore": Restore}


class Recipe(Strict):
    steps: Annotated[list[Step], Field(min_length=1, max_length=MAX_STEPS)]

    def step(self, cls: type) -> list:
        """The steps of one params class, in order."""
        return [s for s in self.steps if isinstance(s, cls)]

    @property
    def kind(self) -> str:
        """`restore`, `lossless` (no step changes a value) or `lossy`."""
        kinds = {type(s) for s in self.steps}
        return "restore" if Restore in kinds else "lossless" if kinds == {Lossless} else "lossy"


def parse_recipe(data: Any, prefix: str = "/recipe") -> Recipe:
    """A recipe, with the rules that hold between its steps."""
    recipe = validate(Recipe, data, prefix, METHODS)
    order = [list(METHODS.values()).index(type(s)) for s in recipe.steps]
    for i, step in enumerate(recipe.steps):
        pointer = f"{prefix}/steps/{i}"
        if isinstance(step, Restore) and len(recipe.steps) > 1:
            raise ConflictingSteps("restore stands alone in a recipe", pointer=pointer)
        if i and order[i] < order[i - 1]:
            raise ConflictingSteps(f"{step.method} comes before {recipe.steps[i - 1].method}: the order is prune, quantize, lossless", pointer=pointer)
        for earlier in recipe.steps[:i]:
            if type(earlier) is type(step) and set(earlier.targets) & set(step.targets):
                raise ConflictingSteps(f"two {step.method} steps name the same targets; give each its own", pointer=pointer)
    return recipe


def matcher(targeted: Targeted):
    """A predicate on tensor names: matched by a target and by no ignore."""
    targets, ignore = _any(targeted.targets), _any(targeted.ignore)
    return lambda name: targets(name) and not ignore(name)


def _any(patterns: list[str]):
    """A predicate: matched by one of the patterns. Names without a wildcard are looked up."""
    plain = frozenset(p for p in patterns if not _wild(p))
    wild = [re2.compile(p[3:]).fullmatch if p.startswith("re:") else re.compile(fnmatch.translate(p)).match for p in patterns if _wild(p)]
    return lambda name: name in plain or any(match(name) for match in wild)


def _wild(pattern: str) -> bool:
    return pattern.startswith("re:") or not _WILD.isdisjoint(pattern)


def check_matched(recipe: Recipe, names: Collection[str]) -> None:
    """Refuse a step whose patterns match none of a model's tensor names.

    Raises:
        NoTensorMatched: with a pointer to the step's targets. InvalidJobSpec: so many patterns against so many names would take too long.
    """
    wild = sum(map(_wild, (p for step in recipe.steps if isinstance(step, Targeted) for p in (*step.targets, *step.ignore))))
    if wild > 1 and wild * len(names) > MAX_MATCHES:
        why = f"the steps have {wild} patterns with wildcards; against {len(names)} tensors at most {max(1, MAX_MATCHES // len(names))} are taken"
        raise InvalidJobSpec(f"{why}; names without wildcards do not count", pointer="/recipe/steps")
    for i, step in enumerate(recipe.steps):
        if isinstance(step, Targeted) and not any(map(matcher(step), names)):
            some = ", ".join(sorted(names)[:5]) or "none"
            raise NoTensorMatched(f"step {i} ({step.method}) matches none of the {len(names)} tensors; there are {some}", pointer=f"/recipe/steps/{i}/targets")
