"""Which versions compute results, as far as they are installed where this runs: part of every key under which something is kept for later."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

DECISIVE = ("modelpress", "torch", "transformers")
OF_KIND = {
    "images": ("pillow", "pillow-jxl-plugin", "constriction"),
    "dataset": ("pyarrow", "pcodec"),
}
"""Those that decide for input of one kind, beside them."""


@cache
def versions(kind: str = "model") -> dict[str, str]:
    """By name; empty for one that is not installed."""
    found = {}
    for name in (*DECISIVE, *OF_KIND.get(kind, ())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
