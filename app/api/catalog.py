"""What there is to choose from: methods, presets, formats."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.formats import catalogue
from app.job_spec import PRESETS
from app.recipe import METHODS, parse_recipe

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/methods")
def methods() -> dict[str, Any]:
    """Every method, with the JSON Schema of its step."""
    return {"items": [{"name": name, "about": cls.__doc__.splitlines()[0], "schema": cls.model_json_schema()} for name, cls in METHODS.items()]}


@router.get("/presets")
def presets() -> dict[str, Any]:
    """Every preset, with the recipe that it stands for, resolved."""
    return {"items": [{"name": name, "recipe": parse_recipe(recipe).model_dump(mode="json")} for name, recipe in PRESETS.items()]}


@router.get("/formats")
def formats() -> dict[str, Any]:
    """Every format: whether a job reads or writes it, and what opens it elsewhere."""
    return {"items": catalogue()}
