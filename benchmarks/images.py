"""Bytes that codecs need for a quality, and what the service's choice among them takes.

    .venv/bin/python -m benchmarks.images [--data ../shared/data] [--photos kodim01 ...] [--targets 0.95 0.97 0.99] [--effort normal] [--json benchmarks/images.json]

    ... --sets    two sets of like images: a transform is learned on one part (KLT) and measured on another

Every photo of DATA/kodak is coded to each MS-SSIM by each codec alone at the best of its settings, and by all of them competing, as a job does it. Rows are added to the JSON, so it may be run
in parts; the table is of all that is there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from app.steps.image import LOSSY, Target
from benchmarks.table import DATA
from worker.images.codecs import with_learned
from worker.images.picture import Picture, open_picture
from worker.images.search import Search
from worker.images.transform.basis import klt, moments_of

OUT = Path(__file__).with_suffix(".json")
CHOICE = "choice"


def row(photo: Path, ms_ssim: float, effort: str) -> dict:
    """One photo at one target: by codec, and by the choice among all, `{bytes, ms_ssim, psnr, setting, seconds}`."""
    picture = open_picture(photo.name, photo.read_bytes())
    out = {"photo": photo.stem, "target": ms_ssim, "effort": effort, "pixels": picture.width * picture.height}
    for name in (*LOSSY, CHOICE):
        start = time.perf_counter()
        search = Search([picture], Target(ms_ssim=ms_ssim), effort)
        best = search.run(list(LOSSY) if name == CHOICE else [name])
        told = {k: v for k, v in best.told().items() if k in ("codec", "variant", "quality", "bytes", "ms_ssim", "psnr")} if best else {"bytes": None}
        out[name] = told | {"tries": len(search.tries), "seconds": round(time.perf_counter() - start, 1)}
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


def set_row(name: str, parts: tuple[list[np.ndarray], list[np.ndarray]], ms_ssim: float, effort: str) -> dict:
    """The held-out images of a set at one target, for their mean: bytes by codec; of the learned transform without its model, and that beside."""
    each = [moments_of(p) for p in parts[0]]
    codecs = with_learned(klt(sum(m for m, _ in each), sum(n for _, n in each)))
    held_out = [Picture("x.png", b"", "PNG", p.shape[1], p.shape[0], p) for p in parts[1]]
    out = {"set": name, "target": ms_ssim, "effort": effort, "learned_on": len(parts[0]), "images": len(held_out), "pixels": sum(p.width * p.height for p in held_out)}
    out["model_bytes"] = len(codecs["transform"].model)
    both = codecs["transform"].variants[effort]
    alone = {f"transform {v.name}": {"transform": replace(codecs["transform"], variants={effort: (v,)})} for v in both}
    for name in (*LOSSY, *alone):
        best = Search(held_out, Target(ms_ssim=ms_ssim), effort, codecs=alone.get(name, codecs)).run([name.split()[0]])
        model = out["model_bytes"] if name == "transform klt" else 0
        out[name] = {"bytes": best.bytes - model, "ms_ssim": best.figures.ms_ssim, "psnr": best.figures.psnr} if best else {"bytes": None}
    return out


def set_table(rows: list[dict]) -> str:
    names = (*LOSSY, "transform dct", "transform klt")
    lines = [f"| set | MS-SSIM | {' | '.join(names)} | its model | smallest, the model not counted | counted |", "|---" * (len(names) + 5) + "|"]
    for r in rows:
        there = {n: r[n]["bytes"] for n in names if r[n]["bytes"]}
        counted = {n: b + (r["model_bytes"] if n == "transform klt" else 0) for n, b in there.items()}
        cells = [f"{there[n]:,}" if n in there else "-" for n in names]
        lines.append(f"| {r['set']} | {r['target']} | {' | '.join(cells)} | {r['model_bytes']:,} | {min(there, key=there.get)} | {min(counted, key=counted.get)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--photos", nargs="*", help="names without suffix; default: all")
    parser.add_argument("--targets", nargs="*", type=float, default=[0.95, 0.97, 0.99])
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--sets", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.json.read_text()) if args.json.exists() else {"rows": []}
    if args.sets:
        known["sets"] = [set_row(name, parts, target, args.effort) for name, parts in sets(args.data).items() for target in args.targets]
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
