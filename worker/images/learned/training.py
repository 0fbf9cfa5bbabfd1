"""A job that trains a codec on images.

    inp/             one image, a folder of them, or one archive
    out/files/       modelpress.codec, an autoencoder's modelpress.encoder, and their index
    out/report.json  the curve of the loss, what was tried, and which images were learned from
    out/resume/codec.safetensors   a state, every now and then; spec["beside"]["resume"] has that of an earlier attempt
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from app.errors import InputRefused
from app.steps.image import TrainCodec
from worker.images.hyperprior import fit as hyperprior_fit
from worker.images.learned import index, transform_fit
from worker.images.learned.fits import Lesson
from worker.images.learned.held_out import Part, split
from worker.images.learned.kinds import dumped
from worker.images.picture import Picture
from worker.progress import Emit, Progress

STATE = "codec.safetensors"
FITS = {"transform": transform_fit.fit, "hyperprior": hyperprior_fit.fit}
"""By architecture."""
LONG = 60.0
"""Minutes on a GPU from which on `auto` is a hyperprior: in 7 it fell behind all other codecs."""
MOST_PIXELS = {"transform": 1 << 23, "hyperprior": 1 << 26}
"""That training looks at; of more, the images that come first in the order of their digests."""


def run(pictures: list[Picture], files: Path, step: TrainCodec, spec: dict, out: Path, emit: Emit) -> dict:
    """Writes the codec into `files`.

    Returns:
        `rows`, `training`, `load_proof`, `notes`.

    Raises:
        InputRefused: there is nothing to learn from.
    """
    device = "cuda" if spec.get("device") == "cuda" and torch.cuda.is_available() else "cpu"
    architecture = step.architecture if step.architecture != "auto" else "hyperprior" if device == "cuda" and step.minutes >= LONG else "transform"
    usable, passed = alike(pictures)
    learned, held_out = split(usable, spec["seed"])
    learned, over = _bounded(learned, MOST_PIXELS[architecture])
    progress, told = Progress(emit, "train", max(1, int(60_000 * step.minutes))), 0

    def tick(used: float) -> None:
        nonlocal told
        progress.add(max(0, int(1000 * used) - told))
        told = max(told, int(1000 * used))

    resume = Path(spec["beside"]["resume"]) / STATE if "resume" in (spec.get("beside") or {}) else None
    fit = FITS[architecture](Lesson(step, learned, held_out, spec["seed"], device, out / "resume" / STATE, resume, tick))
    index.write(files, fit.data, learned, fit.encoder)
    proof = _read_back(files, fit.data)
    rows = [_row(p, "held out", "drawn by the seed") for p in held_out if all(p.path != x.path for x in learned)]
    rows += [_row(p, "learned", "all of it" if p.columns == _width(usable, p) else f"its first {p.columns} columns were learned from, the others are held out") for p in learned]
    rows += [_row(p, "passed over", f"not looked at: {MOST_PIXELS[architecture]} pixels are enough") for p in over]
    done = {r["name"] for r in rows}
    rows += [{"name": p.path, "action": "passed over", "reason": passed.get(p.path, "equal to another image"), "bytes_before": len(p.data), "bytes_after": 0} for p in pictures if p.path not in done]
    counts = {"model_bytes": len(fit.data), "learned_from": len(learned), "held_out": len(held_out)}
    training = {"architecture": architecture, "lambda": step.worth, "minutes": step.minutes, "device": device} | fit.told | counts
    return {"rows": rows, "training": training, "load_proof": proof, "notes": fit.notes}


def alike(pictures: list[Picture]) -> tuple[list[Picture], dict[str, str]]:
    """Those that one codec takes: grey, or RGB, whichever has more pixels. Why not, by path, of the others.

    Raises:
        InputRefused: there is none.
    """
    reasons = {p.path: p.reason or "it has alpha" for p in pictures if p.pixels is None or p.mode == "RGBA"}
    usable = [p for p in pictures if p.path not in reasons]
    if not usable:
        raise InputRefused("invalid-image", f"there is no image that a codec can learn from: {next(iter(reasons.values()), 'there is none at all')}")
    sums = Counter()
    for p in usable:
        sums[p.mode] += p.width * p.height
    mode = max(sums, key=lambda m: (sums[m], m))
    return [p for p in usable if p.mode == mode], reasons | {p.path: f"a codec is for images of one mode, and this one is {p.mode}" for p in usable if p.mode != mode}


def _bounded(parts: list[Part], most: int) -> tuple[list[Part], list[Part]]:
    kept, over, total = [], [], 0
    for part in parts:
        size = part.pixels.shape[0] * part.pixels.shape[1]
        if total + size <= most:
            kept.append(part)
            total += size
        elif not kept:
            side = int(most**0.5) // 8 * 8
            kept.append(replace(part, pixels=part.pixels[:side, :side]))
            total = most
        else:
            over.append(part)
    return kept, over


def _read_back(files: Path, data: bytes) -> dict:
    again = index.read(files)
    assert again.data == data and dumped(again.model) == data
    return {"reader": "modelpress", "codec": len(data)}


def _width(usable: list[Picture], part: Part) -> int:
    return next(p.width for p in usable if p.path == part.path)


def _row(part: Part, action: str, reason: str) -> dict:
    return {"name": part.path, "action": action, "reason": reason, "bytes_before": part.pixels.size, "bytes_after": 0, "width": part.pixels.shape[1], "height": part.pixels.shape[0]}
