"""The body of `POST /v1/jobs`: a recipe or a preset, what to make of it, and what must hold of the result."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, create_model
from pydantic_core import PydanticCustomError

from app import budget as budgets
from app.addresses import check_url
from app.budget import Budget
from app.errors import InvalidJobSpec
from app.presets import BY_KIND, PRESETS, kind_of_preset
from app.recipe import RECIPES, STEPS, Lossless, Prune, Quantize, Recipe, narrows, parse_recipe
from app.strict import Id, Strict, validate

COMPANIONS = ("gradients", "calibration", "labels", "codec")
"""What a job may bring beside its input, each an artifact."""
FORMATS = ("packed", "safetensors", "compressed-tensors", "pt2", "original")
"""What is made of models."""
OUTPUTS = {"model": FORMATS, "images": ("images", "codec", "figures", "original"), "dataset": ("dataset", "original")}
"""Output formats by the kind of the input, the default of all but models first."""
OTHER_GATES = ("max_bytes",)
"""Gates of results that are no models; the others are about tensors."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _plain(value: str) -> str:
    """One line of text that every database keeps and finds again: PostgreSQL has no U+0000."""
    if found := _CONTROL.search(value):
        raise PydanticCustomError("control", "a tag has no control characters, and here is a U+{code}", {"code": f"{ord(found[0]):04X}"})
    return value


Tag = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_plain)]

class Output(Strict):
    format: Literal["packed", "safetensors", "compressed-tensors", "pt2", "images", "codec", "figures", "dataset", "original"]


class Gates(Strict):
    """Bounds that the result must keep: `max_bytes` on the sum of its files, `max_relative_error` on the worst tensor, and, on what the reloaded model says
    to the calibration data, `min_cosine` (without such data on the worst tensor), `max_kl` (nats, mean over positions) and `min_accuracy` (with labels)."""

    max_relative_error: Annotated[float, Field(ge=0)] | None = None
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    max_kl: Annotated[float, Field(ge=0)] | None = None
    min_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None


class Webhook(Strict):
    """Who is to be told of the job's end."""

    url: str


class JobSpec(Strict):
    """The body of `POST /v1/jobs`. `kind` is that of the input."""

    input: Id
    kind: Literal["model", "images", "dataset"] = "model"
    recipe: Recipe
    output: Output
    gradients: Id | None = None
    calibration: Id | None = None
    labels: Id | None = None
    codec: Id | None = None
    budget: Budget | None = None
    gates: Gates = Gates()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    priority: Literal["low", "normal", "high"] = "normal"
    sanitize: Literal["report", "strip"]
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    tags: Annotated[dict[Tag, Tag], Field(max_length=20)] = {}
    webhook: Webhook | None = None


JOBS: dict[str, type[JobSpec]] = {"model": JobSpec} | {
    kind: create_model(f"{kind.capitalize()}JobSpec", __base__=JobSpec, recipe=(RECIPES[kind], ...)) for kind in RECIPES if kind != "model"
}  # fmt: skip
"""By the kind of the input."""


def companions(spec: dict) -> dict[str, str]:
    """Of a job spec as JSON: what it brings beside the input, by role."""
    return {role: spec[role] for role in COMPANIONS if spec.get(role)}


def with_codec(body: Any) -> Any:
    """A job's body whose last step names a codec, with that in the place of the body's own: what goes in beside the input is told in one way alone."""
    steps = body["recipe"].get("steps") if isinstance(body, dict) and isinstance(body.get("recipe"), dict) else None
    if not isinstance(steps, list) or not steps or not isinstance(steps[-1], dict) or steps[-1].get("codec") is None:
        return body
    if body.get("codec") not in (None, steps[-1]["codec"]):
        raise InvalidJobSpec("the job names a codec, and its step another; leave one of them out", pointer=f"/recipe/steps/{len(steps) - 1}/codec")
    if body.get("kind", "images") != "images" or steps[-1].get("method") not in ("image", "test_codec"):
        return body
    last = {k: v for k, v in steps[-1].items() if k != "codec"}
    return body | {"codec": steps[-1]["codec"], "recipe": body["recipe"] | {"steps": [*steps[:-1], last]}}


def check_companions(spec: JobSpec) -> None:
    """Refuse a job that lacks the data which its recipe or its gates need.

    Raises:
        InvalidJobSpec: pointing at what is missing.
    """

    def missing(role: str, why: str):
        raise InvalidJobSpec(f"{why}; upload it and give its id as {role}", pointer=f"/{role}")

    if spec.recipe.needs_gradients and not (spec.gradients or spec.calibration):
        missing("calibration", "a step goes by gradients: they are computed from calibration data, or taken from gradients of your own (kind gradients)")
    if spec.recipe.recovers and not spec.calibration:
        missing("calibration", "recover trains on calibration data")
    if spec.recipe.reconstructs and not spec.calibration:
        missing("calibration", "gptq, awq, autoround, wanda and sparsegpt look at what goes into each layer when the model runs on calibration data")
    if spec.labels and not spec.calibration:
        missing("calibration", "labels belong to calibration data")
    if spec.gates.max_kl is not None and not spec.calibration:
        missing("calibration", "max_kl is measured on calibration data")
    if spec.gates.min_accuracy is not None and not spec.labels:
        missing("labels", "min_accuracy is measured with labels")
    if needed := [name for name in budgets.bounds(spec.budget and spec.budget.model_dump()) if name in budgets.ON_OUTPUTS]:
        if not spec.calibration:
            missing("calibration", f"{needed[0]} is measured on calibration data; without them a budget is {', '.join((*budgets.SIZE, 'max_relative_error'))}")
    if spec.recipe.kind == "restore" and (given := companions(spec.model_dump(mode="json"))):
        raise InvalidJobSpec("a restore takes its input alone", pointer=f"/{next(iter(given))}")


def check_budget(spec: JobSpec) -> None:
    """A budget and `auto` go together.

    Raises:
        InvalidJobSpec: pointing at the budget.
    """
    if spec.recipe.searches and spec.budget is None:
        names = ", ".join((*budgets.SIZE, *budgets.QUALITY))
        raise InvalidJobSpec(f"auto looks for the best recipe within a budget, and there is none; give one or more of {names}", pointer="/budget")
    if spec.budget is not None and not spec.recipe.searches:
        raise InvalidJobSpec("a budget goes with the preset auto, which looks for a recipe; the bounds of a recipe of your own are gates", pointer="/budget")


def check_loss(recipe: Recipe, labelled: bool, task: str) -> None:
    """Refuse a training that listens to labels where there are none. The labels of a language model are its text.

    Raises:
        InvalidJobSpec: pointing at the labels.
    """
    if not labelled and task != "causal-lm" and any(getattr(s, "recover", None) and s.recover.loss in ("labels", "both") for s in recipe.steps):
        raise InvalidJobSpec(f"recover with loss labels or both needs labels, which {task} models do not bring; upload them and give their id as labels", pointer="/labels")


def default_output(recipe: Recipe, has_config: bool, program: bool = False, kind: str = "model") -> str:
    """What loads as is where there is a Hugging Face config or a program to put it into, else the container that carries everything."""
    if recipe.kind == "restore":
        return "original"
    if kind != "model":
        return getattr(recipe.steps[0], "makes", OUTPUTS[kind][0])
    if recipe.searches:
        return "packed"
    if program and not recipe.step(Lossless):
        return "pt2"
    scaled = recipe.step(Quantize) and all(q.plain_scales for q in recipe.step(Quantize))
    if not has_config or recipe.step(Lossless):
        return "packed"
    return "compressed-tensors" if scaled else "safetensors" if any(map(narrows, recipe.steps)) and not recipe.step(Quantize) else "packed"


def check_output(recipe: Recipe, output: str, has_config: bool, program: bool = True) -> None:
    """Refuse an output format that cannot carry what the recipe makes.

    Raises:
        InvalidJobSpec: pointing at `/output/format`.
    """

    def refuse(why: str):
        raise InvalidJobSpec(why, pointer="/output/format")

    if output not in FORMATS:
        refuse(f"{output} is not made of models; choose one of {', '.join(FORMATS)}")
    if (recipe.kind == "restore") != (output == "original"):
        refuse("restore writes format original, and nothing else does; choose one of packed, safetensors, compressed-tensors, pt2")
    if recipe.kind == "lossless" and output != "packed":
        refuse(f"lossless is carried by packed, not by {output}")
    if recipe.searches:
        if output not in ("packed", "compressed-tensors"):
            refuse(f"{output} has every value at its full width, so that no choice makes it smaller; choose packed, or compressed-tensors")
        if output == "compressed-tensors" and not has_config:
            refuse("compressed-tensors needs a config.json beside the weights: upload the whole folder, or choose packed")
        return
    if output == "compressed-tensors":
        if not recipe.step(Quantize):
            refuse("compressed-tensors carries quantized weights, and no step quantizes; choose packed or safetensors")
        if not has_config:
            refuse("compressed-tensors needs a config.json beside the weights: upload the whole folder, or choose packed")
        if any(q.mapping == "gradient" for q in recipe.step(Quantize)):
            refuse("compressed-tensors carries scale factors, and mapping gradient makes codebooks; choose packed, or safetensors for the values")
        if any(not q.plain_scales for q in recipe.step(Quantize)):
            refuse("compressed-tensors carries floating scales and integer zero points, not scale_bits, a float zero_point, type nf or the factors of inputs of algorithm awq; choose packed, or safetensors for the values")
        if any(q.type == "float" and q.strategy == "group" for q in recipe.step(Quantize)):
            refuse("compressed-tensors carries fp8 per tensor or channel, not per group; choose packed")
        if recipe.step(Lossless):
            refuse("compressed-tensors is read by other tools and cannot be entropy-coded; choose packed, or leave lossless out")
    if output in ("safetensors", "pt2") and recipe.step(Lossless):
        refuse(f"{output} is read by other tools and cannot be entropy-coded; choose packed, or leave lossless out")
    if output == "pt2":
        if not program:
            refuse("pt2 is the input's own program with other values, and the input is no .pt2; choose packed or safetensors")
        if any(p.structure[0] == "ffn-width" for p in recipe.step(Prune)):
            refuse("the shapes of a program are fixed, and ffn-width changes them; choose another mask_structure")


def check_kind(spec: JobSpec) -> None:
    """Refuse of a job on something else than a model what is about models.

    Raises:
        InvalidJobSpec: pointing at the field.
    """
    for field in (*COMPANIONS, "budget"):
        if getattr(spec, field) is not None and (field != "codec" or spec.kind != "images"):
            raise InvalidJobSpec(f"{field} is for models, and the input is of kind {spec.kind}; leave it out", pointer=f"/{field}")
    for gate, limit in spec.gates.model_dump().items():
        if limit is not None and gate not in OTHER_GATES:
            raise InvalidJobSpec(f"{gate} is a gate of models; of kind {spec.kind} there is {', '.join(OTHER_GATES)}, and bounds of quality stand in the steps", pointer=f"/gates/{gate}")
    output, fitting = spec.output.format, default_output(spec.recipe, False, kind=spec.kind)
    needed = getattr(spec.recipe.steps[-1], "needs_codec", False)
    if needed and spec.codec is None:
        raise InvalidJobSpec("a codec is needed that a job with train_codec has made; give its id", pointer=f"/recipe/steps/{len(spec.recipe.steps) - 1}/codec")
    if spec.codec is not None and not needed:
        raise InvalidJobSpec("no step takes a codec: that is for test_codec, and for the candidate learned of image", pointer="/codec")
    if output != fitting:
        raise InvalidJobSpec(f"{output} is not what this recipe makes of input of kind {spec.kind}; choose {fitting}", pointer="/output/format")


def parse_job(data: Any, has_config: bool = True, complete: bool = True, program: bool | None = None, kind: str = "model") -> JobSpec:
    """The body of `POST /v1/jobs`, resolved: the preset unfolded, the output format and every default filled in.

    Args:
        data: parsed JSON.
        has_config: whether the input brings (or, as an archive, may bring) a config.json.
        complete: whether the data that its recipe needs must be there.
        program: whether the input is a `.pt2`; None where that is not known.
        kind: of the input, one of `app.steps.KINDS`.
    """
    if not isinstance(data, dict):
        raise InvalidJobSpec("the body must be an object with input, and recipe or preset")
    data = dict(with_codec(data) if kind == "images" else data)
    if data.setdefault("kind", kind) != kind:
        raise InvalidJobSpec(f"the input is of kind {kind}; leave kind out, or upload it as what it is", pointer="/kind")
    if ("preset" in data) == ("recipe" in data):
        raise InvalidJobSpec("give either recipe or preset", pointer="/recipe")
    if "preset" in data:
        name, own = data.pop("preset"), BY_KIND[kind]
        if not isinstance(name, str) or name not in own:
            known = f", it is for input of kind {kind_of_preset(name)}" if isinstance(name, str) and name in PRESETS else ""
            raise InvalidJobSpec(f"{json.dumps(name, default=str)[:100]} is none of the presets{known}: {', '.join(own) or 'there are none'}", pointer="/preset")
        data["recipe"] = own[name]
    recipe = parse_recipe(data["recipe"], kind=kind)
    data["recipe"] = recipe.model_dump(mode="json")
    data.setdefault("output", {"format": default_output(recipe, has_config, bool(program), kind)})
    data.setdefault("sanitize", "report" if recipe.kind == "lossless" else "strip")
    spec = validate(JOBS[kind], data, tags=STEPS[kind])
    if kind == "model":
        if spec.codec is not None:
            raise InvalidJobSpec("codec is for images, and the input is of kind model; leave it out", pointer="/codec")
        check_output(recipe, spec.output.format, has_config, program is not False)
        check_budget(spec)
        if complete:
            check_companions(spec)
    else:
        check_kind(spec)
    if spec.webhook:
        check_url(spec.webhook.url)
    return spec
