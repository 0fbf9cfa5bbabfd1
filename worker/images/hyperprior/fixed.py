"""The numbers that the network in floating point and its twin in integers agree on.

A floating value of one is ONE in integers. Quality q quantizes latents in steps of 2^((MIDDLE - q) / OCTAVE), and spreads are told in LEVELS classes, STEPS to an octave.
"""

from __future__ import annotations

FRACTION = 11
ONE = 1 << FRACTION
MOST = (1 << 16) - 1
"""Bound of what goes from layer to layer, in integers."""
LEAK = 8
"""What is below 0 is divided by it between layers, downwards."""
FURTHEST = 1 << 22
"""Bound of a latent, in integers."""
MIDDLE, OCTAVE = 50, 16
STEPS, LOWEST, LEVELS = 4, -16, 48
"""Level l stands for a spread of 2^((l + LOWEST) / STEPS) steps of the quantizer."""
PIXEL = 64
"""Levels of 255 to a floating one."""
MULTIPLE = 64
"""Sides of an image are padded to a multiple: four halvings to the latents, two more to what tells of their spread."""


def step_of(quality: int) -> int:
    """Of the quantizer, in integers."""
    return max(1, round(ONE * 2.0 ** ((MIDDLE - quality) / OCTAVE)))
