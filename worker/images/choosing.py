"""The best of what was tried, written: of one image by itself, and of a set with one codec and one setting."""

from __future__ import annotations

from pathlib import Path

from app.errors import JobFailure
from app.limits import shown
from app.steps.image import Image as Step
from worker.images import originals, private
from worker.images.codecs import with_learned
from worker.images.exact import keep
from worker.images.gallery import Gallery
from worker.images.judging import Figures
from worker.images.picture import Picture, open_picture
from worker.images.search import Search
from worker.images.transform.basis import Basis, klt, moments_of
from worker.images.writing import Coded, Writing

_REACHED, _NOT_SMALLER = "no codec reaches the target, and it does", "no codec makes it smaller at what is asked for"


def as_it_is(job: Writing, path: str, data: bytes) -> None:
    """An image that nobody wants coded.

    Raises:
        InputRefused: see `originals.kept`, `open_picture`.
    """
    picture = open_picture(path, data)
    job.copied(path, originals.kept(None, picture, job.strip), "it is the first of its like", picture)


def one(job: Writing, path: str, data: bytes) -> None:
    """An image with a codec and a setting of its own.

    Raises:
        JobFailure: nothing reaches the target. InputRefused: see `originals.kept`, `open_picture`.
    """
    picture = open_picture(path, data)
    if picture.pixels is None:
        return job.copied(path, originals.kept(job.step, picture, job.strip), picture.reason, picture)
    found, tried, skipped = _exact(job, picture) if job.step.lossless else _nearest(job, picture)
    own = originals.own(picture, job.strip)
    if own is not None and originals.wins(job.step, picture, own, found.data if found else None):
        return job.copied(path, own, _NOT_SMALLER if found else _REACHED, picture, tried, skipped)
    if found is None:
        _fail(job.step, picture, tried, skipped)
    job.coded(picture, found)


def _exact(job: Writing, picture: Picture) -> tuple[Coded | None, list[dict], dict[str, str]]:
    beside = not job.strip
    original = picture.data if beside else private.stripped(picture.form, picture.data)
    jpeg = original if picture.form == "JPEG" and not picture.turned else None  # JPEG XL would show it as it lies
    found, skipped = keep(picture, job.step.candidates, job.step.effort, beside, jpeg)
    tried, best = [k.told() for k in found], min(found, key=lambda k: len(k.data), default=None)
    return Coded(best.codec, best.data, Figures(1.0, 100.0), best.variant, None, tried, skipped, best.whole) if best else None, tried, skipped


def _nearest(job: Writing, picture: Picture) -> tuple[Coded | None, list[dict], dict[str, str]]:
    search = Search(Gallery.of([picture], job.step.target), job.step.target, job.step.effort, not job.strip, lambda: job.progress.add(0))
    best, tried = search.run(job.step.candidates), [t.told() for t in search.tries.made]
    if best is None:
        return None, tried, search.skipped
    (data,) = best.files
    return Coded(best.codec, data, best.figures, best.variant, best.quality, tried, search.skipped), tried, search.skipped


def whole_set(job: Writing, inputs: dict[str, Path]) -> None:
    """All images with one codec and one setting; those that cannot be coded are kept as they are.

    Raises:
        JobFailure: nothing reaches the target. InputRefused: see `originals.kept`, `open_picture`.
    """
    gallery = Gallery(job.step.target)
    for path, source in inputs.items():
        picture = open_picture(path, source.read_bytes())
        if picture.pixels is None:
            job.copied(path, originals.kept(job.step, picture, job.strip), picture.reason, picture)
        else:
            gallery.add(picture, lambda path=path, source=source: open_picture(path, source.read_bytes()))
    if not len(gallery):
        return
    if "transform" in job.step.candidates:
        job.codecs = job.codecs | {"transform": with_learned(_learned(gallery))["transform"]}
    search = Search(gallery, job.step.target, job.step.effort, not job.strip, lambda: job.progress.add(0), job.codecs, job.folder)
    best, tried = search.run(job.step.candidates), [t.told() for t in search.tries.made]
    if best is None:
        _fail(job.step, gallery.outlines[0], tried, search.skipped)
    codec = job.codecs[best.codec]
    job.model = codec.model if best.codec == "learned" or best.variant == "klt" else b""
    for (picture, judge), data in zip(gallery, best.files, strict=True):
        figures = judge(codec.decode(data, picture.mode))
        job.coded(picture, Coded(best.codec, data, figures, best.variant, best.quality, tried, search.skipped))
        tried = []  # the first image has them all


def _learned(gallery: Gallery) -> Basis | None:
    """The transform of the set itself; None where its images differ in channels."""
    modes = {p.mode for p in gallery.outlines}
    if len(modes) > 1 or modes == {"RGBA"}:
        return None
    moments, count = 0, 0
    for picture, _ in gallery:
        of, patches = moments_of(picture.pixels)
        moments, count = moments + of, count + patches
    return klt(moments, count)


def _fail(step: Step, picture: Picture, tried: list[dict], skipped: dict[str, str]):
    """Raises: JobFailure."""
    nearest = max(tried, key=lambda t: t.get("ms_ssim", 0), default=None)
    what = "nothing is lost" if step.target is None else f"{step.target.name} {step.target.value:g} is reached"
    near = f"; the nearest was {nearest['codec']} with {nearest['bytes']} bytes, ms_ssim {nearest['ms_ssim']:.4f}, psnr {nearest['psnr']:.2f}" if nearest and "ms_ssim" in nearest else ""
    why = "".join(f"; {name}: {reason}" for name, reason in skipped.items())
    raise JobFailure(f"by none of {', '.join(step.candidates)} {what} for {shown(picture.path)}{near}{why}", pointer="/recipe/steps/0/target")
