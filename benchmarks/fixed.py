"""Recipes that are one and the same for every model, which `auto` is held against (`benchmarks.auto`)."""

from __future__ import annotations

LOSSLESS = {"method": "lossless"}
_SPARSE = {"method": "prune", "saliency": "sparsegpt", "sparsity": 0.5}
_FISHER = {"method": "prune", "saliency": "fisher", "sparsity": 0.5}


def uniform(bits: int, group: int | None, *more: dict, **fields) -> list[dict]:
    """Args: group: None: a row. more: further steps."""
    return [{"method": "quantize", "num_bits": bits, "scale_search": "mse"} | ({"group_size": group} if group else {"strategy": "channel"}) | fields, *more]


def gptq(bits: int, group: int | None, *more: dict) -> list[dict]:
    return uniform(bits, group, *more, algorithm="gptq")


def joint(bits: int, group: int | None, *more: dict, **mask) -> list[dict]:
    """SparseGPT and GPTQ in one pass."""
    return [{"method": "prune", "saliency": "sparsegpt"} | mask, *gptq(bits, group, *more)]


def codebook(*more: dict, **width) -> list[dict]:
    return [{"method": "quantize", "mapping": "gradient"} | width, *more]


FIXED = {
    **{f"uniform {b} bits, group {g}": uniform(b, g) for b in (2, 3, 4) for g in (128, 64)},
    **{f"uniform {b} bits, group 32, coded": uniform(b, 32, LOSSLESS) for b in (3, 4)},
    **{f"uniform {b} bits, row, coded": uniform(b, None, LOSSLESS) for b in (5, 6)},
    **{f"codebook {b} bits, row, coded": codebook(LOSSLESS, num_bits=b) for b in (3, 4)},
    **{f"codebook, {a} bits allocated": codebook(LOSSLESS, avg_bits=a) for a in (2.1, 2.6, 3.1, 4.1)},
    **{f"gptq {b} bits, group 128": gptq(b, 128) for b in (2, 3, 4)},
    **{f"gptq {b} bits, group 128, coded": gptq(b, 128, LOSSLESS) for b in (2, 3, 4)},
    **{f"gptq {b} bits, row, coded": gptq(b, None, LOSSLESS) for b in (3, 4, 5, 6)},
    "prune 50 % fisher, 4 bits, group 128": [_FISHER, *uniform(4, 128)],
    **{f"sparsegpt 50 %, gptq {b} bits, group 128, coded": joint(b, 128, LOSSLESS, sparsity=0.5) for b in (2, 3, 4)},
    **{f"sparsegpt 70 %, gptq {b} bits, group 128, coded": joint(b, 128, LOSSLESS, sparsity=0.7) for b in (2, 3, 4)},
    "sparsegpt 2:4, gptq 4 bits, group 128, coded": joint(4, 128, LOSSLESS, mask_structure="2:4"),
    **{f"autoround {b} bits, group 128, coded": uniform(b, 128, LOSSLESS, algorithm="autoround") for b in (2, 3)},
    **{f"sparsegpt 50 %, autoround {b} bits, group 128, coded": [_SPARSE, *uniform(b, 128, LOSSLESS, algorithm="autoround")] for b in (2, 3)},
}
"""Name -> steps."""
