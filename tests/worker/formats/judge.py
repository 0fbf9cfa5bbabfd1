"""Run by test_corpus: opens every file of a folder within 512 MiB and prints a verdict for each, as JSON lines."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from app.errors import InputRefused
from worker.formats import open_checkpoint

MEMORY = 512 << 20


def judge(path: Path) -> dict:
    """Open the file alone in a folder, as a job does, and read every tensor."""
    with tempfile.TemporaryDirectory() as tmp:
        inp, scratch = Path(tmp, "in"), Path(tmp, "scratch")
        inp.mkdir()
        scratch.mkdir()
        shutil.copy(path, inp / path.name)
        start, before = time.process_time(), set(Path(tmp).iterdir())
        try:
            checkpoint = open_checkpoint(inp, scratch)
            for name in checkpoint.tensors:
                checkpoint.read(name).sum(dtype=torch.float32) if checkpoint.tensors[name].dtype == "F32" else checkpoint.read(name)
            verdict = {"verdict": "accepted", "reason": ""}
        except InputRefused as e:
            verdict = {"verdict": "rejected", "reason": e.type, "detail": e.detail}
        outside = [p.name for p in Path(tmp).iterdir() if p not in before]
        return {"name": path.name, "cpu": time.process_time() - start, "outside": outside} | verdict


if __name__ == "__main__":
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    for file in sorted(Path(sys.argv[1]).iterdir()):
        if file.name != "manifest.json":
            print(json.dumps(judge(file)), flush=True)
