"""An autoencoder with a hyperprior: Ballé, Minnen, Singh, Hwang and Johnston, "Variational image compression with a scale hyperprior" (2018), with means as in Minnen, Ballé and Toderici (2018).

    analysis        pixels -> latents, [M, H / 16, W / 16]
    hyper_analysis  latents -> side information, [Z, H / 64, W / 64]
    hyper_synthesis side information -> for each latent its mean, and the logarithm of its spread
    synthesis       quantized latents -> pixels

Layers are convolutions of 3 x 3 with halvings and doublings by moved pixels (Shi et al. 2016), leaky ReLU between them and a residual block at each resolution: all of it has a twin in
integers (`integers`). (With ReLU two in three channels of the analysis died early in training, and what they would have carried was lost at any rate.) One network serves all qualities: its latents are quantized in steps that the quality tells. The weights of what decodes are what they will be, int8 times
a power of two for each output, in every step of training; gradients pass through the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from worker.images.hyperprior.fixed import FURTHEST, LEAK, LOWEST, MIDDLE, MOST, OCTAVE, ONE, STEPS

MOST_SHIFT = 24
GAIN = 8.0
"""Of latents over what the last layer of the analysis gives, so that they are of the size of a step early."""


@dataclass(frozen=True)
class Shape:
    """Args:
    channels: of images, 1 or 3.
    widths: of layers at 1/2, 1/4 and 1/8 of the resolution.
    latents: M.
    side: Z, and the width of the hyperprior's layers.
    """

    channels: int
    widths: tuple[int, int, int]
    latents: int
    side: int


class Convolution(nn.Conv2d):
    """3 x 3. With `whole` its weights are int8 times a power of two."""

    def __init__(self, inputs: int, outputs: int, whole: bool = False):
        super().__init__(inputs, outputs, 3, padding=1)
        self.whole = whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.rounded() if self.whole else self.weight, self.bias, padding=1)

    def shifts(self) -> torch.Tensor:
        """[O] int64: weights times 2^shift are integers of at most 127."""
        largest = self.weight.detach().abs().amax((1, 2, 3)).double().clamp(min=1e-30)
        return torch.floor(torch.log2(127 / largest)).clamp(0, MOST_SHIFT).long()

    def rounded(self) -> torch.Tensor:
        scale = torch.exp2(self.shifts().to(self.weight.dtype))[:, None, None, None]
        return self.weight + ((self.weight * scale).round().clamp(-127, 127) / scale - self.weight).detach()


class Block(nn.Module):
    """x + what two layers make of it, which is little at first."""

    def __init__(self, width: int, whole: bool = False):
        super().__init__()
        self.first, self.second = Convolution(width, width, whole), Convolution(width, width, whole)
        with torch.no_grad():
            self.second.weight *= 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return bent(x + self.second(bent(self.first(x))))


def bent(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU, within what an integer layer takes."""
    return F.leaky_relu(x, 1 / LEAK).clamp(-MOST / ONE, MOST / ONE)


class Network(nn.Module):
    """Args: shape."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        a, b, c = shape.widths
        sides = [(4 * shape.channels, a), (4 * a, b), (4 * b, c)]
        self.analysis = nn.ModuleList(nn.ModuleList([Convolution(i, o), Block(o)]) for i, o in sides)
        self.last = Convolution(4 * c, shape.latents)
        z = shape.side
        self.hyper_analysis = nn.ModuleList([Convolution(shape.latents, z), Convolution(4 * z, z), Convolution(4 * z, z)])
        self.spread = nn.Parameter(torch.zeros(z))  # logarithm to base 2, of the side information
        self.hyper_synthesis = nn.ModuleList([Convolution(z, 4 * z, True), Convolution(z, 4 * z, True), Convolution(z, 2 * shape.latents, True)])
        sides = [(shape.latents + 1, c), (c, b), (b, a)]
        self.synthesis = nn.ModuleList(nn.ModuleList([Convolution(i, 4 * o, True), Block(o, True)]) for i, o in sides)
        self.out = Convolution(a, 4 * shape.channels, True)

    def analyse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, C, H, W], (pixels - 128) / PIXEL, H and W multiples of MULTIPLE -> latents and side information, neither quantized."""
        for convolution, block in self.analysis:
            x = block(bent(convolution(F.pixel_unshuffle(x, 2))))
        y = GAIN * self.last(F.pixel_unshuffle(x, 2))
        z = bent(self.hyper_analysis[0](y / GAIN))
        z = bent(self.hyper_analysis[1](F.pixel_unshuffle(z, 2)))
        return y, GAIN * self.hyper_analysis[2](F.pixel_unshuffle(z, 2))

    def expect(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Side information in whole numbers -> means of the latents, and logarithms (to base 2) of their spreads."""
        x = bent(F.pixel_shuffle(self.hyper_synthesis[0](z), 2))
        x = bent(F.pixel_shuffle(self.hyper_synthesis[1](x), 2))
        return self.hyper_synthesis[2](x).chunk(2, 1)

    def synthesize(self, y: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        """Quantized latents, and [N] -> pixels as `analyse` takes them."""
        plane = ((quality - MIDDLE) / OCTAVE)[:, None, None, None].expand(-1, 1, *y.shape[2:])
        x = torch.cat([y.clamp(-FURTHEST / ONE, FURTHEST / ONE), plane], 1)
        for convolution, block in self.synthesis:
            x = block(bent(F.pixel_shuffle(convolution(x), 2)))
        return F.pixel_shuffle(self.out(x), 2)

    def forward(self, x: torch.Tensor, quality: torch.Tensor, noisy: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """What is decoded, and bits of each image, as they are while training: for the bits always with noise of a step, for the decoder in whole steps (Minnen and Singh 2020).

        Args:
            noisy: for the decoder too. A latent below half a step would be 0 there, so that nothing learned what it is good for, and it would stay so.
        """
        y, z = self.analyse(x)
        bits = _bits(z + torch.rand_like(z) - 0.5, self.spread[None, :, None, None]).sum((1, 2, 3))
        mean, spread = self.expect(_whole(z))
        step = torch.exp2((MIDDLE - quality) / OCTAVE)[:, None, None, None]
        y, spread = (y - mean) / step, spread - torch.log2(step)
        moved = y + torch.rand_like(y) - 0.5
        bits = bits + _bits(moved, spread).sum((1, 2, 3))
        return self.synthesize((moved if noisy else _whole(y)) * step + mean, quality), bits


def _whole(x: torch.Tensor) -> torch.Tensor:
    return x + (x.round() - x).detach()


def _bits(x: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Of each value in steps of one, by a normal distribution about 0 whose spread is 2^`spread`."""
    scale = torch.exp2(_held(spread)) * 2**0.5
    x = x.abs()
    # of the tails, whose difference is exact where that of the middle is not
    share = 0.5 * (torch.erfc((x - 0.5) / scale) - torch.erfc((x + 0.5) / scale))
    return -torch.log2(share.clamp(min=2.0**-20))


def _held(spread: torch.Tensor) -> torch.Tensor:
    """Not below the lowest level; its gradient passes where it would lead back."""
    least = LOWEST / STEPS
    return _LowerBound.apply(spread, least)


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, least: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.least = least
        return x.clamp(min=least)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.least) | (grad < 0)), None
