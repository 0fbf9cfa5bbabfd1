"""The GPU of a worker process: CUDA lives in jailed children only. A process that has initialised it cannot fork children that use it, so neither the
worker nor its zygote ever does.

`CUDA_VISIBLE_DEVICES` of the worker chooses the one that its children see. What a child may open beside what every child may:

    /dev/nvidia*                        read, write, ioctl
    /proc/driver/nvidia, /proc/self     read; CUDA looks at its own maps
"""

from __future__ import annotations

import os
from pathlib import Path

READ = tuple(map(Path, ("/proc/driver/nvidia", "/proc/self", "/proc/devices", "/proc/modules", "/sys/bus/pci", "/sys/devices", "/sys/module")))


def devices() -> list[Path]:
    return sorted(Path("/dev").glob("nvidia*"))


def environment() -> dict[str, str]:
    """What a zygote is told: which GPU, and that CUDA has no folder to keep compiled kernels in."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_CACHE_DISABLE": "1"} | ({} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen})
