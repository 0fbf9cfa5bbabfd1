"""What there is to choose from: methods, presets, formats."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.formats import catalogue
from app.presets import BY_KIND
from app.recipe import STEPS, parse_recipe

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/methods")
def methods() -> dict[str, Any]:
    """Every method by the kind of the input that it is for, with the JSON Schema of its step."""
    each = ((kind, name, cls) for kind, methods in STEPS.items() for name, cls in methods.items())
    return {"items": [{"name": name, "kind": kind, "about": cls.__doc__.splitlines()[0], "schema": cls.model_json_schema()} for kind, name, cls in each]}


@router.get("/presets")
def presets() -> dict[str, Any]:
    """Every preset, with the recipe that it stands for, resolved."""
    each = ((kind, name, recipe) for kind, presets in BY_KIND.items() for name, recipe in presets.items())
    return {"items": [{"name": name, "kind": kind, "recipe": parse_recipe(recipe, kind=kind).model_dump(mode="json")} for kind, name, recipe in each]}


@router.get("/formats")
def formats() -> dict[str, Any]:
    """Every format: whether a job reads or writes it, and what opens it elsewhere."""
    return {"items": catalogue()}
