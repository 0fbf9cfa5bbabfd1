"""The steps of a recipe: one params class per method, which selects it (`worker.methods.METHODS` is keyed by these classes)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.patterns import Targeted
from app.strict import Strict

DAMPING = 0.05
"""Of the mean second moment of a layer's inputs: some hundred samples say little of the directions that they hardly take."""


SUPER = 256
"""Inputs whose scales of `scale_bits` bits stand under one float16."""


def refuse(field: str, text: str, **values):
    """Raises: PydanticCustomError, whose pointer ends in `field`, or in what is within a field (`recover/penalty`)."""
    raise PydanticCustomError(field.replace("/", "_"), text, values | {"field": field})


Damping = Annotated[float, Field(gt=0, le=1)]


def _filled(data: dict, sequential: bool, damping: bool) -> dict:
    """Args: sequential, damping: whether the field has a default here."""
    defaults = {"sequential": True} if sequential else {}
    if damping:
        defaults["damping"] = DAMPING
    return data | {field: value for field, value in defaults.items() if data.get(field) is None}


class Schedule(Strict):
    """How a sparsity is reached: at once, or in `steps` prunings between which the model is trained, s_t = s (1 - (1 - t)^3) (Zhu and Gupta, 2017)."""

    kind: Literal["one-shot", "cubic"] = "one-shot"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 1

    @model_validator(mode="after")
    def _one_shot(self):
        if self.kind == "one-shot" and self.steps != 1:
            refuse("steps", "one-shot prunes once; for several prunings choose cubic")
        return self


class Recover(Strict):
    """Training after (and, under a cubic schedule, between) what a step has done: masks stay, what is left of the weights moves; codes follow for a while,
    then stay too, and only their levels move.

    `distill` follows the original model's outputs, and what its layers hand on where they tell, and needs no labels; `labels` is the loss of the job's labels;
    `both` is their mean, and `auto` is `both` where the job brings labels, else `distill`. What is held out is judged by outputs alone. `learning_rate` is a
    step of Adam in units of each tensor's root mean square; it rises at first, and goes down along a cosine. Under `distill`, `perturb: auto` asks of every
    other text (not of a language model) with other tokens in the place of some, since the original answers to any; every other sample whose numbers are those of an image is moved by a
    pixel or two, under the labels of a classifier too.
    `penalty` draws weights to 0 while the schedule runs (a third of the steps without one): each step takes `lambda` times the learning rate off, of the
    weight itself (l2) or of the unit (l1). `bit_price` (for codebooks) is the loss, in nats, that one bit of the result is worth: above 0 a weight takes a
    farther level that costs fewer bits, 0 included, where the loss hardly feels it.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    loss: Literal["auto", "distill", "labels", "both"] = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    perturb: Literal["auto", "none"] = "auto"
    penalty: Literal["none", "l1", "l2"] = "none"
    lambda_: Annotated[float, Field(ge=0, alias="lambda")] = 0.0
    bit_price: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _penalty(self):
        if (self.penalty == "none") != (self.lambda_ == 0):
            refuse("lambda", "penalty l1 or l2 and lambda above 0 go together")
        return self


class Prune(Targeted):
    """Set the least salient weights to zero.

    Saliency is |w|, |g|, |w g| (taylor) or w^2 g^2 (fisher) with g the gradient of each sample; `norm` decides how it is summed over samples and over
    the members of a block, an N:M candidate or a channel. For unstructured magnitude pruning L1 and L2 give one and the same mask, and `taylor` with
    `l2` is `fisher` with `l1`. With `mask_structure: "N:M"`, N of M consecutive inputs are kept and the sparsity follows from it. `ffn-width` takes whole
    hidden units out of feed-forward layers, so that tensors and config shrink.

    `wanda` (|w| times the norm of its input) and `sparsegpt` (what the layer's output loses; the weights that stay make up for it) look at what goes into
    each layer of the model as pruned so far, or, with `sequential: false`, of the original. `damping` is as in `Quantize`.
    """

    method: Literal["prune"]
    saliency: Literal["magnitude", "gradient", "taylor", "fisher", "wanda", "sparsegpt"] = "magnitude"
    norm: Literal["l1", "l2"] = "l2"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.5
    mask_structure: Annotated[str, StringConstraints(max_length=40)] = "unstructured"
    scope: Literal["row", "tensor", "global"] = "row"
    schedule: Schedule | None = None
    recover: Recover | None = None
    damping: Damping | None = None
    sequential: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, data: Any):
        return _filled(data, data.get("saliency") in ("wanda", "sparsegpt"), data.get("saliency") == "sparsegpt") if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _reconstruction(self):
        if not self.reconstructs and self.sequential is not None:
            refuse("sequential", "this goes with saliency wanda or sparsegpt, which look at the inputs of layers")
        if self.damping is not None and self.saliency != "sparsegpt":
            refuse("damping", "this goes with saliency sparsegpt")
        if self.reconstructs and self.structure[0] not in ("unstructured", "n:m"):
            refuse("mask_structure", "{s} ranks single weights: choose unstructured or N:M", s=self.saliency)
        if self.reconstructs and self.norm != "l2":
            refuse("norm", "{s} has a measure of its own; leave norm out", s=self.saliency)
        if self.reconstructs and self.scope == "global":
            refuse("scope", "{s} goes layer by layer: choose row or tensor", s=self.saliency)
        if self.reconstructs and (self.recover or self.schedule):
            refuse("recover" if self.recover else "schedule", "{s} goes layer by layer, and training over all of them: choose another saliency, or leave this out", s=self.saliency)
        return self

    @model_validator(mode="after")
    def _schedule(self):
        if self.schedule and self.schedule.kind == "cubic" and self.recover is None:
            refuse("schedule", "a cubic schedule trains between its prunings: add recover")
        if self.schedule and self.recover and self.recover.steps < self.schedule.steps:
            refuse("recover", "recover has {steps} steps, fewer than the schedule's {prunings}", steps=self.recover.steps, prunings=self.schedule.steps)
        if self.schedule and self.schedule.kind == "cubic" and self.structure[0] == "n:m":
            refuse("schedule", "N of M are kept from the start, with nothing in between; leave schedule out")
        if self.recover and self.recover.bit_price:
            refuse("recover/bit_price", "bits have a price where codes are trained: this goes with quantize")
        return self

    @property
    def gradual(self) -> bool:
        """Whether it prunes between the steps of a training, by what the weights and their gradients are there."""
        return self.schedule is not None and self.schedule.steps > 1

    @property
    def needs_gradients(self) -> bool:
        return self.saliency in ("gradient", "taylor", "fisher") and not self.gradual

    @property
    def reconstructs(self) -> bool:
        """Whether it looks at the inputs of each layer, one block of layers after another."""
        return self.saliency in ("wanda", "sparsegpt")

    @model_validator(mode="after")
    def _structure(self):
        kind, a, b = self.structure
        if kind == "n:m" and "sparsity" in self.model_fields_set and abs(self.sparsity - (1 - a / b)) > 1e-9:
            raise PydanticCustomError("sparsity", "mask_structure {s} fixes the sparsity at {v}; leave it out", {"s": self.mask_structure, "v": 1 - a / b, "field": "sparsity"})
        return self

    @model_validator(mode="after")
    def _width(self):
        if self.narrows and self.scope != "row":
            refuse("scope", "ffn-width keeps as many units in every layer, for config.json has one number for them; leave scope out")
        if self.narrows and self.schedule and self.schedule.kind != "one-shot":
            refuse("schedule", "ffn-width takes its units out at once; leave schedule out")
        return self

    @property
    def narrows(self) -> bool:
        """Whether tensors shrink."""
        return self.structure[0] == "ffn-width"

    @property
    def structure(self) -> tuple[str, int, int]:
        """`("unstructured", 1, 1)`, `("n:m", n, m)`, `("block", rows, columns)`, `("channel", 1, 0)` or `("ffn-width", 1, 0)`."""
        if self.mask_structure == "unstructured":
            return "unstructured", 1, 1
        if self.mask_structure in ("channel", "ffn-width"):
            return self.mask_structure, 1, 0
        if m := re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", self.mask_structure):
            n, total = int(m[1]), int(m[2])
            if n < total:
                return "n:m", n, total
        if m := re.fullmatch(r"block:([1-9]\d{0,3})x([1-9]\d{0,3})", self.mask_structure):
            return "block", int(m[1]), int(m[2])
        raise PydanticCustomError(
            "mask_structure",
            "{value} is none of: unstructured, N:M (1 <= N < M <= 9999, e.g. 2:4), block:RxC (e.g. block:4x4), channel, ffn-width",
            {"value": self.mask_structure, "field": "mask_structure"},
        )


class Quantize(Targeted):
    """Map weights to few levels: codes of `num_bits`, and what they stand for per tensor, channel (row) or group of inputs.

    `mapping: uniform` has levels at equal distance under scale factors. `type: float` is fp8 (e4m3) and needs 8 bits; `nf` has
    levels at quantiles of the normal distribution (NF4 where num_bits is 4). `scale_search: mse` tries a grid of
    signed scales with least-squares refinement. With `scale_bits` the scales of groups are integers of so many bits under one float16 for 256 inputs (as in
    ggml's K-quants), and so are the offsets where it is not symmetric. `zero_point: float` has an offset per group in the place of an integer zero point:
    value = scale * code - offset; `scale_search: hqq` finds it by half-quadratic splitting. `activations: dynamic` declares that a loader shall quantize activations per token at run time (W8A8);
    it changes no weight. `mapping: gradient` puts the levels of codebooks where the loss feels them (k-means weighted by squared gradients), and with
    `avg_bits` in the place of `num_bits` gives each tensor the width that it needs.

    `algorithm: gptq` rounds one input after another and lets those after it make up for the error in the layer's output (`rtn` rounds each to the nearest);
    `scale_search: mse` then weighs errors by the size of the inputs. `damping` is added to the second moments of the inputs, as a share of their mean;
    `activation_order` begins with the largest inputs, scales being found before; `sequential` takes them from the model as quantized so far.
    """

    method: Literal["quantize"]
    mapping: Literal["uniform", "gradient"] = "uniform"
    num_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    avg_bits: Annotated[float, Field(ge=1, le=8)] | None = None
    type: Literal["int", "float", "nf"] = "int"
    symmetric: bool = True
    strategy: Literal["tensor", "channel", "group"] = "channel"
    group_size: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    scale_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    zero_point: Literal["integer", "float"] = "integer"
    scale_search: Literal["absmax", "mse", "hqq"] = "absmax"
    activations: Literal["none", "dynamic"] = "none"
    algorithm: Literal["rtn", "gptq"] = "rtn"
    damping: Damping | None = None
    activation_order: bool | None = None
    sequential: bool | None = None
    recover: Recover | None = None
    strict: bool = False

    @property
    def needs_gradients(self) -> bool:
        return self.mapping == "gradient"

    @property
    def plain_scales(self) -> bool:
        """Whether floating scales and integer zero points are all that its codes need."""
        return self.mapping == "uniform" and self.type != "nf" and self.scale_bits is None and self.zero_point == "integer"

    @property
    def reconstructs(self) -> bool:
        """As of `Prune`."""
        return self.algorithm == "gptq"

    @model_validator(mode="before")
    @classmethod
    def _strategy(cls, data: Any):
        if isinstance(data, dict):
            if data.get("group_size", 0) is None and "group_size" in data and data.get("strategy") == "group":
                raise PydanticCustomError("group_size", "null is not a group size", {"field": "group_size"})
            if "group_size" in data and "strategy" not in data and data["group_size"] is not None:
                data = data | {"strategy": "group"}
            if data.get("scale_bits") is not None and data.get("strategy", "group") == "group":
                data = {"strategy": "group", "group_size": 32} | data
            if data.get("symmetric") is False and (data.get("scale_bits") is not None or data.get("scale_search") == "hqq"):
                data = {"zero_point": "float"} | data
            if data.get("strategy") == "group" and "group_size" not in data:
                data = data | {"group_size": 128}
            if data.get("avg_bits") is not None and "strategy" not in data:
                data = data | {"strategy": "tensor"}
            gptq = data.get("algorithm") == "gptq"
            data = _filled(data, gptq, gptq)
            if gptq and data.get("activation_order") is None:
                data = data | {"activation_order": False}
        return data

    @model_validator(mode="after")
    def _combination(self):
        if self.recover and self.recover.penalty != "none":
            refuse("recover/penalty", "levels are not drawn to 0: a penalty goes with prune")
        if self.mapping == "gradient":
            self._gradient()
        elif self.avg_bits is not None or self.recover is not None:
            refuse("avg_bits" if self.avg_bits is not None else "recover", "this goes with mapping gradient only")
        elif self.num_bits is None:
            refuse("num_bits", "how many bits (2 to 8) a code has is needed")
        for field in ("damping", "activation_order", "sequential") if not self.reconstructs else ():
            if getattr(self, field) is not None:
                refuse(field, "this goes with algorithm gptq")
        if self.type == "float" and self.num_bits != 8:
            refuse("num_bits", "type float has 8 bits (e4m3) here; for other widths choose type int")
        if self.type != "int" and not self.symmetric:
            refuse("symmetric", "type {type} is symmetric; asymmetric needs type int", type=self.type)
        if self.strategy != "group" and self.group_size is not None:
            refuse("group_size", "group_size goes with strategy group only")
        if self.zero_point == "float" and self.symmetric:
            refuse("zero_point", "a float zero point is of asymmetric codes: symmetric false")
        if self.scale_search == "hqq" and self.zero_point == "integer":
            refuse("scale_search", "hqq finds zero points that are no integers: symmetric false, and zero_point float or left out")
        if self.scale_bits is not None:
            self._two_level()
        if self.activations == "dynamic" and (not self.plain_scales or self.num_bits != 8 or self.strategy == "group" or not self.symmetric):
            refuse("activations", "dynamic activations go with 8 symmetric bits per tensor or channel")
        return self

    def _two_level(self):
        if self.strategy != "group":
            refuse("strategy", "scales of few bits are those of groups: strategy group, or leave it out")
        if SUPER % self.group_size or self.group_size == SUPER:
            refuse("scale_bits", "scales of few bits are those of groups, of which several share {n} inputs: group_size 1, 2, 4, ..., 128", n=SUPER)
        if self.type == "float":
            refuse("scale_bits", "fp8 has an exponent of its own; scales of few bits go with type int or nf")
        if not self.symmetric and self.zero_point == "integer":
            refuse("zero_point", "beside scales of few bits there are offsets of as many: zero_point float, or leave it out")

    def _gradient(self):
        if (self.num_bits is None) == (self.avg_bits is None):
            refuse("num_bits", "mapping gradient takes either num_bits (2 to 8) or avg_bits")
        if self.avg_bits is not None and self.recover is not None:
            refuse("recover", "training keeps to no number of stored bits, so recover goes with num_bits; leave it out, or avg_bits")
        for field in ("type", "symmetric", "scale_bits", "zero_point", "scale_search", "activations", "algorithm"):
            if getattr(self, field) != type(self).model_fields[field].default:
                refuse(field, "this goes with mapping uniform; codebooks of mapping gradient have no scale factors")


class Lossless(Targeted):
    """Entropy-code tensors without changing a bit. Alone in a recipe it keeps whole files, so that `restore` gives them back byte for byte."""

    method: Literal["lossless"]


class Auto(Targeted):
    """Search for the recipe: measure what each weight matrix loses by each of many steps, and choose among them within the job's `budget`.

    It stands alone. What it has chosen is the recipe of the report.
    """

    method: Literal["auto"]


class Restore(Strict):
    """Turn a packed or compressed artifact back into the original files, names, shapes and dtypes."""

    method: Literal["restore"]


Step = Annotated[Union[Prune, Quantize, Lossless, Auto, Restore], Field(discriminator="method")]
METHODS = {"prune": Prune, "quantize": Quantize, "lossless": Lossless, "auto": Auto, "restore": Restore}
