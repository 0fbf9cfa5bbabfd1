"""Strangers' JSON: parsed as RFC 8259 has it, and held against models that coerce nothing, with errors that point into it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from app.errors import InvalidJobSpec, InvalidPattern, MalformedJson

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Id = Annotated[str, StringConstraints(pattern=f"^{ID.pattern}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, str_max_length=4096)


def parse_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no duplicate keys, no NaN.

    Raises:
        MalformedJson: with the place.
    """

    def pairs(items):
        if len(out := dict(items)) != len(items):
            raise MalformedJson("An object has the same key twice.")
        return out

    def constant(name):
        raise MalformedJson(f"{name} is not JSON.")

    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as e:
        raise MalformedJson(f"The body is not JSON: {str(e)[:200]}") from None


def validate(cls: type[BaseModel], data: Any, prefix: str = "", tags: Mapping[str, type[BaseModel]] = MappingProxyType({})):
    """`cls` from JSON-like data; pydantic's errors become one `InvalidJobSpec` with pointers.

    Args:
        prefix: the pointer to `data` itself.
        tags: the members of a union by the value that tells them apart; pydantic has those in its paths, and the request has not.
    """
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as e:
        raise _problem(e, cls, prefix, tags) from None


def _fields(cls: type[BaseModel], tags: Mapping[str, type[BaseModel]], path: tuple) -> list[str]:
    """Of the model that stands at a path below `cls`; none where that is not plain to see."""
    owner: Any = cls
    for part in path:
        if part in tags:
            owner = tags[part]
        elif field := getattr(owner, "model_fields", {}).get(part):
            owner = next((a for a in (field.annotation, *get_args(field.annotation)) if hasattr(a, "model_fields")), owner)
    return [field.alias or name for name, field in getattr(owner, "model_fields", {}).items()]


def _problem(error: ValidationError, cls: type[BaseModel], prefix: str, tags: Mapping[str, type[BaseModel]]) -> InvalidJobSpec:
    """The first error becomes the problem, all of them its `errors`."""
    found, patterned = [], False
    for e in error.errors(include_url=False, include_input=True):
        path = [p for p in e["loc"] if p not in tags]
        if e["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path.append("method")
        if field := (e.get("ctx") or {}).get("field"):
            path += field.split("/")
        pointer = prefix + "".join(f"/{str(p).replace('~', '~0').replace('/', '~1')}" for p in path)
        value = e.get("input")
        shown = "" if isinstance(value, (dict, list)) else f" (got {json.dumps(value, default=str)[:100]})"
        message = f"one of {', '.join(tags)} is needed" if e["type"].startswith("union_tag") else e["msg"]
        if e["type"] == "extra_forbidden" and (fields := _fields(cls, tags, e["loc"][:-1])):
            message, shown = f"there is no field {path[-1]!r}; there are {', '.join(fields)}", ""
        found.append({"pointer": pointer, "detail": message + shown})
        patterned |= e["type"] == "pattern"
    problem = InvalidPattern if patterned else InvalidJobSpec
    return problem(found[0]["detail"], pointer=found[0]["pointer"], errors=found[:20])
