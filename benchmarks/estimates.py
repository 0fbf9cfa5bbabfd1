"""Bytes foretold and bytes made, for every preset and format on the models that you name: a sample of values, and headers alone.

    .venv/bin/python -m benchmarks.estimates [MODEL ...]

MODEL is a safetensors file or a folder; default: MiniLM and a bf16 cast of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from app.errors import ModelpressError
from app.estimate import estimate
from app.job_spec import parse_job
from app.presets import MODEL
from app.local import open_local
from demo.__main__ import model_folder
from worker import pipeline
from worker.__main__ import ANY_ID, place

FORMATS = ("packed", "safetensors", "compressed-tensors")
CODED = {f"{name} + lossless": {"recipe": {"steps": [*MODEL[name]["steps"], {"method": "lossless"}]}} for name in ("w8a16", "w4a16", "fp8")}


def cast(folder: Path, out: Path) -> Path:
    """The same folder in bf16."""
    out.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            save_file({n: t.bfloat16() if t.is_floating_point() else t for n, t in load_file(path).items()}, out / path.name, {"format": "pt"})
        elif path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    return out


def made(source: Path, spec: dict) -> int:
    """Bytes of the real result."""
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        pipeline.run(place(source, Path(d)), Path(d, "out"), spec, lambda event: None)
        return json.loads(Path(d, "out", "report.json").read_text())["totals"]["bytes_after"]


def _off(said: dict, real: int) -> str:
    if said["exact"]:
        return "exact" if said["bytes_after"] == real else "WRONG"
    return f"{said['bytes_after'] / real - 1:+8.2%}"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        sources = [Path(a) for a in sys.argv[1:]] or [model_folder(), cast(model_folder(), Path(d, "MiniLM-bf16"))]
        print(f"{'model':26}{'recipe':20}{'format':20}{'bytes':>12}{'sample':>9}{'headers':>9}  interval holds")
        for source in sources:
            model, read = open_local(source)
            for name, body in [(n, {"preset": n}) for n in MODEL] + list(CODED.items()):
                for output in FORMATS:
                    try:
                        spec = parse_job({"input": ANY_ID, "output": {"format": output}} | body, model.config is not None)
                        said, alone = estimate(model, spec, read), estimate(model, spec, None)
                    except ModelpressError:
                        continue  # what this format cannot carry
                    real = made(source, spec.model_dump(mode="json"))
                    off = [_off(e, real) for e in (said, alone)]
                    holds = all(e["bytes_least"] <= real <= e["bytes_most"] for e in (said, alone))
                    print(f"{source.name[:25]:26}{name:20}{output:20}{real:12,}{off[0]:>9}{off[1]:>9}  {'yes' if holds else 'NO'}", flush=True)


if __name__ == "__main__":
    main()
