"""The GPU of a worker process: CUDA lives in jailed children only. A process that has initialised it cannot fork children that use it, so neither the
worker nor its zygote ever does.

`CUDA_VISIBLE_DEVICES` of the worker chooses the one that its children see. What a child may open beside what every child may:

    /dev/nvidia*                           read, write, ioctl
    /proc/self                             read, write: CUDA looks at its own maps, and gives up (error 304) where it cannot name its threads in task/*/comm
    /proc/driver/nvidia, /usr/local/nvidia read; the driver and its libraries
    MODELPRESS_GPU_KERNELS                 read; a folder of kernels, compiled when the worker started
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

KERNELS = "MODELPRESS_GPU_KERNELS"
_SECONDS = 600.0
_READ = tuple(map(Path, ("/proc/driver/nvidia", "/proc/self", "/usr/local/nvidia", "/proc/devices", "/proc/modules", "/sys/bus/pci", "/sys/devices", "/sys/module")))


def devices() -> list[Path]:
    return sorted(Path("/dev").glob("nvidia*"))


def spoken_to() -> list[Path]:
    return [*devices(), Path("/proc/self")]


def readable() -> list[Path]:
    kernels = os.environ.get(KERNELS)
    return [*_READ, *([Path(kernels)] if kernels else [])]


def environment() -> dict[str, str]:
    """What a zygote is told: which GPU, where its kernels are, and that CUDA has no folder to keep compiled kernels in."""
    return {"CUDA_CACHE_DISABLE": "1"} | {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", KERNELS) if name in os.environ}


def compile_kernels() -> None:
    """Have another process compile Triton's kernels for this worker's GPU, and tell all zygotes that come where they are, until this process ends. Without them torch does
    the same, more slowly."""
    folder = tempfile.TemporaryDirectory(prefix="modelpress-gpu-")
    try:
        subprocess.run([sys.executable, "-m", "worker.kernels.triton_compiling", folder.name], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except subprocess.SubprocessError as e:
        log.warning("Triton's kernels could not be compiled, so torch works in their place: %s", (getattr(e, "stderr", None) or str(e)).strip()[-500:])
        folder.cleanup()
    else:
        os.environ[KERNELS] = folder.name
        atexit.register(folder.cleanup)
