"""Matrices that inference engines fuse into one, and which therefore are stored alike: query, key and value; gate and up."""

from __future__ import annotations

import re

_FUSED = (("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("query", "key", "value"), ("to_q", "to_k", "to_v"), ("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))
_PARTS = {part: "+".join(parts) for parts in _FUSED for part in parts}
_PART = re.compile(r"(^|\.)(" + "|".join(sorted(_PARTS, key=len, reverse=True)) + r")(?=\.)")


def fused(name: str) -> str:
    """One and the same string for the names of matrices that are fused; for others the name itself."""
    return _PART.sub(lambda m: m[1] + _PARTS[m[2]], name)
