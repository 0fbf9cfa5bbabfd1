"""What this machine offers to a worker, as JSON on stdout: `python -m worker.machine`. `modelpress doctor` asks it; the service never imports torch."""

from __future__ import annotations

import importlib.util
import json
import os

from app.config import settings
from worker.jailed import exposed, probe


def machine() -> dict:
    """`jail`: what `worker.jailed.probe` found; `exposed`: the folder that children may read and the home lies in, or None; `torch`: None where it is
    not installed, else its version, threads, GPUs, and `kernels`: the instruction set of the compiled ones, or None."""
    jail, folder = probe(), exposed(settings().home)  # before torch: the probe forks
    return {"jail": jail, "exposed": folder and str(folder), "cores": os.cpu_count(), "torch": _torch() if importlib.util.find_spec("torch") else None}


def _torch() -> dict:
    import torch

    from worker.kernels import native

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads(), "gpus": gpus, "kernels": native.LEVELS[native.use(-1)] if native.available() else None}


if __name__ == "__main__":
    print(json.dumps(machine()))
