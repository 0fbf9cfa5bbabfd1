"""A matrix whose rounding is learned, on the grid that its step's scheme has: see `worker.kernels.signed_rounding`.

Where scales, and zero points, are stored as they come, their factors are learned too; scales of few bits and float offsets stay as they were found.
"""

from __future__ import annotations

import torch

from worker.kernels import signed_rounding, uniform
from worker.kernels.signed_rounding import Ends
from worker.schemes import Parameters, Scheme

_INSIDE = 0.5001  # of a step: what is farther from its level was clamped


class Offsets:
    """Args:
    w: [O, I] float32, what is rounded; 0 where `kept` is not.
    found: the parameters of all groups; of a tensor's, one.
    kept: bool [O, I], or None.
    """

    def __init__(self, w: torch.Tensor, found: Parameters, scheme: Scheme, kept: torch.Tensor | None):
        self.scheme, self.found, self.columns = scheme, found, w.shape[1]
        size = max(1, self.columns) if found.scale.shape[1] == 1 else scheme.group_size
        self._fill = -self.columns % size
        self._size = size
        self.w = self._grouped(w)
        self._kept = None if kept is None else self._grouped(kept.float())
        plain = scheme.scale_bits is None and scheme.offset != "float"
        count = 0 if not plain else 2 if scheme.offset == "integer" else 1
        self._ends = self._range() if count == 2 else None
        self.state = (torch.zeros_like(self.w), *(torch.ones_like(found.scale) for _ in range(count)))
        self._known: tuple | None = None

    def _grouped(self, t: torch.Tensor) -> torch.Tensor:
        """[O, I] as [O, G, g]; a short last group is filled up with zeros."""
        return torch.nn.functional.pad(t, (0, self._fill)).unflatten(1, (-1, self._size))

    def _range(self) -> Ends:
        levels, zero = self.scheme.levels, self.found.zero_point
        return Ends((levels.low - zero) * self.found.scale, (levels.high - zero) * self.found.scale, levels.high - levels.low)

    def parameters(self) -> Parameters:
        """Under the factors as they are."""
        factors = self.state[1:]
        if not factors:
            return self.found
        still = torch.stack([f == 1 for f in factors]).all(0)
        if len(factors) == 1:
            return Parameters(torch.where(still, self.found.scale, uniform.stored(self.found.scale * factors[0], self.scheme.dtype)))
        low, scale = signed_rounding.shifted(self._ends, *factors)
        scale, levels = uniform.stored(scale, self.scheme.dtype), self.scheme.levels
        zero = (levels.low - uniform.divide(low, scale)).round_().clamp_(levels.low, levels.high)
        return Parameters(torch.where(still, self.found.scale, scale), torch.where(still, self.found.zero_point, zero))

    def codes(self) -> torch.Tensor:
        """[O, I], as `Scheme.encode` gives them."""
        return self._codes(self.parameters()).flatten(1)[:, : self.columns]

    def _codes(self, p: Parameters) -> torch.Tensor:
        moved = torch.addcmul(self.w, self.state[0], p.scale[..., None].expand_as(self.w))
        return self.scheme.encode(moved if self._kept is None else moved * self._kept, p)

    def values(self) -> torch.Tensor:
        """[O, I] float32."""
        return self._decoded()[1].flatten(1)[:, : self.columns]

    def _decoded(self) -> tuple[Parameters, torch.Tensor]:
        """Parameters and values of the state as it is: they are asked for twice in each step."""
        if self._known is None or self._known[0] is not self.state:
            p = self.parameters()
            self._known = self.state, p, self.scheme.decode(self._codes(p), p)
        return self._known[1:]

    def step(self, gradient: torch.Tensor, rate: float, rate_of_factors: float) -> None:
        """Args: gradient: of `values`, [O, I]."""
        (p, values), g = self._decoded(), self._grouped(gradient)
        scale = p.scale[..., None]
        inside = torch.addcmul(self.w, self.state[0], scale.expand_as(self.w)).sub_(values).abs_().le_(_INSIDE * scale.abs())  # 1 or 0, in float32: bool takes several times as long
        state = [signed_rounding.moved(self.state[0], torch.mul(g, scale).mul_(inside), rate, 0.0)]
        if len(self.state) > 1:
            of_scale = self._summed(signed_rounding.scale_gradient(g, values, self.w, scale, inside))
            if self._ends is None:
                gradients = (of_scale * self.found.scale,)
            else:
                of_zero = self._summed(torch.mul(-g, scale).mul_(1 - inside))
                gradients = signed_rounding.factor_gradients(of_scale, of_zero, p.scale, self._ends, self._ends.low * self.state[1])
            state += [signed_rounding.moved(f, of, rate_of_factors, 1.0) for f, of in zip(self.state[1:], gradients, strict=True)]
        self.state = tuple(state)

    def _summed(self, t: torch.Tensor) -> torch.Tensor:
        """By group, or by tensor: shaped as the parameters are."""
        sums = t.sum(-1)
        return sums if len(self.found.scale) == len(sums) else sums.sum(0, keepdim=True)
