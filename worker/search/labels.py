"""Steps in few words, such as `prune fisher 2:4, uniform 4 bits, group 128`."""

from __future__ import annotations

from collections.abc import Iterable

from app.recipe import Prune, Quantize, Step


def label(steps: Iterable[Step]) -> str:
    return ", ".join(map(_one, steps)) or "nothing"


def _one(step: Step) -> str:
    if isinstance(step, Prune):
        return f"prune {step.saliency} " + (f"{step.sparsity:g}" if step.mask_structure == "unstructured" else step.mask_structure)
    if isinstance(step, Quantize):
        width = f"{step.num_bits} bits" if step.num_bits else f"{step.avg_bits:g} bits on average"
        how = "".join(f", {w}" for w, told in ((step.type, step.type != "int"), ("absmax", step.mapping == "uniform" and step.scale_search == "absmax"), ("offsets", not step.symmetric), ("gptq", step.reconstructs)) if told)
        return f"{'codebook' if step.mapping == 'gradient' else step.mapping} {width}, {step.strategy}" + (f" {step.group_size}" if step.group_size else "") + (f", scales of {step.scale_bits} bits" if step.scale_bits else "") + how
    return step.method
