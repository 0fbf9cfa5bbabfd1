"""The steps of a job on images."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, create_model, model_validator

from app.steps.fields import refuse
from app.strict import Id, Strict

LOSSY = ("jpeg", "webp", "avif", "jxl")
EXACT = ("png", "webp", "jxl")
"""Candidates of a lossless job; a JPEG that is its input is packed by `jxl` so that the very file comes back."""


class Target(Strict):
    """What a coded image must reach: a quality (the smallest file that has it wins) or a size (the best image within it wins)."""

    ms_ssim: Annotated[float, Field(gt=0, lt=1)] | None = None
    psnr: Annotated[float, Field(gt=0, le=100)] | None = None
    bpp: Annotated[float, Field(gt=0, le=64)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one(self):
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            refuse(given[1] if given else "ms_ssim", "give one of ms_ssim, psnr (dB), bpp (bits a pixel), max_bytes")
        return self

    @property
    def name(self) -> str:
        return next(name for name, value in self if value is not None)

    @property
    def value(self) -> float:
        return getattr(self, self.name)

    @property
    def of_size(self) -> bool:
        """Whether it bounds bytes, not quality."""
        return self.name in ("bpp", "max_bytes")


class Image(Strict):
    """Code images: each codec is searched for the setting that meets the target, and the smallest file that does wins.

    `per: set` has one codec and one setting for all images of the job, and the target holds for their mean (of `max_bytes`, their sum). `lossless` keeps every
    pixel. `effort` says how slow the encoders of the final files may be, and how many of their settings are tried. The candidate `learned` takes a `codec` that a job
    has trained, whose file goes with the images and counts once: it is for a set.
    """

    method: Literal["image"]
    candidates: Annotated[list[Literal["jpeg", "webp", "avif", "jxl", "transform", "learned", "png"]], Field(min_length=1, max_length=8)]
    target: Target | None = None
    lossless: bool = False
    per: Literal["image", "set"] = "image"
    effort: Literal["fast", "normal", "best"] = "normal"
    codec: Id | None = None

    seconds: ClassVar[float] = 3e-5
    alone: ClassVar[bool] = True

    @property
    def keeps_values(self) -> bool:
        return self.lossless

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, data: Any):
        if isinstance(data, dict) and "candidates" not in data:
            data = data | {"candidates": list(EXACT if data.get("lossless") is True else LOSSY)}
        if isinstance(data, dict) and "per" not in data and isinstance(data["candidates"], list) and "learned" in data["candidates"]:
            data = data | {"per": "set"}
        return data

    @model_validator(mode="after")
    def _combination(self):
        if self.lossless == (self.target is not None):
            refuse("target", "lossless has no target: every pixel is kept" if self.lossless else "what the images must reach is needed: one of ms_ssim, psnr, bpp, max_bytes; or lossless")
        if len(set(self.candidates)) < len(self.candidates):
            refuse("candidates", "a candidate is named twice")
        if self.lossless and (odd := [c for c in self.candidates if c not in EXACT]):
            refuse("candidates", "{c} loses pixels; lossless are {all}", c=odd[0], all=", ".join(EXACT))
        if not self.lossless and "png" in self.candidates:
            refuse("candidates", "png keeps every pixel: it goes with lossless")
        if self.lossless and self.per == "set":
            refuse("per", "each image has its own best codec where nothing is lost; leave per out")
        if "learned" in self.candidates and self.per != "set":
            refuse("per", "the file of a learned codec goes with the images and counts once: learned is for a set")
        if self.codec and "learned" not in self.candidates:
            refuse("codec", "a codec is for the candidate learned, which is not among the candidates")
        return self

    @property
    def needs_codec(self) -> bool:
        return "learned" in self.candidates


class _TrainCodec(Strict):
    """Train a codec on a part of the images: a transform in closed form, then, for `minutes`, a network that undoes what coding does.

    `lambda`: what an error is worth: bits a pixel + lambda * mean squared error, in levels of 255, is made small. The result is a `codec`.
    """

    method: Literal["train_codec"]
    minutes: Annotated[float, Field(gt=0, le=1440)] = 5.0

    seconds: ClassVar[float] = 3e-5
    alone: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    gains_on_gpu: ClassVar[bool] = True
    makes: ClassVar[str] = "codec"

    @property
    def worth(self) -> float:
        """Its lambda, which is no name in Python."""
        return getattr(self, "lambda")


TrainCodec = create_model("TrainCodec", __base__=_TrainCodec, __doc__=_TrainCodec.__doc__, **{"lambda": (Annotated[float, Field(gt=0, le=10)], 0.013)})


class TestCodec(Strict):
    """Measure a trained codec on those of the images that it has not learned from, beside the standard ones at the same quality."""

    __test__: ClassVar[bool] = False
    method: Literal["test_codec"]
    codec: Id | None = None

    seconds: ClassVar[float] = 3e-5
    alone: ClassVar[bool] = True
    needs_codec: ClassVar[bool] = True
    makes: ClassVar[str] = "figures"


IMAGES: dict[str, type] = {"image": Image, "train_codec": TrainCodec, "test_codec": TestCodec}
"""Params class by method."""
