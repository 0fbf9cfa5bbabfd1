"""Proves the GPU of this worker process: a jailed child computes on it, as a job will."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from worker import child
from worker.zygote import Limits, Zygote

_SECONDS = 120.0
_MEMORY = 8 << 30


def tell(inp: Path, out: Path, spec: dict, emit: Callable[[dict], None]) -> None:
    """The child's entry: compute something on the GPU, and leave its name in `out/device`."""
    import torch  # not in the worker process, which imports the rest of this file

    from worker.devices import describe

    device = torch.device("cuda")
    if torch.ones(8, device=device).sum().item() != 8:
        raise ArithmeticError("the GPU cannot add")
    (out / "device").write_text(describe(device))
    emit({"event": "done"})


def probe() -> tuple[str, str]:
    """Compute on the GPU as a job will, in the jail.

    Returns:
        (`cuda` and the GPU's name, ""), or ("cpu", why it cannot be used).
    """
    zygote = Zygote("worker.gpu_probe:tell")
    with tempfile.TemporaryDirectory(prefix="modelpress-gpu-") as folder:
        inp, out, spec = Path(folder, "in"), Path(folder, "out"), Path(folder, "spec.json")
        inp.mkdir()
        out.mkdir()
        spec.write_text("{}")
        try:
            ended = child.run(zygote, inp, out, spec, Limits(_MEMORY, 1 << 20, 1, gpu=True), stop=lambda: False, seconds=_SECONDS, progress=lambda p: None)
            if ended.how != "done":
                return "cpu", ended.why or ended.how
            return (out / "device").read_text()[:100], ""
        finally:
            zygote.close()
