"""The steps of a recipe: one params class per method, which selects it (`worker.methods.METHODS` is keyed by those of models).

What a method's name means depends on the kind of the input: `STEPS[kind][method]`. A params class of another kind than `model` may have, as class variables,
`seconds` (a byte of input on one core; default `speeds.OTHER`), `keeps_values` or a property of that name (whether nothing is lost), `alone` (in its recipe, but for the methods of `after`) and `gains_on_gpu`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field

from app.patterns import Targeted
from app.steps.dataset import DATASET
from app.steps.image import IMAGES
from app.steps.prune import Prune
from app.steps.quantize import SUPER, Quantize
from app.steps.recover import Recover, Schedule
from app.strict import Strict

__all__ = ["KINDS", "METHODS", "STEPS", "SUPER", "Auto", "Lossless", "Prune", "Quantize", "Recover", "Restore", "Schedule", "Step"]


class Lossless(Targeted):
    """Entropy-code tensors without changing a bit. Alone in a recipe it keeps whole files, so that `restore` gives them back byte for byte.

    Level `max` codes floats of two or four bytes about the scales of their rows and columns, and their mantissas by their exponents: smaller, and some three times as slow.
    """

    method: Literal["lossless"]
    level: Literal["normal", "max"] = "normal"


class Auto(Targeted):
    """Search for the recipe: measure what each weight matrix loses by each of many steps, and choose among them within the job's `budget`.

    It stands alone. What it has chosen is the recipe of the report. With `rounding: autoround` the best choices are carried out once more with their rounding
    learned, in the place of gptq's, and stay where the model is better by it; `gptq` does without, which takes a fraction of the time.
    """

    method: Literal["auto"]
    rounding: Literal["autoround", "gptq"] = "autoround"


class Restore(Strict):
    """Turn a packed or compressed artifact back into the original files, names, shapes and dtypes."""

    method: Literal["restore"]


Step = Annotated[Union[Prune, Quantize, Lossless, Auto, Restore], Field(discriminator="method")]
METHODS = {"prune": Prune, "quantize": Quantize, "lossless": Lossless, "auto": Auto, "restore": Restore}

STEPS: dict[str, dict[str, type]] = {"model": METHODS} | {kind: own | {"restore": Restore} for kind, own in (("images", IMAGES), ("dataset", DATASET)) if own}
"""Params class by method, by the kind of the input."""
KINDS = tuple(STEPS)
"""Kinds of input that jobs take."""
