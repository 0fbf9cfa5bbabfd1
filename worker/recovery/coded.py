"""A weight matrix under codebooks: every value is a level, levels are trained by the summed gradients of their weights (Han et al., 2016, "Deep Compression").

Behind the codes stand latent weights, which the gradients of the values move as if there were no codes (Bengio et al., 2013); now and then each goes to the
level that is best for it (`worker.kernels.assignment`), until the codes are frozen and only the levels move.
"""

from __future__ import annotations

import torch

from app.recipe import Quantize
from worker import gradient_mapping
from worker.encoded import Codebook
from worker.kernels import assignment, codebooks
from worker.kernels.adam import BETA2, Moments, step
from worker.plan import TensorPlan

_LARGEST, _SMALLEST = 6e4, 1e-4  # magnitudes that float16 keeps with its whole precision, with room to move


class Coded:
    """Args:
    parameter: of the network, whose values are what is to be coded; its memory is this one's own.
    fisher: float32, the tensor's shape: by how much the loss grows with the square of an error of each weight. It follows the gradients seen while codes
        change: where coding has hurt, it rises, and the price of a bit counts for less.
    batch: samples whose mean a gradient is.
    scale: the unit of a step: the spread of the tensor as it was in the input. What a mask leaves has a far larger one.
    mask: bool, the tensor's shape: what is dropped has the level 0 and stays so.
    price: nats of the loss that one bit is worth; above 0 there is a level 0, to which weights may go.
    """

    def __init__(self, parameter: torch.nn.Parameter, plan: TensorPlan, quantize: Quantize, fisher: torch.Tensor, mask: torch.Tensor | None, price: float, batch: int, scale: float):
        self.parameter, self.plan, self.quantize, self.price, self.batch = parameter, plan, quantize, price, batch
        self.latent = plan.matrix(parameter.data).clone(memory_format=torch.contiguous_format)
        self.mask = None if mask is None else plan.matrix(mask)
        self.fisher = plan.matrix(fisher).clone()
        self.fisher += self.fisher.mean() * 0.01 + torch.finfo(torch.float32).tiny  # a weight that no sample has used still has a nearest level
        rows, columns = self.latent.shape
        self.group = quantize.group_size if quantize.strategy == "group" else columns
        self.books = self._books(rows, columns)
        self.scale = scale
        self.levels = self._fitted()
        inside = (self.levels.abs() < _LARGEST) & ((self.levels.abs() > _SMALLEST) | (self.levels == 0))
        self.dtype = torch.float16 if bool(inside.all()) else torch.float32
        self.frozen = False
        self.of_latent, self.of_levels = Moments.like(self.latent), Moments.like(self.levels)
        self.codes = torch.zeros_like(self.latent, dtype=torch.long)
        self.assign(0.0)

    def _books(self, rows: int, columns: int) -> torch.Tensor:
        """Which codebook each weight has, [O, I] or broadcast to it."""
        if self.quantize.strategy == "tensor":
            count = self.plan.experts or 1
            books = torch.arange(count, device=self.latent.device)[:, None]
            return books if count == 1 else books.repeat_interleave(rows // count, 0)
        first = torch.arange(rows, device=self.latent.device)[:, None] * -(-columns // self.group)
        return first + torch.arange(columns, device=self.latent.device) // self.group

    def _fitted(self) -> torch.Tensor:
        """Levels by weighted k-means: of all weights, of each row, or of each group. [K, L]."""
        f = self.fisher if self.mask is None else self.fisher * self.mask  # what is dropped has a level of its own, and no say in the others
        zero, size = self.zeroed, 1 << self.quantize.num_bits
        if self.quantize.strategy == "tensor":
            each = gradient_mapping.split(self.latent, f, self.mask, self.plan.experts or 1)
            return gradient_mapping.alike([(x[:0], self._book(x, f, kept, size)) for x, f, kept in each])[1]
        parts = [codebooks.fit(x.contiguous(), w.contiguous(), size, zero) for x, w in zip(self.latent.split(self.group, 1), f.split(self.group, 1), strict=True)]
        return torch.stack(parts, 1).flatten(0, 1)

    def _book(self, x: torch.Tensor, f: torch.Tensor, kept: torch.Tensor | None, size: int) -> torch.Tensor:
        chosen = slice(None) if kept is None else kept.reshape(-1)
        x, f = x.reshape(-1)[chosen][None], f.reshape(-1)[chosen][None]
        return codebooks.fit(x, f, size, self.zeroed) if x.numel() else x.new_zeros(1, 1)

    @property
    def zeroed(self) -> bool:
        return self.mask is not None or self.price > 0

    def _zero(self) -> torch.Tensor | None:
        """Which level of each codebook is 0, [K]."""
        return (self.levels == 0).int().argmax(1) if self.zeroed else None

    @torch.no_grad()
    def assign(self, part: float = 1.0) -> None:
        """Codes anew, under `part` of the price. Nothing once they are frozen."""
        if self.frozen:
            return
        zero = self._zero()
        price = self._price(zero, part) if self.price * part > 0 else None
        self.codes = assignment.assign(self.latent, self.levels, self.books, self.fisher, zero, price)
        if self.mask is not None:
            self.codes = torch.where(self.mask, self.codes, zero[self.books].expand(self.codes.shape))
        self.place()

    def _price(self, zero: torch.Tensor | None, part: float) -> assignment.Price:
        kept = self.codes != zero[self.books]
        bits = assignment.code_bits(self.codes[kept], self.levels.shape[1])
        return assignment.Price(self.price * part, bits, *assignment.zero_bits(kept))

    @torch.no_grad()
    def update(self, gradient: torch.Tensor, rate: float, penalty: tuple[str, float] = ("none", 0.0)) -> None:
        gradient, rate = self.plan.matrix(gradient), rate * self.scale
        of_levels = assignment.summed(gradient, self.codes, self.books.expand(self.codes.shape), tuple(self.levels.shape))
        moved = step(self.of_levels, of_levels, rate)
        if self.zeroed:
            moved.scatter_(1, self._zero()[:, None], 0)
        self.levels -= moved
        if not self.frozen:
            self.fisher.mul_(BETA2).addcmul_(gradient, gradient, value=(1 - BETA2) * self.batch / 2)
            self.latent -= step(self.of_latent, gradient if self.mask is None else gradient * self.mask, rate)
        self.place()

    @torch.no_grad()
    def place(self) -> None:
        values = self.levels.to(self.dtype).float()[self.books.expand(self.codes.shape), self.codes]
        self.parameter.data.copy_(self.plan.shaped(values))

    def codebook(self) -> tuple[Codebook, torch.Tensor]:
        """Levels ascending, on the CPU, and bool [O, I], True where a weight is not 0."""
        levels = self.levels.to(self.dtype)
        order = levels.argsort(dim=1, stable=True)
        codes = order.argsort(dim=1)[self.books.expand(self.codes.shape), self.codes]
        found = Codebook(codes.to(torch.uint8).cpu(), levels.gather(1, order).cpu(), self.group, self.quantize.num_bits, self.quantize, self.plan.transposed, self.plan.experts)
        return found, found.dequantize() != 0

    def best(self) -> dict[str, torch.Tensor]:
        return {"levels": self.levels, "codes": self.codes.to(torch.uint8)}

    def state(self) -> dict[str, torch.Tensor]:
        kept = {} if self.mask is None else {"mask": self.mask.contiguous()}
        counts = torch.tensor([self.of_levels.count, self.of_latent.count, int(self.frozen), int(self.dtype == torch.float16)])
        levels = {"levels": self.levels, "level_first": self.of_levels.first, "level_second": self.of_levels.second}
        latent = {"latent": self.latent, "first": self.of_latent.first, "second": self.of_latent.second, "codes": self.codes.to(torch.uint8)}
        return levels | latent | kept | {"counts": counts, "fisher": self.fisher, "scale": torch.tensor(self.scale, dtype=torch.float64)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.levels, self.codes = state["levels"], state["codes"].long()
        if "counts" in state:
            self.latent, self.fisher, self.mask, self.scale = state["latent"], state["fisher"], state.get("mask"), float(state["scale"])
            counts = state["counts"].tolist()
            self.of_levels = Moments(state["level_first"], state["level_second"], counts[0])
            self.of_latent = Moments(state["first"], state["second"], counts[1])
            self.frozen, self.dtype = bool(counts[2]), torch.float16 if counts[3] else torch.float32
        self.place()
