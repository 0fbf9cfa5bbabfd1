"""Jobs that train a codec, or measure one: what they have in common."""

from __future__ import annotations

from pathlib import Path

from app.errors import AccountingMismatch
from app.formats import IMAGES, suffix
from app.limits import shown
from worker.images.learned import index, testing, training
from worker.images.picture import open_picture
from worker.progress import Emit, Progress

METHODS = ("train_codec", "test_codec")


def run(inputs: dict[str, Path], files: Path, step, spec: dict, out: Path, emit: Emit) -> dict:
    """Every file of the input has a row.

    Args:
        inputs: relative path -> file.
    """
    pictures = [open_picture(path, source.read_bytes()) for path, source in inputs.items() if suffix(path) in IMAGES]
    if step.method == "train_codec":
        result = training.run(pictures, files, step, spec, out, emit)
    else:
        trained = index.read(Path(spec["beside"]["codec"]))
        progress = Progress(emit, "compress", 1)
        result = testing.run(pictures, files, trained, lambda: progress.add(0))
    named = {r["name"] for r in result["rows"]}
    others = [p for p in inputs if p not in named and suffix(p) not in IMAGES]
    result["rows"] += [{"name": p, "action": "passed over", "reason": "it is no image", "bytes_before": inputs[p].stat().st_size, "bytes_after": 0} for p in others]
    if sorted(r["name"] for r in result["rows"]) != sorted(inputs):
        raise AccountingMismatch(f"{shown(next((p for p in inputs if p not in named), 'a file'))} is not accounted for")
    return result | {"rows": sorted(result["rows"], key=lambda r: r["name"]), "totals": {}, "sanitized": {"mode": spec["sanitize"]}}
