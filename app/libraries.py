"""Which versions compute results, as far as they are installed where this runs: part of every key under which something is kept for later."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

DECISIVE = ("modelpress", "torch", "transformers")


@cache
def versions() -> dict[str, str]:
    """By name; empty for one that is not installed."""
    found = {}
    for name in DECISIVE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
