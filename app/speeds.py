"""How long a byte of input takes on one common core, in seconds: what is assumed where nothing like it was measured. One digit is right."""

from __future__ import annotations

from app.steps import STEPS, Step

METHODS = {"lossless": 4e-9, "prune": 1.2e-8, "quantize": 4e-9, "auto": 6e-7, "restore": 5e-9}  # auto: to carry out what it has found
COMPILED, FITTED = 8e-9, 4e-8  # to quantize by a search that is compiled: of plain scales and zero points; of scales with float offsets or of two levels
CODED_MOST = 1.2e-8  # lossless at level `max`
OTHER = 1e-6  # of a step of images or data sets that says nothing of its own
SEARCH, ROUND = 5e-7, 4e-8  # by those that are not, and without a search where rounding is not
CODEBOOKS = 6e-7  # with `mapping: gradient`
COPY, CHECK = 2e-9, 5e-10  # to carry a tensor over, and to look whether its values are finite
PROVE = 5.0  # seconds that a load proof takes to import transformers, whatever the size
TRAIN = 1e-10  # with each sample of a batch that `recover` trains on: through the network and back, and through the original
LEARN = 1e-8  # with each step that `algorithm: autoround` learns in
STAGES = {
    "fetch": 3e-9, "restore": METHODS["restore"], "calibrate": 3e-7, "search": 2e-6, "reconstruct": 3e-7, "verify": 4e-9, "measure": 3e-7, "prove": 2e-9, "store": 4e-9,
    "sign": 4e-9,
}  # fmt: skip


def of(step: Step) -> float:
    """Of one step of a recipe."""
    if type(step) not in STEPS["model"].values():
        return getattr(step, "seconds", OTHER)
    if step.method == "lossless" and step.level == "max":
        return CODED_MOST
    if step.method != "quantize":
        return METHODS[step.method]
    if step.mapping == "gradient":
        return CODEBOOKS
    compiled = step.plain_scales and step.strategy != "tensor"
    if step.scale_search == "absmax":
        return METHODS["quantize"] if compiled else ROUND
    if step.scale_search == "hqq" or step.type != "int":
        return SEARCH
    return COMPILED if compiled else FITTED
