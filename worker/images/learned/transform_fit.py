"""The codec of a few minutes on a CPU: a transform in closed form, then, for the time that is given, a network behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from worker.images.learned import closed_form, fitting
from worker.images.learned.codec import decode, encode
from worker.images.learned.fits import Fit, Lesson
from worker.images.learned.model import Model, dumped, loaded
from worker.images.transform.coding import Damaged

SIZES = {"cpu": (16, 4), "cuda": (64, 6)}
"""Width and depth of the network."""


def fit(lesson: Lesson) -> Fit:
    """The network is left out where it makes nothing better."""
    step, images = lesson.step, [p.pixels for p in lesson.learned]
    resume, (model, tried) = lesson.resume, _resumed(lesson.resume)
    if model is None:
        resume = None
        model, tried = closed_form.fitted(images, step.worth, lambda: lesson.tick(0))
    width, depth = SIZES[lesson.device]
    beside = {"model": torch.frombuffer(bytearray(dumped(model)), dtype=torch.uint8)}
    trained, course = fitting.train(
        model, _pairs(images, model), _pairs([p.pixels for p in lesson.held_out[:8]], model, (0,)), 60 * step.minutes, width, depth, lesson.seed, torch.device(lesson.device),
        state=lesson.state, beside=beside, resume=resume, tick=lesson.tick,
    )  # fmt: skip
    before, after = (closed_form.cost(images, m, m.quality, step.worth)[0] for m in (model, trained))
    chosen = trained if after < before else model
    told = {
        "seconds": round(course.seconds, 1), "steps": course.steps, "width": width, "depth": depth, "transform": "klt" if chosen.own else "dct", "quality": chosen.quality,
        "tried": tried, "curve": course.curve, "cost_without_network": round(before, 5), "cost_with_network": round(after, 5), "network_kept": bool(chosen.layers),
    }  # fmt: skip
    notes = ["loss and held_out of the curve: mean squared error of decoded pixels, in levels of 255; cost: bits a pixel + lambda * that, of the images learned from"]
    if not chosen.layers:
        notes.append("the network made nothing better at its codec's own quality, and is left out: the codec is its transform alone")
    return Fit(dumped(chosen), b"", told, notes)


def _pairs(images: list[np.ndarray], model: Model, around: tuple[int, ...] = fitting.QUALITIES) -> fitting.Pairs:
    out = []
    for pixels in images:
        for quality in sorted({min(100, max(1, model.quality + q)) for q in around}):
            out.append((decode(encode(pixels, quality, model), model), pixels, quality))
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
