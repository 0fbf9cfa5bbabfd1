"""The file of an image as it came: whether it may stay, what is taken out of it, and whether it is smaller than what codecs make of it."""

from __future__ import annotations

from app.errors import InputRefused, JobFailure
from app.limits import shown
from app.steps.image import Image as Step
from worker.images import private
from worker.images.picture import Picture


def own(picture: Picture, strip: bool) -> bytes | None:
    """The image's own file as it may be kept; None where it may not: stripped, it would show something else, or it cannot be stripped."""
    if not strip:
        return picture.data
    bare = private.stripped(picture.form, picture.data) if picture.form == "JPEG" or not picture.turned else None
    if picture.turned and bare is not None:
        return private.turned_by(bare, picture.turned)
    return picture.data if bare is None and not picture.findings else bare


def wins(step: Step, picture: Picture, data: bytes, coded: bytes | None) -> bool:
    if step.target is not None and step.target.of_size:
        return _small_enough(step, picture, data)
    return coded is None or len(data) <= len(coded)


def kept(step: Step | None, picture: Picture, strip: bool) -> bytes:
    """The file of an image that is not coded: no codec here takes it, or nobody asks for it.

    Raises:
        InputRefused: it is to be stripped and cannot be.
        JobFailure: it takes more than was asked for.
    """
    data = own(picture, strip)
    if data is None:
        told = ", ".join(f"{f['what']} ({f['where']})" for f in picture.findings) or "an orientation"
        raise InputRefused("unsupported-format", f"{shown(picture.path)} has to be kept as it is{f' ({picture.reason})' if picture.reason else ''}, and holds {told}, which is not stripped from {picture.form} here; choose sanitize report, or take it out")
    if step is not None and step.target is not None and step.target.of_size and not _small_enough(step, picture, data):
        why = f"{shown(picture.path)} has to be kept as it is ({picture.reason}), in {len(data)} bytes, which is more than {step.target.name} {step.target.value:g}; take it out"
        raise JobFailure(why, pointer="/recipe/steps/0/target")
    return data


def _small_enough(step: Step, picture: Picture, data: bytes) -> bool:
    return len(data) <= (step.target.value if step.target.name == "max_bytes" else step.target.value * picture.width * picture.height / 8)
