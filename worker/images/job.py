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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from app import gates
from app.errors import AccountingMismatch, InputRefused, JobFailure
from app.formats import IMAGES, INDEX, suffix
from app.limits import check_path, shown
from app.recipe import recipe_of
from app.steps.image import Image as Step
from worker.images import index, private
from worker.images.codecs import CODECS, with_codec, with_learned
from worker.images.exact import keep, unpacked
from worker.images.index import ORIGINAL, Entry
from worker.images.learned import index as codec_index
from worker.images.learned import job as learned
from worker.images.judging import Figures
from worker.images.picture import Picture, open_picture
from worker.images.restoring import restore
from worker.images.search import Search, Try
from worker.images.sources import placed, sources
from worker.images.transform.basis import Basis, klt, moments_of
from worker.progress import Emit, Progress
from worker.sizes import sizes

ACTIONS = ("coded", "copied")
TRIES = 20_000
"""Most that a report lists; the rows after it have their best try only."""
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
    elif recipe.steps[0].method in learned.METHODS:
        result = learned.run(sources(inp, scratch), files, recipe.steps[0], spec, out, emit)
    else:
        codecs = with_codec(codec_index.read(Path(spec["beside"]["codec"]))[0]) if recipe.steps[0].needs_codec else CODECS
        result = _coded(sources(inp, scratch), scratch, files, recipe.steps[0], spec["sanitize"] == "strip", emit, codecs)
    result["totals"] |= _totals(result["rows"], sizes(files), sum(sizes(inp).values()))
    judged = gates.judge(spec.get("gates") or {}, [], result["totals"])
    document = {"version": 1, "kind": "images", "recipe": spec["recipe"], "output": spec["output"], "gates": judged, "environment": environment()} | result
    (out / "report.json").write_text(json.dumps(document, allow_nan=False))
    gates.enforce(judged)


@dataclass
class Job:
    """What there is to do, and what was done.

    Args:
        strip: whether files carry nothing beside their picture.
    """

    step: Step
    strip: bool
    progress: Progress
    folder: Path  # where files lie until their names are known
    made: dict[str, tuple[str, Path]] = field(default_factory=dict)  # path -> (suffix, file)
    entries: dict[str, Entry] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    codecs: dict = field(default_factory=lambda: CODECS)
    model: bytes = b""  # of a learned transform that was used
    listed: int = 0

    def put(self, path: str, end: str, data: bytes) -> None:
        """Args: end: the suffix that it is to have; empty: its path stays."""
        file = self.folder / str(len(self.made))
        file.write_bytes(data)
        self.made[path] = (end, file)


def _coded(inputs: dict[str, Path], scratch: Path, files: Path, step: Step, strip: bool, emit: Emit, codecs: dict = CODECS) -> dict:
    if any(path in (INDEX, index.MODEL) for path in inputs):
        raise InputRefused("unsupported-format", f"the input holds {INDEX} or {index.MODEL}: it is the result of a job already, which takes restore")
    folder = Path(tempfile.mkdtemp(prefix="made-", dir=scratch))
    job = Job(step, strip, Progress(emit, "compress", sum(p.stat().st_size for p in inputs.values())), folder, codecs=codecs)
    pictures = {path: p for path, p in inputs.items() if suffix(path) in IMAGES}
    if step.per == "set":
        _set(job, pictures)
    for path, source in inputs.items():
        if path not in pictures:
            _copied(job, path, source.read_bytes(), "it is no image")
        elif step.per == "image":
            _one(job, path, source.read_bytes())
        job.progress.add(source.stat().st_size)
    names = placed([(path, job.made[path][0]) for path in inputs])
    for path, (_, file) in job.made.items():
        check_path(names[path])
        target = files / names[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    entries = [Entry(**vars(job.entries[path]) | {"file": names[path]}) for path in inputs]
    index.write(files, entries, job.model)
    proof = _read_back(files, entries, job.codecs)
    rows = sorted(job.rows, key=lambda r: r["name"])
    for row in rows:
        row["file"] = names[row["name"]]
    account(inputs, rows)
    return {"rows": rows, "totals": {}, "load_proof": proof, "sanitized": {"mode": "strip" if strip else "report"}, "notes": _notes(job)}


def _one(job: Job, path: str, data: bytes) -> None:
    """An image with a codec and a setting of its own."""
    picture = open_picture(path, data)
    if picture.pixels is None:
        return _copied(job, path, _kept(job, picture), picture.reason, picture)
    beside = not job.strip
    if job.step.lossless:
        original = picture.data if beside else private.stripped(picture.form, picture.data)
        found, skipped = keep(picture, job.step.candidates, job.step.effort, beside, original if picture.form == "JPEG" and not picture.turned else None)  # JPEG XL would show it as it lies
        best = min(found, key=lambda k: len(k.data), default=None)
        tried, figures = [k.told() for k in found], Figures(1.0, 100.0)
    else:
        search = Search([picture], job.step.target, job.step.effort, beside, tick=lambda: job.progress.add(0))
        best = search.run(job.step.candidates)
        tried, skipped = [t.told() for t in search.tries], search.skipped
        figures = best.figures if best else None
    coded = (best.data[0] if isinstance(best, Try) else best.data) if best else None
    if (own := _own(job, picture)) is not None and _own_wins(job.step, picture, own, coded):
        return _copied(job, path, own, "no codec makes it smaller at what is asked for" if coded else "no codec reaches the target, and it does", picture, tried, skipped)
    if best is None:
        _none(job.step, picture, tried, skipped)
    whole = getattr(best, "whole", False)
    _take(job, picture, best.codec, coded, figures, tried, skipped, whole=whole, variant=best.variant, quality=getattr(best, "quality", None))


def _set(job: Job, inputs: dict[str, Path]) -> None:
    """All images with one codec and one setting; those that cannot be coded are kept as they are."""
    opened = [open_picture(path, source.read_bytes()) for path, source in inputs.items()]
    for picture in opened:
        if picture.pixels is None:
            _copied(job, picture.path, _kept(job, picture), picture.reason, picture)
    pictures = [p for p in opened if p.pixels is not None]
    if not pictures:
        return
    if "transform" in job.step.candidates:
        job.codecs = job.codecs | {"transform": with_learned(_learned(pictures))["transform"]}
    search = Search(pictures, job.step.target, job.step.effort, not job.strip, lambda: job.progress.add(0), job.codecs)
    best = search.run(job.step.candidates)
    tried = [t.told() for t in search.tries]
    if best is None:
        _none(job.step, pictures[0], tried, search.skipped)
    codec = job.codecs[best.codec]
    job.model = codec.model if best.codec == "learned" or best.variant == "klt" else b""
    for picture, judge, data in zip(pictures, search.judges, best.data, strict=True):
        figures = judge(codec.decode(data, picture.mode))
        _take(job, picture, best.codec, data, figures, tried if picture is pictures[0] else [], search.skipped, variant=best.variant, quality=best.quality)


def _learned(pictures: list[Picture]) -> Basis | None:
    """The transform of the set itself; None where its images differ in channels."""
    if len({p.mode for p in pictures}) > 1 or pictures[0].mode == "RGBA":
        return None
    each = [moments_of(p.pixels) for p in pictures]
    return klt(sum(m for m, _ in each), sum(n for _, n in each))


def _none(step: Step, picture: Picture, tried: list[dict], skipped: dict[str, str]) -> None:
    """Raises: JobFailure."""
    nearest = max(tried, key=lambda t: t.get("ms_ssim", 0), default=None)
    what = "nothing is lost" if step.target is None else f"{step.target.name} {step.target.value:g} is reached"
    near = f"; the nearest was {nearest['codec']} with {nearest['bytes']} bytes, ms_ssim {nearest['ms_ssim']:.4f}, psnr {nearest['psnr']:.2f}" if nearest and "ms_ssim" in nearest else ""
    why = "".join(f"; {name}: {reason}" for name, reason in skipped.items())
    raise JobFailure(f"by none of {', '.join(step.candidates)} {what} for {shown(picture.path)}{near}{why}", pointer="/recipe/steps/0/target")


def _own(job: Job, picture: Picture) -> bytes | None:
    """The image's own file as it may be kept; None where it may not: stripped, it would show something else, or it cannot be stripped."""
    if not job.strip:
        return picture.data
    bare = private.stripped(picture.form, picture.data) if picture.form == "JPEG" or not picture.turned else None
    if picture.turned and bare is not None:
        return private.turned_by(bare, picture.turned)
    return picture.data if bare is None and not picture.findings else bare


def _own_wins(step: Step, picture: Picture, own: bytes, coded: bytes | None) -> bool:
    if step.target is not None and step.target.of_size:
        return _small_enough(step, picture, own)
    return coded is None or len(own) <= len(coded)


def _small_enough(step: Step, picture: Picture, data: bytes) -> bool:
    return len(data) <= (step.target.value if step.target.name == "max_bytes" else step.target.value * picture.width * picture.height / 8)


def _kept(job: Job, picture: Picture) -> bytes:
    """Raises: InputRefused: it is to be stripped and cannot be. JobFailure: it takes more than was asked for."""
    own = _own(job, picture)
    if own is None:
        told = ", ".join(f["what"] for f in picture.findings) or "an orientation"
        raise InputRefused("unsupported-format", f"{shown(picture.path)} has to be kept as it is ({picture.reason}), and holds {told}, which is not stripped from {picture.form} here; choose sanitize report, or take it out")
    if job.step.target is not None and job.step.target.of_size and not _small_enough(job.step, picture, own):
        why = f"{shown(picture.path)} has to be kept as it is ({picture.reason}), in {len(own)} bytes, which is more than {job.step.target.name} {job.step.target.value:g}; take it out"
        raise JobFailure(why, pointer="/recipe/steps/0/target")
    return own


def _copied(job: Job, path: str, data: bytes, reason: str, picture: Picture | None = None, tried: Sequence[dict] = (), skipped: Mapping[str, str] = MappingProxyType({})) -> None:
    job.put(path, "", data)
    job.entries[path] = Entry(path, path, ORIGINAL)
    row = {"name": path, "action": "copied", "reason": reason, "bytes_before": len(picture.data) if picture else len(data), "bytes_after": len(data)}
    if picture:
        row |= {"width": picture.width, "height": picture.height, "bpp": _bpp(picture, data), "ms_ssim": 1.0, "codec": ORIGINAL} | _told(job, picture, tried, skipped)
    job.rows.append(row)


def _take(job: Job, picture: Picture, codec: str, data: bytes, figures: Figures, tried: list[dict], skipped: dict[str, str], *, whole: bool = False, variant: str, quality: int | None) -> None:
    decoded = job.codecs[codec].decode(data, picture.mode)
    pixels, exact = hashlib.sha256(decoded).hexdigest(), np.array_equal(decoded, picture.pixels)
    job.put(picture.path, CODECS[codec].suffix, data)
    job.entries[picture.path] = Entry(picture.path, "", codec, picture.mode, picture.width, picture.height, pixels, exact, whole)
    job.rows.append({
        "name": picture.path, "action": "coded", "codec": codec, "variant": variant, "quality": quality, "bytes_before": len(picture.data), "bytes_after": len(data),
        "width": picture.width, "height": picture.height, "mode": picture.mode, "bpp": _bpp(picture, data), "ms_ssim": figures.ms_ssim, "psnr": round(figures.psnr, 3),
        "exact": exact,
    } | _told(job, picture, tried, skipped))  # fmt: skip


def _bpp(picture: Picture, data: bytes) -> float:
    return round(8 * len(data) / (picture.width * picture.height), 4)


def _told(job: Job, picture: Picture, tried: Sequence[dict], skipped: Mapping[str, str]) -> dict:
    job.listed += len(tried)
    listed = list(tried) if job.listed <= TRIES else []
    out = {"tries": len(tried), "search_seconds": round(sum(t["seconds"] for t in tried), 3), "tried": listed}
    if skipped:
        out["skipped"] = dict(skipped)
    if picture.findings:
        stays = [] if job.strip else [name for name in ("exif", "xmp") if name in picture.beside]
        out |= {"private": picture.findings, "carried": stays}
    return out | ({"notes": picture.notes} if picture.notes else {})


def _notes(job: Job) -> list[str]:
    notes = ["ms_ssim: five scales, mean over R, G, B, of the decoded file; psnr: dB over all values"]
    if job.listed > TRIES:
        notes.append(f"the tries of the images after the first {TRIES} tries are not listed")
    if not job.strip and any("private" in r for r in job.rows):
        notes.append("coded files carry EXIF and XMP where `carried` says so; comments and other text are not carried. sanitize strip leaves all of it out")
    return notes


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
    if sorted(names) != sorted(inputs) or any(r["action"] not in ACTIONS or r["action"] == "copied" and not r["reason"] for r in rows):
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
