"""One job on images, from the input folder to the result: open -> search -> write -> read back -> report.

    inp/             one image, a folder of them, or one archive
    out/files/       the coded images under their own names and folders, and modelpress.json
    out/report.json  a row for every file of the input; of each image all that was tried
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import tempfile
from pathlib import Path

import torch

from app import gates
from app.errors import AccountingMismatch, InputRefused
from app.formats import IMAGES, INDEX, suffix
from app.limits import check_path, shown
from app.recipe import recipe_of
from app.steps.image import DedupImages
from app.steps.image import Image as Step
from worker.images import choosing, deduplicating, index
from worker.images.codecs import CODECS, with_codec
from worker.images.exact import unpacked
from worker.images.index import ORIGINAL, Entry
from worker.images.learned import index as codec_index
from worker.images.learned import job as learned
from worker.images.restoring import restore
from worker.images.sources import placed, sources
from worker.images.writing import Writing
from worker.progress import Emit, Progress
from worker.sizes import sizes

ACTIONS = ("coded", "copied", "dropped")
LIBRARIES = ("modelpress", "pillow", "pillow-jxl-plugin", "numpy", "torch")


def run(inp: Path, out: Path, spec: dict, emit: Emit) -> None:
    """Carry out `spec` on the files in `inp`.

    Raises:
        ModelpressError: a refusal, a failed gate (its report is written first), a mismatch in the accounting.
    """
    torch.set_num_threads(1)  # to judge an image of common size is over before threads have met; the encoders have their own
    files, scratch = out / "files", out / "scratch"
    files.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    recipe = recipe_of(spec)
    if recipe.kind == "restore":
        result = restore(inp, files, Progress(emit, "restore", sum(sizes(inp).values())).add)
    elif recipe.steps[-1].method in learned.METHODS:
        result = learned.run(sources(inp, scratch), files, recipe.steps[-1], spec, out, emit)
    else:
        last = recipe.steps[-1]
        codecs = with_codec(codec_index.read(Path(spec["beside"]["codec"]))) if getattr(last, "needs_codec", False) else CODECS
        dedup = recipe.steps[0] if isinstance(recipe.steps[0], DedupImages) else None
        result = _coded(sources(inp, scratch), scratch, files, None if last is dedup else last, dedup, spec["sanitize"] == "strip", emit, codecs)
    result["totals"] |= _totals(result["rows"], sizes(files), sum(sizes(inp).values()))
    judged = gates.judge(spec.get("gates") or {}, [], result["totals"])
    document = {"version": 1, "kind": "images", "recipe": spec["recipe"], "output": spec["output"], "gates": judged, "environment": environment()} | result
    (out / "report.json").write_text(json.dumps(document, allow_nan=False))
    gates.enforce(judged)


def _coded(inputs: dict[str, Path], scratch: Path, files: Path, step: Step | None, dedup: DedupImages | None, strip: bool, emit: Emit, codecs: dict) -> dict:
    if any(path in (INDEX, index.MODEL) for path in inputs):
        raise InputRefused("unsupported-format", f"the input holds {INDEX} or {index.MODEL}: it is the result of a job already, which takes restore")
    folder = Path(tempfile.mkdtemp(prefix="made-", dir=scratch))
    job = Writing(step, strip, Progress(emit, "compress", sum(p.stat().st_size for p in inputs.values())), folder, codecs)
    pictures = {path: p for path, p in inputs.items() if suffix(path) in IMAGES}
    likes = deduplicating.likes(pictures, dedup.near, lambda: job.progress.add(0)) if dedup else []
    for like in likes:
        job.dropped(like.path, pictures.pop(like.path).stat().st_size, like.reason)
    left = {path: p for path, p in inputs.items() if path in pictures or suffix(path) not in IMAGES}
    if step is not None and step.per == "set":
        choosing.whole_set(job, pictures)
    for path, source in left.items():
        if path not in pictures:
            job.copied(path, source.read_bytes(), "it is no image")
        elif step is None:
            choosing.as_it_is(job, path, source.read_bytes())
        elif step.per == "image":
            choosing.one(job, path, source.read_bytes())
        job.progress.add(source.stat().st_size)
    names = placed([(path, job.made[path][0]) for path in left])
    for path, (_, file) in job.made.items():
        check_path(names[path])
        target = files / names[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    entries = [Entry(**vars(job.entries[path]) | {"file": names[path]}) for path in left]
    index.write(files, entries, job.model)
    proof = _read_back(files, entries, job.codecs)
    rows = sorted(job.rows, key=lambda r: r["name"])
    for row in rows:
        row |= {"file": names[row["name"]]} if row["action"] != "dropped" else {}
    account(inputs, rows)
    result = {"rows": rows, "totals": {}, "load_proof": proof, "sanitized": {"mode": "strip" if strip else "report", "findings": job.findings()}, "notes": job.notes()}
    return result | ({"dedup": deduplicating.told(likes, dedup.near)} if dedup else {})


def _read_back(files: Path, entries: list[Entry], codecs: dict) -> dict:
    """Every coded file decoded once more from where it lies.

    Raises:
        AccountingMismatch: it decodes to something else.
    """
    coded = [e for e in entries if e.codec != ORIGINAL]
    for e in coded:
        if hashlib.sha256(codecs[e.codec].decode((files / e.file).read_bytes(), e.mode)).hexdigest() != e.pixels:
            raise AccountingMismatch(f"{shown(e.file)} decodes to other pixels than when it was made")
        if e.whole and unpacked((files / e.file).read_bytes()) is None:
            raise AccountingMismatch(f"{shown(e.file)} holds no JPEG any more")
    return {"reader": "Pillow", "images": len(coded)}


def account(inputs: dict[str, Path], rows: list[dict]) -> None:
    """Every file of the input has one row.

    Raises:
        AccountingMismatch: naming the file.
    """
    names = [r["name"] for r in rows]
    if sorted(names) != sorted(inputs) or any(r["action"] not in ACTIONS or r["action"] != "coded" and not r["reason"] for r in rows):
        odd = next((n for n in inputs if n not in names), "a file")
        raise AccountingMismatch(f"{shown(odd)} is not accounted for")


def _totals(rows: list[dict], files: dict[str, int], before: int) -> dict:
    after = sum(files.values())
    coded = [r for r in rows if r["action"] == "coded"]
    codecs = {name: n for name in (ORIGINAL, *CODECS) if (n := sum(r.get("codec") == name for r in rows))}
    return {
        "images": sum("width" in r for r in rows), "actions": {a: n for a in {r["action"] for r in rows} if (n := sum(r["action"] == a for r in rows))}, "codecs": codecs,
        "bytes_before": before, "bytes_after": after, "ratio": round(before / after, 4) if after else None,
        "least_ms_ssim": min((r["ms_ssim"] for r in coded if "ms_ssim" in r), default=None), "files": files,
    }  # fmt: skip


def environment() -> dict:
    return {"python": platform.python_version(), "machine": platform.machine(), "device": "cpu", "threads": torch.get_num_threads()} | {p: importlib.metadata.version(p) for p in LIBRARIES}
