"""Entropy coding after other steps: values stay as they are, and `packed` stores them in fewer bytes. (Alone, `worker.lossless` keeps whole files.)"""

from __future__ import annotations

from dataclasses import replace

from app.recipe import Lossless
from worker.encoded import Encoded
from worker.methods.registry import method
from worker.plan import TensorPlan


@method(Lossless)
def lossless(plan: TensorPlan, step: Lossless, encoded: Encoded) -> Encoded:
    """Mark the tensor for entropy coding; one that no other step changed counts as encoded."""
    changed = encoded.action in ("pruned", "quantized")
    return replace(encoded, action=encoded.action if changed else "encoded", lossless=True, level=step.level)
