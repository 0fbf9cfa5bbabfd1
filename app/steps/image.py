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
    ssimulacra2: Annotated[float, Field(gt=0, lt=100)] | None = None
    bpp: Annotated[float, Field(gt=0, le=64)] | None = None
    max_bytes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one(self):
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            refuse(given[1] if given else "ms_ssim", "give one of ms_ssim, psnr (dB), ssimulacra2, bpp (bits a pixel), max_bytes")
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


class DedupImages(Strict):
    """Keep the first of images whose pixels are equal or, with `near`, whose perceptual hashes differ in at most so many of 64 bits; others are dropped, with the list.

    Alone in a recipe it keeps the images' own files; before `image`, what is left is coded.
    """

    method: Literal["dedup"]
    near: Annotated[int, Field(ge=0, le=16)] | None = None

    seconds: ClassVar[float] = 1e-7


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
    after: ClassVar[tuple[str, ...]] = ("dedup",)

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
            refuse("target", "lossless has no target: every pixel is kept" if self.lossless else "what the images must reach is needed: one of ms_ssim, psnr, ssimulacra2, bpp, max_bytes; or lossless")
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


_WORTH = {"mse": 0.013, "ms_ssim": 16.0}
"""What lambda is where none is given, by distortion."""


class _TrainCodec(Strict):
    """Train a codec on a part of the images, for `minutes`. The result is a `codec`.

    `architecture`: `transform` is a block transform in closed form and a network that undoes what coding does; `hyperprior` is an autoencoder whose entropy model is told by side
    information; `auto` is the first, and the second where a GPU has an hour or more for it. `lambda`: what an error is worth: bits a pixel + lambda * distortion is made small; distortion is the mean squared
    error in levels of 255 (`mse`), or, of a hyperprior, 1 - MS-SSIM (`ms_ssim`).
    """

    method: Literal["train_codec"]
    minutes: Annotated[float, Field(gt=0, le=1440)] = 5.0
    architecture: Literal["auto", "transform", "hyperprior"] = "auto"
    distortion: Literal["mse", "ms_ssim"] = "mse"

    seconds: ClassVar[float] = 3e-5
    alone: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    gains_on_gpu: ClassVar[bool] = True
    makes: ClassVar[str] = "codec"

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, data: Any):
        if isinstance(data, dict) and "lambda" not in data:
            data = data | {"lambda": _WORTH.get(str(data.get("distortion", "mse")), 0.013)}
        return data

    @model_validator(mode="after")
    def _combination(self):
        if self.distortion == "ms_ssim" and self.architecture != "hyperprior":
            refuse("distortion", "ms_ssim is what a hyperprior can be trained by; a transform is fitted by mse")
        return self

    @property
    def worth(self) -> float:
        """Its lambda, which is no name in Python."""
        return getattr(self, "lambda")


TrainCodec = create_model("TrainCodec", __base__=_TrainCodec, __doc__=_TrainCodec.__doc__, **{"lambda": (Annotated[float, Field(gt=0, le=1000)], _WORTH["mse"])})


class TestCodec(Strict):
    """Measure a trained codec on those of the images that it has not learned from, beside the standard ones at the same quality."""

    __test__: ClassVar[bool] = False
    method: Literal["test_codec"]
    codec: Id | None = None

    seconds: ClassVar[float] = 3e-5
    alone: ClassVar[bool] = True
    needs_codec: ClassVar[bool] = True
    makes: ClassVar[str] = "figures"


IMAGES: dict[str, type] = {"dedup": DedupImages, "image": Image, "train_codec": TrainCodec, "test_codec": TestCodec}
"""Params class by method."""
