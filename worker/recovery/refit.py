"""Before any training: what pruning has left of each linear layer is set by least squares to give what the whole layer gave, on the original's own inputs.

One pass of the samples through the original collects the sums (`worker.kernels.least_squares`); it takes seconds and does what hundreds of training steps
would. Layers that hooks do not see, and those whose sums are too large, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from app.memory import FOLLOWED
from worker.calibration import chosen
from worker.kernels import least_squares
from worker.layer_gradients import is_matrix, is_turned
from worker.moments import Moments
from worker.recovery.weights import Masked, Weight
from worker.runnable.runnable import Runnable
from worker.samples import Batch, Data, Images, Vocabulary

ROWS = 1 << 14
"""Tokens (or samples, or places of images) that are enough."""
COPIES = 2  # perturbed ones of each sample
_BATCH = 16


@dataclass
class Refit:
    """Args:
    original: the model as it was.
    others: makes other samples of the data's; None for samples as they are.
    places: of layers that have lost inputs, which they have left: int64, ascending, by weight.
    """

    original: Runnable
    data: Data
    seed: int
    others: Vocabulary | Images | None = None
    places: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Weight]) -> None:
        """Change the values of those that have lost something, in place."""
        layers = {m.weight: m for m in self.original.module.modules() if is_matrix(m)}
        found = {name: layers[p] for name, p in self.original.parameters.items() if p in layers and self._lost(name, weights.get(name))}
        for names in _groups(found):
            grams = self._grams([found[name] for name in names])
            for name in names:
                if (gram := grams.get(found[name].weight)) is not None:
                    self._solve(weights[name], found[name], gram, self.places.get(name))

    def _lost(self, name: str, weight: Weight | None) -> bool:
        return isinstance(weight, Masked) and (name in self.places or weight.mask is not None and not bool(weight.mask.all()))

    def _solve(self, weight: Masked, layer: nn.Module, gram: torch.Tensor, places: torch.Tensor | None) -> None:
        whole, values = (t.T if is_turned(layer) else t for t in (layer.weight, weight.parameter.data))
        products = whole @ gram
        if places is not None:
            places = places.to(gram.device)
            gram, products, whole = gram[places][:, places], products[:, places], whole[:, places]
        mask = torch.ones_like(values, dtype=torch.bool) if weight.mask is None else weight.mask.T if is_turned(layer) else weight.mask
        if bool(torch.isfinite(solved := least_squares.solve(whole, mask, gram, products)).all()):
            values.copy_(solved)

    def _grams(self, wanted: list[nn.Module]) -> dict[nn.Parameter, torch.Tensor]:
        """X^T X of each layer's inputs, float32 [I, I]."""
        mask = None
        with Moments(wanted, lambda: mask) as moments:
            for batch in self._batches():
                mask = batch.mask
                self.original.forward(batch)
                sums = {layer.weight: found for layer in wanted if (found := moments.of(layer.weight)) is not None}
                if max((found.tokens for found in sums.values()), default=0) >= ROWS:
                    break
        return {weight: found.gram for weight, found in sums.items()}

    def _batches(self) -> Iterator[Batch]:
        """Samples of `fit` in an order drawn from the seed, each batch followed by its copies."""
        generator = torch.Generator().manual_seed(self.seed % (1 << 63))
        positions = chosen(self.data)
        order = [positions[i] for i in torch.randperm(len(positions), generator=generator).tolist()]
        for start in range(0, len(order), _BATCH):
            batch = self.data.batch(order[start : start + _BATCH]).to(self.original.device)
            yield batch
            for _ in range(COPIES if self.others else 0):
                yield self.others(batch, list(range(len(batch))), generator)


def _groups(layers: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Names of layers whose sums take at most `app.memory.FOLLOWED` bytes together; a layer whose own take more is in none."""
    group, size = [], 0
    for name, layer in layers.items():
        own = 4 * (layer.weight.shape[0] if is_turned(layer) else layer.weight.shape[1]) ** 2
        if own > FOLLOWED:
            continue
        if size + own > FOLLOWED:
            yield group
            group, size = [], 0
        group.append(name)
        size += own
    if group:
        yield group
