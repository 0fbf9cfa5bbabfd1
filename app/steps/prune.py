"""The step `prune`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.patterns import Targeted
from app.steps.fields import Damping, filled, refuse
from app.steps.recover import Recover, Schedule


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
        return filled(data, data.get("saliency") in ("wanda", "sparsegpt"), data.get("saliency") == "sparsegpt") if isinstance(data, dict) else data

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
