"""The GPUs of this machine, found without torch and without CUDA, which only the child of a worker may initialise."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.config import settings


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES is to be for one worker process each: what that variable lists already, else all. Empty with MODELPRESS_GPU=off,
    where the driver shows no device, and where torch was built without CUDA."""
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if settings().gpu == "off" or not devices or not _built_for_cuda():
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(len(devices))] if listed is None else [name for part in listed.split(",") if (name := part.strip())]


def _built_for_cuda() -> bool:
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False
