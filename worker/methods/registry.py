"""`@method(Params)` names the function that carries a step out."""

from __future__ import annotations

from collections.abc import Callable

METHODS: dict[type, Callable] = {}
"""Params class -> `(tensor_plan, step, encoded) -> encoded`, pure."""


def method(params: type) -> Callable[[Callable], Callable]:
    def register(function: Callable) -> Callable:
        METHODS[params] = function
        return function

    return register
