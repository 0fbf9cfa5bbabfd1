"""Checks that build strangers' JSON anew: what comes out holds nothing that no check has named.

A check takes a value and the place where it stands, and returns the clean value. Places are pairs (parent, key), put into words only when one is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from app.errors import InputRefused
from app.limits import shown

Place = tuple
Check = Callable[[Any, Place], Any]
TOP: Place = ()


def refuse(why: str, at: Place, reason: str = "invalid-pt2") -> NoReturn:
    """Raises: InputRefused, with the place as a JSON pointer into the file."""
    parts = []
    while at:
        at, key = at
        parts.append(str(key))
    where = "/".join(reversed(parts))
    raise InputRefused(reason, f"{why} (at /{where[:200]})" if where else why)


def text(pattern: str, what: str, reason: str = "invalid-pt2", longest: int = 512) -> Check:
    """A string that `pattern` matches as a whole; the same string of one object afterwards."""
    match = re.compile(pattern).fullmatch

    def check(value: Any, at: Place) -> str:
        if type(value) is not str or len(value) > longest or not match(value):
            refuse(f"{shown(str(value)[:200])} is not {what}", at, reason)
        return value

    return check


def integer(lowest: int = -(1 << 63), highest: int = (1 << 63) - 1) -> Check:
    def check(value: Any, at: Place) -> int:
        if type(value) is not int or not lowest <= value <= highest:
            refuse(f"{shown(str(value)[:50])} is no integer from {lowest} to {highest}", at)
        return value

    return check


def number(value: Any, at: Place) -> float | int | str:
    """A float as torch.export writes it: JSON's numbers, and three words."""
    if value in ("Infinity", "-Infinity", "NaN") and type(value) is str:
        return value
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) >= 1 << 63 and type(value) is int:
        refuse(f"{shown(str(value)[:50])} is no number", at)
    return value


def boolean(value: Any, at: Place) -> bool:
    if type(value) is not bool:
        refuse(f"{shown(str(value)[:50])} is neither true nor false", at)
    return value


def maybe(check: Check) -> Check:
    return lambda value, at: None if value is None else check(value, at)


def constant(value: Any) -> Check:
    """Whatever stands there, this comes out."""
    return lambda _, at: value


def list_of(check: Check, longest: int = 1 << 20) -> Check:
    def checked(value: Any, at: Place) -> list:
        if type(value) is not list or len(value) > longest:
            refuse(f"a list of at most {longest} entries is needed", at)
        return [check(v, (at, i)) for i, v in enumerate(value)]

    return checked


def map_of(key: Check, check: Check) -> Check:
    def checked(value: Any, at: Place) -> dict:
        if type(value) is not dict:
            refuse("an object is needed", at)
        return {key(k, (at, k)): check(v, (at, k)) for k, v in value.items()}

    return checked


def record(needed: Mapping[str, Check], optional: Mapping[str, Check] = {}) -> Check:
    """An object with these members, in this order. Others are refused: what a reader would make of them is not known."""

    def checked(value: Any, at: Place) -> dict:
        if type(value) is not dict:
            refuse("an object is needed", at)
        if value.keys() - needed.keys() - optional.keys():
            refuse(f"{shown(min(map(str, value.keys() - needed.keys() - optional.keys())))} is no known member; known are {', '.join((*needed, *optional))}", at)
        if missing := needed.keys() - value.keys():
            refuse(f"{min(missing)} is missing", at)
        return {k: c(value[k], (at, k)) for k, c in (*needed.items(), *optional.items()) if k in value}

    return checked


def union(members: Mapping[str, Check], refused: Mapping[str, str] = {}) -> Check:
    """An object with one member, whose name tells its type. `refused`: member -> why it is not taken."""

    def checked(value: Any, at: Place) -> dict:
        if type(value) is not dict or len(value) != 1:
            refuse("an object with exactly one member is needed", at)
        ((kind, inner),) = value.items()
        if kind in refused:
            refuse(refused[kind], (at, kind), "unsafe-pt2")
        if kind not in members:
            refuse(f"{shown(str(kind))} is no known kind of value; known are {', '.join(members)}", at)
        return {kind: members[kind](inner, (at, kind))}

    return checked
