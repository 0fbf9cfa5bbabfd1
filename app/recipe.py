"""What a user asks for: job specs, recipes, one params class per method, presets.

A typed params class selects its method (`worker.methods.METHODS` is keyed by these classes). Everything is strict: no coercion, no unknown
fields, no non-finite numbers. Wrong input raises `InvalidJobSpec` (or a child of it) with a JSON pointer into the request's own body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, Union

import re2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.errors import ConflictingSteps, InvalidJobSpec, InvalidPattern, MalformedJson, NoTensorMatched

FORMATS = ("packed", "safetensors", "compressed-tensors", "original")
MAX_STEPS = 8


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, str_max_length=4096)


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
METHOD_NAMES = ("prune", "quantize", "lossless", "restore")


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


class Output(Strict):
    format: Literal["packed", "safetensors", "compressed-tensors", "original"]


class Gates(Strict):
    """Bounds that the result must keep; each is checked on the worst tensor, `max_bytes` on the sum of the output files."""

    max_relative_error: Annotated[float, Field(ge=0)] | None = None
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None


Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class JobSpec(Strict):
    """The body of `POST /v1/jobs`."""

    input: Id
    recipe: Recipe
    output: Output
    gates: Gates = Gates()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sanitize: Literal["report", "strip"]
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    tags: Annotated[dict[Tag, Tag], Field(max_length=20)] = {}


PRESETS: dict[str, dict] = {
    "lossless": {"steps": [{"method": "lossless"}]},
    "int8": {"steps": [{"method": "quantize", "num_bits": 8, "strategy": "channel", "activations": "dynamic"}]},
    "w8a16": {"steps": [{"method": "quantize", "num_bits": 8, "strategy": "channel"}]},
    "w4a16": {"steps": [{"method": "quantize", "num_bits": 4, "strategy": "group", "group_size": 128, "scale_search": "mse"}]},
    "fp8": {"steps": [{"method": "quantize", "num_bits": 8, "type": "float", "strategy": "channel", "activations": "dynamic"}]},
    "prune-50": {"steps": [{"method": "prune", "sparsity": 0.5}]},
    "prune-2:4": {"steps": [{"method": "prune", "mask_structure": "2:4"}]},
}

METHODS = {"prune": Prune, "quantize": Quantize, "lossless": Lossless, "restore": Restore}


def parse_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no duplicate keys, no NaN.

    Raises:
        MalformedJson: with the place.
    """

    def pairs(items):
        if len(out := dict(items)) != len(items):
            raise MalformedJson("An object has the same key twice.")
        return out

    def constant(name):
        raise MalformedJson(f"{name} is not JSON.")

    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as e:
        raise MalformedJson(f"The body is not JSON: {str(e)[:200]}") from None


def _problem(error: ValidationError, prefix: str) -> InvalidJobSpec:
    """The first error becomes the problem, all of them its `errors`."""
    found, patterned = [], False
    for e in error.errors(include_url=False, include_input=True):
        path = [p for p in e["loc"] if p not in METHOD_NAMES or not isinstance(p, str)]
        if e["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path.append("method")
        if field := (e.get("ctx") or {}).get("field"):
            path.append(field)
        pointer = prefix + "".join(f"/{str(p).replace('~', '~0').replace('/', '~1')}" for p in path)
        value = e.get("input")
        shown = "" if isinstance(value, (dict, list)) else f" (got {json.dumps(value, default=str)[:100]})"
        message = f"one of {', '.join(METHOD_NAMES)} is needed" if e["type"].startswith("union_tag") else e["msg"]
        found.append({"pointer": pointer, "detail": message + shown})
        patterned |= e["type"] == "pattern"
    cls = InvalidPattern if patterned else InvalidJobSpec
    return cls(found[0]["detail"], pointer=found[0]["pointer"], errors=found[:20])


def validate(cls: type[BaseModel], data: Any, prefix: str = ""):
    """`cls` from JSON-like data; pydantic's errors become one `InvalidJobSpec` with pointers."""
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as e:
        raise _problem(e, prefix) from None


def parse_recipe(data: Any, prefix: str = "/recipe") -> Recipe:
    """A recipe, with the rules that hold between its steps."""
    recipe = validate(Recipe, data, prefix)
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


def default_output(recipe: Recipe, has_config: bool) -> str:
    """A folder that loads as is where there is a Hugging Face config to put it beside, else the container that carries everything."""
    if recipe.kind == "restore":
        return "original"
    return "compressed-tensors" if has_config and recipe.step(Quantize) and not recipe.step(Lossless) else "packed"


def check_output(recipe: Recipe, output: str, has_config: bool) -> None:
    """Refuse an output format that cannot carry what the recipe makes.

    Raises:
        InvalidJobSpec: pointing at `/output/format`.
    """

    def refuse(why: str):
        raise InvalidJobSpec(why, pointer="/output/format")

    if (recipe.kind == "restore") != (output == "original"):
        refuse("restore writes format original, and nothing else does; choose one of packed, safetensors, compressed-tensors")
    if recipe.kind == "lossless" and output != "packed":
        refuse(f"lossless is carried by packed, not by {output}")
    if output == "compressed-tensors":
        if not recipe.step(Quantize):
            refuse("compressed-tensors carries quantized weights, and no step quantizes; choose packed or safetensors")
        if not has_config:
            refuse("compressed-tensors needs a config.json beside the weights: upload the whole folder, or choose packed")
        if any(q.type == "float" and q.strategy == "group" for q in recipe.step(Quantize)):
            refuse("compressed-tensors carries fp8 per tensor or channel, not per group; choose packed")
        if recipe.step(Lossless):
            refuse("compressed-tensors is read by other tools and cannot be entropy-coded; choose packed, or leave lossless out")
    if output == "safetensors" and recipe.step(Lossless):
        refuse("safetensors is read by other tools and cannot be entropy-coded; choose packed, or leave lossless out")


def parse_job(data: Any, has_config: bool = True) -> JobSpec:
    """The body of `POST /v1/jobs`, resolved: the preset unfolded, the output format and every default filled in.

    Args:
        data: parsed JSON.
        has_config: whether the input brings (or, as an archive, may bring) a config.json.
    """
    if not isinstance(data, dict):
        raise InvalidJobSpec("the body must be an object with input, and recipe or preset")
    data = dict(data)
    if ("preset" in data) == ("recipe" in data):
        raise InvalidJobSpec("give either recipe or preset", pointer="/recipe")
    if "preset" in data:
        name = data.pop("preset")
        if not isinstance(name, str) or name not in PRESETS:
            raise InvalidJobSpec(f"{json.dumps(name, default=str)[:100]} is none of the presets: {', '.join(PRESETS)}", pointer="/preset")
        data["recipe"] = PRESETS[name]
    recipe = parse_recipe(data["recipe"])
    data["recipe"] = recipe.model_dump(mode="json")
    data.setdefault("output", {"format": default_output(recipe, has_config)})
    data.setdefault("sanitize", "report" if recipe.kind == "lossless" else "strip")
    spec = validate(JobSpec, data)
    check_output(recipe, spec.output.format, has_config)
    return spec


def matcher(targeted: Targeted):
    """A predicate on tensor names: matched by a target and by no ignore."""
    import fnmatch

    def one(pattern: str):
        if pattern.startswith("re:"):
            expression = re2.compile(pattern[3:])
            return lambda name: expression.fullmatch(name) is not None
        return lambda name: fnmatch.fnmatchcase(name, pattern)

    targets, ignore = [one(p) for p in targeted.targets], [one(p) for p in targeted.ignore]
    return lambda name: any(t(name) for t in targets) and not any(i(name) for i in ignore)


def check_matched(recipe: Recipe, names: Collection[str]) -> None:
    """Refuse a step whose patterns match none of a model's tensor names.

    Raises:
        NoTensorMatched: with a pointer to the step's targets.
    """
    for i, step in enumerate(recipe.steps):
        if isinstance(step, Targeted) and not any(map(matcher(step), names)):
            some = ", ".join(sorted(names)[:5]) or "none"
            raise NoTensorMatched(f"step {i} ({step.method}) matches none of the {len(names)} tensors; there are {some}", pointer=f"/recipe/steps/{i}/targets")
