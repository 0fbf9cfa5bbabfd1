"""Training within a step: when a sparsity is reached, and what recovers from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from app.steps.fields import refuse
from app.strict import Strict


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
