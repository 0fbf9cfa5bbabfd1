"""Request bodies that the endpoints read themselves, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

_TEMPLATE = "#/components/schemas/{model}"
_components: dict[str, Any] = {}


def body_schema(model: type[BaseModel], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """`openapi_extra` of an endpoint that takes `model` as JSON, or one of the media types in `more`."""
    schema = model.model_json_schema(ref_template=_TEMPLATE)
    _components.update(schema.pop("$defs", {}))
    _components[model.__name__] = schema
    content = {"application/json": {"schema": {"$ref": _TEMPLATE.format(model=model.__name__)}}} | (more or {})
    return {"requestBody": {"required": True, "content": content}}


def install(app: FastAPI) -> None:
    """Have the document carry the components that the bodies refer to."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        document.setdefault("components", {}).setdefault("schemas", {}).update(_components)
        return document

    app.openapi = openapi
