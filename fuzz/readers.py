"""Fuzzes one reader by atheris, coverage-guided: `python -m fuzz.readers TARGET LIBFUZZER-OPTIONS`. Typed errors are answers; another exception ends it."""

from __future__ import annotations

import os
import sys

import atheris

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402, F401  not instrumented: its code is not what is looked at

with atheris.instrument_imports(include=["app.formats", "app.limits", "app.made", "app.safetensors_header", "app.shards", "app.strict", "app.wire", "h11", "worker.datasets", "worker.images", "worker.private", "worker.formats", "worker.samples", "worker.kernels"]):
    from fuzz.targets import run


def main(target: str, *options: str) -> None:
    atheris.Setup([sys.argv[0], *options], lambda data: run(target, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
