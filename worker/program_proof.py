"""The load proof of a `.pt2`: `torch.export.load` opens the result, and it is run once, on zeros."""

from __future__ import annotations

from pathlib import Path

import torch

from app.errors import InputRefused, LoadProofFailed
from worker.formats.pt2_file import Pt2File
from worker.programs import describe, load, zeros

_SAMPLES = 2


def prove(path: Path) -> dict:
    """What torch.export said of the file.

    Returns:
        `{loaded, library, version, tensors}`, and `ran` with inputs, the output's shape and whether it is finite, or the reason why it was not run.

    Raises:
        LoadProofFailed: the file holds more than this service writes, or torch does not load it, or finds other tensors in it.
    """
    source = Pt2File(path, path.name)
    if more := [d.name for d in source.dropped if d.kept_in is None]:
        raise LoadProofFailed(f"the result holds what it must not: {', '.join(more[:3])}")
    devices = {meta["tensor_meta"]["device"]["type"] for config in source.configs.values() for meta in config["config"].values()}
    elsewhere = sorted(devices - {"cpu"})
    try:
        names = load(source, torch.device("cpu")).parameters.keys() if elsewhere else torch.export.load(path).state_dict.keys()
    except Exception as e:  # whatever the library raises is its verdict
        raise LoadProofFailed(f"torch.export does not load the result: {type(e).__name__}: {str(e).strip()[-500:]}") from e
    if lost := (source.tensors.keys() | source.aliases.keys() if not elsewhere else source.program.parameters) - names:
        raise LoadProofFailed(f"torch.export finds no {', '.join(sorted(lost)[:3])} in the result")
    proof = {"loaded": True, "library": "torch.export", "version": torch.__version__, "tensors": len(names)}
    return proof | ({"moved": f"from {', '.join(elsewhere)} to the CPU"} if elsewhere else {}) | {"ran": _run(source)}


@torch.no_grad()
def _run(source: Pt2File) -> dict | str:
    try:
        loaded = load(source, torch.device("cpu"))
        output = loaded(zeros(loaded, _SAMPLES))
    except InputRefused as e:
        return f"no: {e.detail}"
    except MemoryError:
        return "no: it needs more memory than the proof has"
    except Exception as e:  # a program may refuse zeros; that it was loaded is proof enough
        return f"no: on zeros it says {type(e).__name__}: {str(e).strip()[:300]}"
    return {"inputs": describe(loaded), "output": list(output.shape), "finite": bool(torch.isfinite(output).all())}
