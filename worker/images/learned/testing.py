"""A job that measures a codec on images that it has not learned from, beside the standard ones at the same quality.

    out/files/       figures.json and an index that says so
    out/report.json  the same figures, and the verdict
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from app.errors import InputRefused
from app.made import INDEX, VERSION
from app.steps.image import LOSSY, Target
from worker.images.codecs import EFFORTS, Variant
from worker.images.gallery import Gallery
from worker.images.learned.held_out import unseen
from worker.images.learned.kinds import Trained, codec_of
from worker.images.learned.training import alike
from worker.images.picture import Picture
from worker.images.search import Search
from worker.images.tries import Tries

AROUND = (-12, 0, 12)
"""About the quality that the codec was fitted at."""
MOST_PIXELS = 1 << 22
OTHERS = (*LOSSY, "transform")
FILE = "figures.json"


def run(pictures: list[Picture], files: Path, trained: Trained, tick=lambda: None) -> dict:
    """Returns:
        `rows`, `test`, `load_proof`, `notes`.

    Raises:
        InputRefused: nothing is left that it has not learned from.
    """
    usable, passed = alike(pictures)
    parts, total, kept = unseen([p for p in usable if p.pixels.shape[2] == trained.model.channels], trained.learned), 0, []
    for part in parts:
        if not kept or total + part.pixels.shape[0] * part.pixels.shape[1] <= MOST_PIXELS:
            kept.append(part)
            total += part.pixels.shape[0] * part.pixels.shape[1]
    if not kept:
        raise InputRefused("invalid-image", "the codec has learned from each of these images that it could take; test it on others", pointer="/input")
    held_out = [Picture(p.path, b"", "PNG", p.pixels.shape[1], p.pixels.shape[0], p.pixels) for p in kept]
    test = measured(held_out, trained, tick)
    (files / FILE).write_text(json.dumps(test, indent=1, allow_nan=False))
    (files / INDEX).write_text(json.dumps({"format": "figures", "version": VERSION}))
    names = {p.path: p.columns for p in kept}
    rows = [_row(p, names, passed) for p in pictures]
    return {"rows": rows, "test": test, "load_proof": {"reader": "modelpress", "images": len(kept)}, "notes": [test["verdict"], *_notes(len(parts) - len(kept))]}


def measured(pictures: list[Picture], trained: Trained, tick=lambda: None) -> dict:
    """Points of the codec's rate-distortion curve, and what others need for the same mean MS-SSIM and the same mean PSNR."""
    codecs = {"own": codec_of(trained, dict.fromkeys(EFFORTS, (Variant("", {}),)))}
    if getattr(trained.model, "layers", ()):
        codecs["without_network"] = codec_of(replace(trained, model=replace(trained.model, layers=())), codecs["own"].variants)
    gallery, nbytes = Gallery.of(pictures, Target(psnr=1.0)), len(trained.data)
    pixels = gallery.pixels
    points = []
    for quality in sorted({min(100, max(1, trained.model.quality + q)) for q in AROUND}):
        found = {name: Tries(gallery, Target(psnr=1.0), tick=tick).make(c, c.variants["fast"][0], quality, None) for name, c in codecs.items()}
        one = found["own"]
        coded = one.bytes - nbytes
        point = {"quality": quality, "bytes": coded, "bpp": round(8 * coded / pixels, 4)}
        point |= {name: {"ms_ssim": round(f.figures.ms_ssim, 6), "psnr": round(f.figures.psnr, 3)} for name, f in found.items()}
        point |= point.pop("own")
        for measure in ("ms_ssim", "psnr"):
            value = getattr(one.figures, measure)
            if not 0 < value < (1 if measure == "ms_ssim" else 100):
                continue
            target = Target(**{measure: value})
            best = {name: Search(gallery, target, "fast", tick=tick).run([name]) for name in OTHERS}
            point[f"at_equal_{measure}"] = {name: b.bytes if b else None for name, b in best.items()}
        points.append(point)
    test = {"images": len(pictures), "pixels": pixels, "model_bytes": nbytes, "points": points}
    return test | {"verdict": verdict(test)}


def verdict(test: dict) -> str:
    """In a sentence or two: where it is the smallest, with and without the bytes of its model."""
    said = []
    for measure, name in (("ms_ssim", "MS-SSIM"), ("psnr", "PSNR")):
        rows = [(p, {k: v for k, v in p[f"at_equal_{measure}"].items() if v}) for p in test["points"] if f"at_equal_{measure}" in p]
        rows = [(p, there) for p, there in rows if there]
        alone = sum(p["bytes"] < min(there.values()) for p, there in rows)
        counted = sum(p["bytes"] + test["model_bytes"] < min(there.values()) for p, there in rows)
        least = [f"{p['bytes'] / min(there.values()):.2f} of {min(there, key=there.get)}" for p, there in rows]
        said.append(f"at equal {name} it is the smallest at {alone} of {len(rows)} points without its model, at {counted} with it ({', '.join(least)})")
    wins = not all("at 0 of" in s for s in said)
    return f"On {test['images']} images that it has not learned from, {'; '.join(said)}. " + ("It wins where its points are the smallest, and nowhere else." if wins else "It wins nowhere: use the standard codecs.")


def _row(picture: Picture, names: dict[str, int], passed: dict[str, str]) -> dict:
    counted = picture.path in names
    if counted:
        reason = "the codec has not learned from it" if not names[picture.path] else f"from column {names[picture.path]} on: the codec has learned from those before"
    else:
        reason = passed.get(picture.path, "the codec has learned from it, takes no such image, or has enough of them")
    return {"name": picture.path, "action": "measured" if counted else "passed over", "reason": reason, "bytes_before": len(picture.data), "bytes_after": 0}


def _notes(left: int) -> list[str]:
    return [f"{left} further images were not measured: {MOST_PIXELS} pixels are enough"] if left else []
