"""How much memory a job's child takes at its peak, from the shapes of its tensors. It streams: one tensor at a time is in memory, not the model.

The figures are bounds on what benchmarks/child_memory.py and tests/worker/test_memory.py measure (anonymous memory; mapped files do not count).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from app.job_spec import JobSpec
from app.recipe import Lossless, Prune, Quantize
from app.targets import Treatment

_MB = 1 << 20
_LOSSLESS = 190 * _MB  # Python, torch, and 1 MiB chunks in work on up to 8 threads
_CHANGING = 250 * _MB  # and the parts of a tensor that are worked on together
_A_TENSOR = 4 << 10  # its plan, its row of the report, its entry in the index
_PROOF, _PROOF_WEIGHTS, PROOF_LIMIT = 320 * _MB, 1.25, 4 << 30  # transformers holds all weights at once; above the limit it is not asked
_SEARCH, _GRID_SEARCH = 16, 28  # bytes of an element: a scale search over a whole tensor has its trials in float32, of offsets and tables more of them
_GRADIENTS, _CODEBOOKS = 8, 12  # bytes of an element: what is known of its gradient, and what that makes it worth while levels are placed
_UNKNOWN = 4
_RUNNING = 800 * _MB  # torch and transformers, and what a batch leaves behind on its way through a network of common width
OTHER = 1 << 30
"""Bound on the child of a job on images or a data set, which looks at bounded parts of them one after another."""
FOLLOWED = 256 * _MB
"""Most that training keeps of what the original model says to the samples, hidden states included (where it is more, it is asked batch by batch), and, beside it,
of sums over the inputs of layers that are fitted together."""
TRIED = 512 * _MB
"""Most that a search keeps of matrices as options leave them."""
_RUNS, _FELT, _TRAINED, _SEARCHED = 8, 12, 24, 16  # bytes of an element of a model that is run: two in float32 side by side; one and two sums; one that is trained by another; one in which matrices are replaced
_LEARNED = 20  # one of whose blocks the rounding is learned: eight numbers for each weight of it


def peak_memory(treatments: Iterable[Treatment], *, proof: bool, runs: int = 0) -> int:
    """Bytes.

    Args:
        treatments: of every tensor.
        proof: whether transformers loads the result, see `proof_wanted`.
        runs: bytes that an element takes while the model is run, see `run_bytes`.
    """
    count = total = most = elements = 0
    changing = False
    for t in treatments:
        count, total = count + 1, total + t.spec.nbytes
        most = max(most, _working_set(t))
        elements += math.prod(t.spec.shape)
        changing |= any(not isinstance(s, Lossless) for s in t.steps)
    child = (_CHANGING if changing else _LOSSLESS) + most + count * _A_TENSOR
    run = _RUNNING + runs * elements + {_TRAINED: 2 * FOLLOWED, _SEARCHED: TRIED}.get(runs, 0) if runs else 0
    return max(child, run, _PROOF + int(_PROOF_WEIGHTS * total) if proof and total <= PROOF_LIMIT else 0)


def run_bytes(spec: JobSpec) -> int:
    """Of an element, while the model is run on data: to train it, to learn what its output feels or what goes into its layers, to compare; 0 where it is not run."""
    if spec.calibration is None:
        return 0
    if spec.recipe.searches:
        return _SEARCHED
    if any(step.learns for step in spec.recipe.step(Quantize)):
        return _LEARNED
    felt = spec.recipe.needs_gradients and spec.gradients is None
    return _TRAINED if spec.recipe.recovers else _FELT if felt or spec.recipe.reconstructs else _RUNS


def unknown_peak(nbytes: int) -> int:
    """Of a file whose tensors are known only once it is parsed: a guess, for a largest tensor of a quarter of its bytes."""
    return _CHANGING + 4 * (nbytes // _UNKNOWN)


def proof_wanted(output: str, files: Iterable[str]) -> bool:
    """Whether a library that its users would load it with opens the result: transformers, torch.export."""
    return output == "pt2" or output in ("safetensors", "compressed-tensors") and any(f.rsplit("/", 1)[-1] == "config.json" for f in files)


def _working_set(t: Treatment) -> int:
    """Bytes of one tensor's copies: changed values twice, codes or a mask, and what a step makes of the whole tensor."""
    elements = math.prod(t.spec.shape)
    shrinking = 3 * t.cut.spec.nbytes if t.cut else 0  # as it was, what is left, and that in its old place, to be compared
    if not (t.step(Prune) or t.quantize):
        return shrinking
    q: Quantize | None = t.quantize
    whole = q is not None and q.strategy == "tensor" and q.scale_search != "absmax"
    gradients = any(getattr(s, "needs_gradients", False) for s in t.steps)
    codebooks = q is not None and q.mapping == "gradient"
    searched = (_SEARCH if q and q.plain_scales else _GRID_SEARCH) * whole * elements // (t.experts or 1)  # of one expert after another
    around = t.spec.nbytes if t.experts and t.transposed else 0  # the same, its axes changed about
    return shrinking + around + 2 * t.spec.nbytes + searched + elements * (4 + _GRADIENTS * gradients + _CODEBOOKS * codebooks)
