"""The steps of a recipe: one params class per method, which selects it (`worker.methods.METHODS` is keyed by these classes)."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field

from app.patterns import Targeted
from app.steps.prune import Prune
from app.steps.quantize import SUPER, Quantize
from app.steps.recover import Recover, Schedule
from app.strict import Strict

__all__ = ["METHODS", "SUPER", "Auto", "Lossless", "Prune", "Quantize", "Recover", "Restore", "Schedule", "Step"]


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
