"""How a combination of fields is refused, and fields that several steps have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

DAMPING = 0.05
"""Of the mean second moment of a layer's inputs: some hundred samples say little of the directions that they hardly take."""


def refuse(field: str, text: str, **values):
    """Raises: PydanticCustomError, whose pointer ends in `field`, or in what is within a field (`recover/penalty`)."""
    raise PydanticCustomError(field.replace("/", "_"), text, values | {"field": field})


Damping = Annotated[float, Field(gt=0, le=1)]


def filled(data: dict, sequential: bool, damping: bool) -> dict:
    """Args: sequential, damping: whether the field has a default here."""
    defaults = {"sequential": True} if sequential else {}
    if damping:
        defaults["damping"] = DAMPING
    return data | {field: value for field, value in defaults.items() if data.get(field) is None}
