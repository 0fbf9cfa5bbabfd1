"""An option carried out on a matrix, and the bytes that it then takes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from app.compressed import entries
from app.recipe import Lossless
from worker import gradient_mapping
from worker.devices import CPU
from worker.encoded import Codebook, Encoded, Grid, Quantized
from worker.formats.packed_parts import parts_of
from worker.kernels.chunks import encode_chunk
from worker.kernels.coded_size import coded_bytes
from worker.methods import apply
from worker.plan import TensorPlan
from worker.search.options import PRICED, Option

_SMALL = 1 << 14  # values of what shares a payload with others, and needs no head of its own
_HEAD = 60  # bytes of a payload
_WIDTH = 8
LOSSLESS = Lossless(method="lossless")


def encode(plan: TensorPlan, option: Option, tensor: torch.Tensor, output: str, device: torch.device = CPU) -> Encoded:
    """A tensor as the option leaves it. Codes of `packed` are entropy-coded."""
    if option.price is not None:
        return _priced(plan, option.price, tensor, device)
    steps = [*option.steps, *([LOSSLESS] if output == "packed" else [])]
    return apply(replace(plan, steps=steps), tensor, device)


def _priced(plan: TensorPlan, price: float, tensor: torch.Tensor, device: torch.device) -> Encoded:
    matrix, square = plan.matrix(tensor.to(device)), plan.statistic("square").to(device)
    unit = float(square.double().mean())
    codebook = gradient_mapping.at_price(matrix, gradient_mapping.sensitivity(square, None), PRICED, price / unit if unit > 0 else price, _WIDTH, plan.transposed, plan.experts)
    dense = plan.shaped(codebook.dequantize().to(matrix.dtype))
    return Encoded(plan.spec, "quantized", dense, quantized=codebook, lossless=True).to(tensor.device)


def asked_bits(encoded: Encoded) -> int:
    """Of one that has a price: the `avg_bits` that brings it about, times its weights. Its payloads are taken for payloads of their own there."""
    q = encoded.quantized
    return 8 * gradient_mapping.coded(q.codes, q.levels, q.num_bits)


def stored(encoded: Encoded, output: str, rows: int | None = None) -> float:
    """Bytes of a tensor in the result. What the codes of a small one save in contexts, which takes microseconds for each, is not counted.

    Args:
        rows: of the whole matrix, where `encoded` is some rows of it; then the bytes of the whole, guessed.
    """
    q = encoded.quantized
    if output == "compressed-tensors":
        shape = tuple(encoded.spec.shape) if rows is None else (rows, *encoded.spec.shape[1:])
        return sum(e.nbytes for e in entries(encoded.spec.name, shape, q.params, encoded.spec.dtype))
    parts = parts_of(encoded, encoded.spec.nbytes)
    factors = [1.0] * len(parts)
    if rows is not None:
        times = rows / q.codes.shape[0]
        factors = [times, *([1.0] * (len(parts) - 1) if _shared(q) else [times] * (len(parts) - 1))]
    small = sum(len(p.values) * f for p, f in zip(parts, factors, strict=True)) <= _SMALL
    return sum(_part(p, f, small) for p, f in zip(parts, factors, strict=True))


def _shared(q: Quantized | Codebook | Grid) -> bool:
    """Whether what stands beside the codes is there once for all rows."""
    return not isinstance(q, Grid) and len(q.levels if isinstance(q, Codebook) else q.scale) == 1


def _part(part, factor: float, small: bool) -> float:
    values = part.whole()
    if not len(values):
        return 0.0
    if not part.entropy:
        return math.ceil(len(values) * factor * part.layout.raw_bytes(len(values)) / len(values)) + (0 if small else _HEAD)
    if small:
        return len(encode_chunk(values, part.layout)) * factor
    whole = coded_bytes(values, part.layout)
    return whole if factor == 1 else _HEAD + max(0, whole - _HEAD) * factor
