"""How long a byte of input takes on one common core, in seconds: what is assumed where nothing like it was measured. One digit is right."""

from __future__ import annotations

METHODS = {"lossless": 6e-9, "prune": 7e-8, "quantize": 4e-8, "auto": 6e-7, "restore": 1e-8}  # auto: to carry out what it has found
SEARCH = 5e-7  # to quantize with `scale_search: mse` or `hqq`
CODEBOOKS = 6e-7  # with `mapping: gradient`
COPY, CHECK = 2e-9, 1.2e-8  # to carry a tensor over, and to look whether its values are finite
PROVE = 5.0  # seconds that a load proof takes to import transformers, whatever the size
TRAIN = 1e-10  # with each sample of a batch that `recover` trains on: through the network and back, and through the original
LEARN = 1e-8  # with each step that `algorithm: autoround` learns in
STAGES = {
    "fetch": 3e-9, "restore": METHODS["restore"], "calibrate": 3e-7, "search": 2e-6, "reconstruct": 3e-7, "verify": 1e-8, "measure": 3e-7, "prove": 2e-9, "store": 4e-9,
    "sign": 4e-9,
}  # fmt: skip


def of(method: str, scale_search: str | None = None, mapping: str | None = None) -> float:
    """Of one step of a recipe."""
    if mapping == "gradient":
        return CODEBOOKS
    return SEARCH if scale_search in ("mse", "hqq") else METHODS[method]
