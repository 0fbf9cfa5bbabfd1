"""The step `quantize`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.patterns import Targeted
from app.steps.fields import Damping, filled, refuse
from app.steps.recover import Recover

STEPS = 200
"""Of autoround, unless told."""
SUPER = 256
"""Inputs whose scales of `scale_bits` bits stand under one float16."""


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
    `algorithm: awq` scales inputs before rounding by a power of their size, found for each matrix; their factors are stored beside the codes.
    `algorithm: autoround` learns in `steps` batches, block by block, which way each weight is rounded and how wide the levels of its group are, so that what
    the block puts out comes near to the original's.
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
    algorithm: Literal["rtn", "gptq", "awq", "autoround"] = "rtn"
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
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
        return self.mapping == "uniform" and self.type != "nf" and self.scale_bits is None and self.zero_point == "integer" and not self.scales_inputs

    @property
    def reconstructs(self) -> bool:
        """As of `Prune`."""
        return self.algorithm in ("gptq", "awq", "autoround")

    @property
    def scales_inputs(self) -> bool:
        """Whether a factor of each input may be stored beside its codes."""
        return self.algorithm == "awq"

    @property
    def learns(self) -> bool:
        """Whether its rounding is learned, block by block."""
        return self.algorithm == "autoround"

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
            if data.get("symmetric") is False and (data.get("scale_bits") is not None or data.get("scale_search") == "hqq" or data.get("algorithm") == "awq"):
                data = {"zero_point": "float"} | data
            if data.get("strategy") == "group" and "group_size" not in data:
                data = data | {"group_size": 128}
            if data.get("avg_bits") is not None and "strategy" not in data:
                data = data | {"strategy": "tensor"}
            algorithm = data.get("algorithm")
            if algorithm == "autoround" and data.get("steps") is None:
                data = data | {"steps": STEPS}
            if algorithm == "gptq" and data.get("activation_order") is None:
                data = data | {"activation_order": False}
            data = filled(data, algorithm in ("gptq", "awq", "autoround"), algorithm == "gptq")
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
        self._algorithm()
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

    def _algorithm(self):
        for field, goes, what in (
            ("sequential", self.reconstructs, "gptq, awq or autoround"),
            ("damping", self.algorithm == "gptq", "gptq"),
            ("activation_order", self.algorithm == "gptq", "gptq"),
            ("steps", self.learns, "autoround"),
        ):
            if getattr(self, field) is not None and not goes:
                refuse(field, "this goes with algorithm {what}", what=what)
        if self.scales_inputs and self.type == "float":
            refuse("type", "fp8 has an exponent of its own; awq goes with type int or nf")
        if self.scales_inputs and not self.symmetric and self.zero_point == "integer":
            refuse("zero_point", "beside scaled inputs offsets are floats: zero_point float, or leave it out")
        if self.learns and self.type != "int":
            refuse("type", "autoround learns how integers are rounded: type int")

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
