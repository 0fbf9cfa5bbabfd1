"""Bytes that codecs need for a quality, and what the service's choice among them takes.

    .venv/bin/python -m benchmarks.images [--data ../shared/data] [--photos kodim01 ...] [--targets 0.95 0.97 0.99] [--effort normal] [--json benchmarks/results/images.json]

    ... --sets [--minutes 5]    two sets of like images: a transform (KLT) and a codec (`train_codec`) are learned on one part and measured on another

Every photo of DATA/kodak is coded to each MS-SSIM by each codec alone at the best of its settings, and by all of them competing, as a job does it. Rows are added to the JSON, so it may be run
in parts; the table is of all that is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from app.steps.image import LOSSY, Target, TrainCodec
from benchmarks.table import DATA
from worker.images.codecs import with_codec, with_learned
from worker.images.gallery import Gallery
from worker.images.learned import transform_fit
from worker.images.learned.fits import Lesson
from worker.images.learned.held_out import Part
from worker.images.learned.kinds import Trained, loaded
from worker.images.picture import Picture, open_picture
from worker.images.search import Search
from worker.images.transform.basis import klt, moments_of

OUT = Path(__file__).parent / "results" / "images.json"
CHOICE = "choice"


def row(photo: Path, ms_ssim: float, effort: str) -> dict:
    """One photo at one target: by codec, and by the choice among all, `{bytes, ms_ssim, psnr, setting, seconds}`."""
    picture = open_picture(photo.name, photo.read_bytes())
    out = {"photo": photo.stem, "target": ms_ssim, "effort": effort, "pixels": picture.width * picture.height}
    for name in (*LOSSY, CHOICE):
        start, target = time.perf_counter(), Target(ms_ssim=ms_ssim)
        search = Search(Gallery.of([picture], target), target, effort)
        best = search.run(list(LOSSY) if name == CHOICE else [name])
        told = {k: v for k, v in best.told().items() if k in ("codec", "variant", "quality", "bytes", "ms_ssim", "psnr")} if best else {"bytes": None}
        out[name] = told | {"tries": len(search.tries.made), "seconds": round(time.perf_counter() - start, 1)}
    return out


def table(rows: list[dict]) -> str:
    """Markdown: bytes of each codec and of the choice, the worst lead, seconds of the search."""
    lines = [f"| photo | MS-SSIM | {' | '.join(LOSSY)} | choice | its codec and setting | bits a pixel | s |", "|---" * (len(LOSSY) + 6) + "|"]
    for r in sorted(rows, key=lambda r: (r["target"], r["photo"])):
        best = r[CHOICE]
        cells = [f"{r[name]['bytes']:,}" if r[name]["bytes"] else "-" for name in (*LOSSY, CHOICE)]
        lines.append(f"| {r['photo']} | {r['target']} | {' | '.join(cells)} | {best['codec']} {best['variant']}, {best['quality']} | {8 * best['bytes'] / r['pixels']:.3f} | {best['seconds']} |")
    for target in sorted({r["target"] for r in rows}):
        of = [r for r in rows if r["target"] == target]
        sums = [f"{sum(r[name]['bytes'] for r in of):,}" if all(r[name]["bytes"] for r in of) else "-" for name in (*LOSSY, CHOICE)]
        lines.append(f"| all {len(of)} | {target} | {' | '.join(sums)} | | {8 * sum(r[CHOICE]['bytes'] for r in of) / sum(r['pixels'] for r in of):.3f} | {sum(r[CHOICE]['seconds'] for r in of):.0f} |")
    return "\n".join(lines)


def text_pages(count: int) -> list[np.ndarray]:
    """Pages of this repository's own documents, rendered: [416, 320, 3] uint8."""
    words = " ".join(p.read_text() for p in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))).split()
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > 48:
            lines.append(line)
            line = ""
        line += word + " "
    font = ImageFont.load_default(12)
    made = []
    for i in range(count):
        page = Image.new("RGB", (320, 416), "white")
        ImageDraw.Draw(page).multiline_text((12, 10), "\n".join(lines[26 * i : 26 * i + 26]), fill="black", font=font)
        made.append(np.array(page))
    return made


def sets(data: Path) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """By name: what is learned on, and what is measured."""
    pages = text_pages(10)
    photo = np.array(Image.open(data / "kodak" / "kodim01.png").convert("RGB"))
    edge = photo.shape[1] * 3 // 4 // 8 * 8
    return {"rendered text pages": (pages[:8], pages[8:]), "kodim01: left three quarters, right quarter": ([photo[:, :edge]], [photo[:, edge:]])}


def trained(images: list[np.ndarray], minutes: float) -> tuple[Trained, dict]:
    """A codec as a job with `train_codec` makes it on a CPU, and what its report tells."""
    step = TrainCodec(method="train_codec", minutes=minutes)
    parts = [Part(f"{i}.png", pixels, "", pixels.shape[1]) for i, pixels in enumerate(images)]
    with tempfile.TemporaryDirectory() as folder:
        fit = transform_fit.fit(Lesson(step, parts, [], 0, "cpu", Path(folder, "state"), None, lambda used: None))
    return Trained(loaded(fit.data), fit.data), {k: fit.told[k] for k in ("transform", "quality", "steps", "seconds", "network_kept")} | {"lambda": step.worth}


def set_row(name: str, parts: tuple[list[np.ndarray], list[np.ndarray]], learned: Trained, told: dict, ms_ssim: float, effort: str) -> dict:
    """The held-out images of a set at one target, for their mean: bytes by codec; of what was learned without its model, whose bytes stand in `models`."""
    each = [moments_of(p) for p in parts[0]]
    codecs = with_learned(klt(sum(m for m, _ in each), sum(n for _, n in each)))
    held_out = [Picture("x.png", b"", "PNG", p.shape[1], p.shape[0], p) for p in parts[1]]
    out = {"set": name, "target": ms_ssim, "effort": effort, "learned_on": len(parts[0]), "images": len(held_out), "pixels": sum(p.width * p.height for p in held_out)}
    out |= {"models": {"transform klt": len(codecs["transform"].model), "learned": len(learned.data)}, "training": told}
    target = Target(ms_ssim=ms_ssim)
    gallery = Gallery.of(held_out, target)
    alone = {f"transform {v.name}": {"transform": replace(codecs["transform"], variants={effort: (v,)})} for v in codecs["transform"].variants[effort]}
    alone["learned"] = with_codec(learned)
    for codec in (*LOSSY, *alone):
        best = Search(gallery, target, effort, codecs=alone.get(codec, codecs)).run([codec.split()[0]])
        out[codec] = {"bytes": best.bytes - out["models"].get(codec, 0), "ms_ssim": best.figures.ms_ssim, "psnr": best.figures.psnr} if best else {"bytes": None}
    return out


SET_CODECS = (*LOSSY, "transform dct", "transform klt", "learned")


def set_table(rows: list[dict]) -> str:
    lines = [f"| set | MS-SSIM | {' | '.join(SET_CODECS)} | models: klt, learned | smallest, no model counted | counted |", "|---" * (len(SET_CODECS) + 5) + "|"]
    for r in rows:
        there = {n: r[n]["bytes"] for n in SET_CODECS if r[n]["bytes"]}
        counted = {n: b + r["models"].get(n, 0) for n, b in there.items()}
        cells = [f"{there[n]:,}" if n in there else "-" for n in SET_CODECS]
        models = ", ".join(f"{n:,}" for n in r["models"].values())
        lines.append(f"| {r['set']} | {r['target']} | {' | '.join(cells)} | {models} | {min(there, key=there.get)} | {min(counted, key=counted.get)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--photos", nargs="*", help="names without suffix; default: all")
    parser.add_argument("--targets", nargs="*", type=float, default=[0.95, 0.97, 0.99])
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--sets", action="store_true")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.json.read_text()) if args.json.exists() else {"rows": []}
    if args.sets:
        known["sets"] = []
        for name, parts in sets(args.data).items():
            learned, told = trained(parts[0], args.minutes)
            known["sets"] += [set_row(name, parts, learned, told, target, args.effort) for target in args.targets]
        args.json.write_text(json.dumps(known, indent=1))
        return print(set_table(known["sets"]))
    for photo in sorted((args.data / "kodak").glob("*.png")):
        for target in args.targets if args.photos is None or photo.stem in args.photos else ():
            made = row(photo, target, args.effort)
            rows = [r for r in known["rows"] if (r["photo"], r["target"], r["effort"]) != (made["photo"], made["target"], made["effort"])] + [made]
            known["rows"] = sorted(rows, key=lambda r: (r["photo"], r["target"], r["effort"]))
            args.json.write_text(json.dumps(known, indent=1))
            worst = min(made[n]["bytes"] for n in LOSSY if made[n]["bytes"])
            assert made[CHOICE]["bytes"] <= worst, made
    print(table([r for r in known["rows"] if r["effort"] == args.effort]))


if __name__ == "__main__":
    main()
