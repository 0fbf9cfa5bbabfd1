"""A job that trains a codec on images.

    inp/             one image, a folder of them, or one archive
    out/files/       modelpress.codec and its index
    out/report.json  the curve of the loss, what was tried, and which images were learned from
    out/resume/codec.safetensors   a state, every now and then; spec["beside"]["resume"] has that of an earlier attempt
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from app.errors import InputRefused
from app.steps.image import TrainCodec
from worker.images.learned import closed_form, fitting, index
from worker.images.learned.codec import decode, encode
from worker.images.learned.held_out import Part, split
from worker.images.learned.model import Model, dumped, loaded
from worker.images.picture import Picture
from worker.images.transform.coding import Damaged
from worker.progress import Emit, Progress

STATE = "codec.safetensors"
MOST_PIXELS = 1 << 23
"""That training looks at; of more, the images that come first in the order of their digests."""
SIZES = {"cpu": (16, 4), "cuda": (64, 6)}
"""Width and depth of the network."""


def run(pictures: list[Picture], files: Path, step: TrainCodec, spec: dict, out: Path, emit: Emit) -> dict:
    """Writes the codec into `files`.

    Returns:
        `rows`, `training`, `load_proof`, `notes`.

    Raises:
        InputRefused: there is nothing to learn from.
    """
    usable, passed = alike(pictures)
    learned, held_out = split(usable, spec["seed"])
    learned, over = _bounded(learned)
    device = torch.device("cuda" if spec.get("device") == "cuda" and torch.cuda.is_available() else "cpu")
    progress, told = Progress(emit, "train", max(1, int(60_000 * step.minutes))), 0

    def tick(used: float) -> None:
        nonlocal told
        progress.add(max(0, int(1000 * used) - told))
        told = max(told, int(1000 * used))

    resume = Path(spec["beside"]["resume"]) / STATE if "resume" in (spec.get("beside") or {}) else None
    model, tried = _resumed(resume)
    if model is None:
        resume = None
        model, tried = closed_form.fitted([p.pixels for p in learned], step.worth, lambda: tick(0))
    pairs = _pairs(learned, model)
    width, depth = SIZES[device.type]
    beside = {"model": torch.frombuffer(bytearray(dumped(model)), dtype=torch.uint8)}
    trained, course = fitting.train(
        model, pairs, _pairs(held_out[:8], model, (0,)), 60 * step.minutes, width, depth, spec["seed"], device, state=out / "resume" / STATE, beside=beside, resume=resume, tick=tick,
    )  # fmt: skip
    before, after = (closed_form.cost([p.pixels for p in learned], m, m.quality, step.worth)[0] for m in (model, trained))
    chosen = trained if after < before else model
    data = dumped(chosen)
    index.write(files, data, learned)
    proof = _read_back(files, data)
    rows = [_row(p, "held out", "drawn by the seed") for p in held_out if all(p.path != x.path for x in learned)]
    rows += [_row(p, "learned", "all of it" if p.columns == _width(usable, p) else f"its first {p.columns} columns were learned from, the others are held out") for p in learned]
    rows += [_row(p, "passed over", f"not looked at: {MOST_PIXELS} pixels are enough") for p in over]
    done = {r["name"] for r in rows}
    rows += [{"name": p.path, "action": "passed over", "reason": passed.get(p.path, "equal to another image"), "bytes_before": len(p.data), "bytes_after": 0} for p in pictures if p.path not in done]
    training = {
        "lambda": step.worth, "minutes": step.minutes, "seconds": round(course.seconds, 1), "steps": course.steps, "device": device.type, "width": width, "depth": depth,
        "transform": "klt" if chosen.own else "dct", "quality": chosen.quality, "tried": tried, "curve": course.curve, "cost_without_network": round(before, 5), "cost_with_network": round(after, 5),
        "network_kept": bool(chosen.layers), "model_bytes": len(data), "learned_from": len(learned), "held_out": len(held_out),
    }  # fmt: skip
    return {"rows": rows, "training": training, "load_proof": proof, "notes": _notes(training)}


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


def _bounded(parts: list[Part]) -> tuple[list[Part], list[Part]]:
    kept, over, total = [], [], 0
    for part in parts:
        size = part.pixels.shape[0] * part.pixels.shape[1]
        if total + size <= MOST_PIXELS:
            kept.append(part)
            total += size
        elif not kept:
            side = int(MOST_PIXELS**0.5) // 8 * 8
            kept.append(replace(part, pixels=part.pixels[:side, :side]))
            total = MOST_PIXELS
        else:
            over.append(part)
    return kept, over


def _pairs(parts: list[Part], model: Model, around: tuple[int, ...] = fitting.QUALITIES) -> fitting.Pairs:
    out = []
    for part in parts:
        for quality in sorted({min(100, max(1, model.quality + q)) for q in around}):
            out.append((decode(encode(part.pixels, quality, model), model), part.pixels, quality))
    return out


def _resumed(path: Path | None) -> tuple[Model | None, list[dict]]:
    """The transform of an earlier attempt."""
    if path is None or not path.is_file():
        return None, []
    try:
        with safe_open(path, "np") as file:
            return loaded(np.asarray(file.get_tensor("model"), np.uint8).tobytes()), []
    except (Damaged, SafetensorError, ValueError, KeyError, OSError):
        return None, []


def _read_back(files: Path, data: bytes) -> dict:
    model, again, _ = index.read(files)
    assert again == data and dumped(model) == data
    return {"reader": "modelpress", "codec": len(data)}


def _width(usable: list[Picture], part: Part) -> int:
    return next(p.width for p in usable if p.path == part.path)


def _row(part: Part, action: str, reason: str) -> dict:
    return {"name": part.path, "action": action, "reason": reason, "bytes_before": part.pixels.size, "bytes_after": 0, "width": part.pixels.shape[1], "height": part.pixels.shape[0]}


def _notes(training: dict) -> list[str]:
    notes = ["loss and held_out of the curve: mean squared error of decoded pixels, in levels of 255; cost: bits a pixel + lambda * that, of the images learned from"]
    if not training["network_kept"]:
        notes.append("the network made nothing better at its codec's own quality, and is left out: the codec is its transform alone")
    return notes
