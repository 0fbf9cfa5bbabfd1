"""Patterns on tensor names, and which names a step means by them."""

from __future__ import annotations

import fnmatch
import re
from typing import Annotated

import re2
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from app.strict import Strict

_WILD = frozenset("*?[")


def _pattern(value: str) -> str:
    """A glob on tensor names (`*`, `?`, `[...]`), or RE2 behind `re:` (linear time, so no pattern can hang a worker)."""
    if not value or len(value) > 256 or not value.isprintable():
        raise PydanticCustomError("pattern", "a pattern has 1 to 256 printable characters")
    if value.startswith("re:"):
        try:
            options = re2.Options()
            options.log_errors = False
            options.max_mem = 1 << 20
            re2.compile(value[3:], options)
        except re2.error as e:
            raise PydanticCustomError("pattern", "not an RE2 expression: {why}", {"why": str(e)[:200]}) from None
    elif re.search(r"[(){}\\^$|+]", value):
        raise PydanticCustomError("pattern", "a glob knows only * ? [...]; write a regular expression (RE2) behind 're:'")
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
Patterns = Annotated[list[Pattern], Field(max_length=1000)]


class Targeted(Strict):
    """Which tensors a step works on. `ignore` wins; a pattern is matched against the whole tensor name."""

    targets: Annotated[Patterns, Field(min_length=1)] = ["*"]
    ignore: Patterns = []


def matcher(targeted: Targeted):
    """A predicate on tensor names: matched by a target and by no ignore."""
    targets, ignore = _any(targeted.targets), _any(targeted.ignore)
    return lambda name: targets(name) and not ignore(name)


def _any(patterns: list[str]):
    """A predicate: matched by one of the patterns. Names without a wildcard are looked up."""
    plain = frozenset(p for p in patterns if not wild(p))
    matches = [re2.compile(p[3:]).fullmatch if p.startswith("re:") else re.compile(fnmatch.translate(p)).match for p in patterns if wild(p)]
    return lambda name: name in plain or any(match(name) for match in matches)


def wild(pattern: str) -> bool:
    """Whether it may match more than one name."""
    return pattern.startswith("re:") or not _WILD.isdisjoint(pattern)
