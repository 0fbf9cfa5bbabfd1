"""What may become of a matrix: a few steps of a recipe, without targets. The candidates are a list; another method is another line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from app.recipe import Prune, Quantize
from app.strict import validate

_ROW = {"strategy": "channel"}
_GROUPINGS = ({"group_size": 32}, {"group_size": 64}, {"group_size": 128}, _ROW)
UNIFORM = {2: _GROUPINGS, 3: _GROUPINGS, 4: _GROUPINGS, 5: _GROUPINGS[2:], 6: (_ROW,), 7: (_ROW,), 8: (_ROW,)}
"""Bits -> what shares a scale: the more bits, the less is gained by many scales."""
WIDE = {3: (_ROW,), 4: (_ROW, {"strategy": "tensor"}), 5: (_ROW, {"strategy": "tensor"}), 6: (_ROW, {"strategy": "tensor"}), 7: ({"strategy": "tensor"},)}
"""The same of grids that reach as far as the largest weight: most codes lie in their middle, which entropy coding gains by."""
_OFFSETS = {"scale_bits": 6, "symmetric": False}
TWO_LEVEL = {b: ({"group_size": 32} | _OFFSETS, {"group_size": 64} | _OFFSETS) for b in (2, 3, 4)}
MASKS = ({"sparsity": 0.5}, {"mask_structure": "2:4"})
NORMAL = {b: ({"group_size": 64}, {"group_size": 32, "scale_bits": 6}) for b in (3, 4)}


@dataclass(frozen=True)
class Option:
    """Args:
    steps: in their order, with targets still to be named.
    price: of codebooks under a price: what one bit is worth, in the unit of the losses that gradients tell; then `steps` has no width yet.
    """

    steps: tuple[Prune | Quantize, ...]
    price: float | None = None

    @property
    def uniform(self) -> bool:
        """Whether it is scale factors alone."""
        return len(self.steps) == 1 and isinstance(self.steps[0], Quantize) and self.steps[0].mapping == "uniform"

    @property
    def compensated(self) -> bool:
        """Whether its rounding makes up for its errors (`algorithm: gptq`), which takes what goes into the layer."""
        return any(getattr(s, "reconstructs", False) for s in self.steps)

    @property
    def plain(self) -> bool:
        """Whether it is integers on a searched grid, whose scales are learned too where its rounding is (`algorithm: autoround`)."""
        step = self.steps[0] if self.uniform else None
        return step is not None and step.type == "int" and step.scale_bits is None and step.scale_search == "mse"

    @property
    def has_twin(self) -> bool:
        """Whether it can be rounded by gptq too: whatever ends in scale factors."""
        return bool(self.steps) and self.steps[-1].mapping == "uniform"

    @property
    def mask(self) -> Prune | None:
        """The step that prunes."""
        return self.steps[0] if self.steps and isinstance(self.steps[0], Prune) else None

    @property
    def twin(self) -> Option:
        """The same, rounded by gptq, and pruned by SparseGPT in one pass with it."""
        changes = {"prune": {"saliency": "sparsegpt"}, "quantize": {"algorithm": "gptq"}}
        return _option(*(step.model_dump(exclude_defaults=True) | changes[step.method] for step in self.steps))


PRICED = Quantize(method="quantize", mapping="gradient", avg_bits=8.0, strategy="tensor")
"""The step of an option that has a price; its bits are told once it is encoded."""


def options(output: str, gradients: bool) -> list[Option]:
    """All that are tried, codebooks under a price and what is rounded by gptq aside.

    Args:
        output: packed or compressed-tensors, which carries scale factors alone.
        gradients: whether it is known how the loss feels each weight.
    """
    return list(_listed(output == "packed", gradients))


def _listed(packed: bool, gradients: bool) -> Iterator[Option]:
    for bits, groupings in UNIFORM.items():
        for grouping in groupings:
            yield _quantized(bits, grouping)
    if not packed:
        return
    for bits, groupings in WIDE.items():
        for grouping in groupings:
            yield _quantized(bits, grouping, scale_search="absmax")
    for bits, groupings in TWO_LEVEL.items():
        for grouping in groupings:
            yield _quantized(bits, grouping)
    for bits, groupings in NORMAL.items():
        for grouping in groupings:
            yield _quantized(bits, grouping, type="nf")
    if gradients:
        for bits in (2, 3, 4, 5):
            yield _option({"method": "quantize", "mapping": "gradient", "num_bits": bits})
        for pruned in MASKS:
            for bits in (2, 3, 4, 6):
                prune = {"method": "prune", "saliency": "fisher"} | pruned
                yield _option(prune, {"method": "quantize", "num_bits": bits, "scale_search": "mse", "group_size": 128})


def _quantized(bits: int, grouping: dict, **fields) -> Option:
    return _option({"method": "quantize", "num_bits": bits, "scale_search": "mse"} | grouping | fields)


def _option(*steps: dict) -> Option:
    return Option(tuple(validate(Prune if step["method"] == "prune" else Quantize, step) for step in steps))
