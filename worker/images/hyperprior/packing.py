"""From a network that was trained to the model that decodes: its layers in integers, and tables counted on the images that it has learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from worker.images.hyperprior import coding
from worker.images.hyperprior.codec import analysed, quantized
from worker.images.hyperprior.fixed import LEVELS, LOWEST, MIDDLE, ONE, STEPS
from worker.images.hyperprior.integers import Decoder, Layer
from worker.images.hyperprior.model import Model
from worker.images.hyperprior.network import Convolution, Network
from worker.images.hyperprior.training import AROUND

SEEN = 1 << 21
"""Pixels that are counted on, about."""


def packed(network: Network, images: list[np.ndarray]) -> Model:
    """Args:
    network: on the CPU.
    images: [H, W, C] uint8, that it has learned from.
    """
    hyper = tuple(_layer(c) for c in network.hyper_synthesis)
    synthesis = tuple(_layer(c) for first, block in network.synthesis for c in (first, block.first, block.second))
    decoder = Decoder(hyper, (*synthesis, _layer(network.out)))
    nothing = np.empty(0, np.int64)
    model = Model(network.shape, MIDDLE, decoder, coding.counted(nothing, nothing), np.zeros(network.shape.side, np.int64))
    side, values, levels, pixels = [], [], [], 0
    for image in images:
        latents = analysed(image[:1024, :1024], network)
        for quality in (MIDDLE - AROUND, MIDDLE, MIDDLE + AROUND):
            z, y, level = quantized(latents, quality, model)
            values.append(y.reshape(-1))
            levels.append(level.reshape(-1))
        side.append(z.reshape(len(z), -1))
        pixels += image[:1024, :1024, 0].size
        if pixels > SEEN:
            break
    z = np.concatenate(side, 1)
    spread = np.log2(np.maximum(np.sqrt(np.square(z).mean(1)), 2.0 ** (LOWEST / STEPS)))
    side_levels = np.clip(np.rint(STEPS * spread).astype(np.int64) - LOWEST, 0, LEVELS - 1)
    values.append(z.reshape(-1))
    levels.append(np.repeat(side_levels, z.shape[1]))
    return replace(model, tables=coding.counted(np.concatenate(values), np.concatenate(levels)), side_levels=side_levels)


@torch.no_grad()
def _layer(convolution: Convolution) -> Layer:
    shifts = convolution.shifts()
    weight = (convolution.weight.double() * torch.exp2(shifts.double())[:, None, None, None]).round().clamp(-127, 127)
    bias = (convolution.bias.double() * ONE * torch.exp2(shifts.double())).round().clamp(-(2**31), 2**31 - 1)
    return Layer(weight.numpy().astype(np.int8), bias.numpy().astype(np.int32), shifts.numpy())
