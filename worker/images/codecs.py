"""The standard codecs: how each is asked for a quality, with which settings, and what it cannot carry.

Settings that change what a byte buys are variants of a codec, and each is searched: whether chroma is halved, and for which measure AV1's encoder tunes itself.
Speed is not: it is low for the final file, and higher while settings are compared.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.limits import Limits
from worker.images.learned import kinds
from worker.images.learned.codec import LearnedCodec
from worker.images.jxl_header import jxl_header
from worker.images.picture import Picture
from worker.images.transform.basis import Basis
from worker.images.transform.codec import TransformCodec
from worker.images.transform.model import dumped, loaded

EFFORTS = ("fast", "normal", "best")


@dataclass(frozen=True)
class Variant:
    """Settings of a codec beside quality, as Pillow's encoder takes them."""

    name: str
    options: dict


@dataclass(frozen=True)
class Codec:
    """A standard codec.

    Args:
        form: as Pillow calls it.
        levels: the lowest and the highest quality, integers; more is better.
        first: a quality to begin with.
        speed: the option that says how slow it is: its name, and its value for trials and for the final file by effort.
        gain: how much smaller a final file may be than the trial of the same quality, at most; what is behind by more is not tried.
        variants: by effort.
        lossless: options of its exact mode; None where it has none.
    """

    name: str
    form: str
    suffix: str
    levels: tuple[int, int]
    first: int
    speed: tuple[str, int, dict[str, int]] | None
    variants: dict[str, tuple[Variant, ...]]
    gain: float = 1.0
    alpha: bool = True
    icc: bool = True
    grey: bool = True
    lossless: dict | None = None
    fixed: tuple[tuple[str, object], ...] = ()

    def refuses(self, picture: Picture) -> str | None:
        """Why it cannot carry an image as it is; None where it can."""
        if picture.mode == "RGBA" and not self.alpha:
            return "it has no alpha"
        if picture.icc and not self.icc:
            return "its encoder here carries no colour profile"
        return None

    def encode(self, picture: Picture, quality: int, variant: Variant, effort: str | None, beside: dict[str, bytes] | None = None) -> bytes:
        """Args: effort: of the final file; None for a trial. beside: `exif` and `xmp` that the file is to carry."""
        options = dict(self.fixed) | {"quality": quality} | variant.options
        if self.speed:
            name, trial, final = self.speed
            options[name] = trial if effort is None else final[effort]
        if picture.icc:
            options["icc_profile"] = picture.icc
        options |= beside or {}
        if self.form == "AVIF" and picture.mode == "L":
            options["subsampling"] = "4:0:0"
        if self.form == "JPEG" and picture.mode == "L":
            options.pop("subsampling", None)
        out = io.BytesIO()
        image = picture.image
        (image if self.grey or picture.mode != "L" else image.convert("RGB")).save(out, self.form, **options)
        return out.getvalue()

    def same(self, variant: Variant, quality: int) -> int:
        """The lowest quality that gives the very same file: libavif has 64 quantizers for 101 qualities (with tune=iq they are others)."""
        if self.form != "AVIF" or "iq" in variant.name:
            return quality
        step = (6300 - 63 * quality + 50) // 100
        return max(self.levels[0], 100 - (100 * step + 49) // 63)

    def overhead(self, variant: Variant) -> int:
        return 0

    def decode(self, data: bytes, mode: str) -> np.ndarray:
        """[H, W, C] uint8 in the mode that was coded: a grey image that comes back in colours has their mean."""
        with Image.open(io.BytesIO(data), formats=[self.form]) as image:
            image.load()
            if mode == "L" and image.mode != "L":
                return np.rint(np.asarray(image.convert("RGB")).mean(2)).astype(np.uint8)[:, :, None]
            pixels = np.asarray(image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], -1)

    def look(self, data: bytes) -> tuple[tuple[int, int], dict]:
        """Width and height, and what the file carries beside pixels, before it is decoded.

        Raises:
            InputRefused: invalid-image, of JPEG XL.
        """
        if self.form == "JXL":
            head = jxl_header("", data)
            if head.width * head.height > Limits().image_pixels:
                return (head.width, head.height), {}
        with Image.open(io.BytesIO(data), formats=[self.form]) as image:
            return image.size, {k: v for k in ("icc_profile", "exif") if (v := image.info.get(k))}

    def variants_for(self, picture: Picture, effort: str) -> tuple[Variant, ...]:
        """Grey images have no chroma to halve, so of the variants that differ in that alone one is enough."""
        found = self.variants[effort]
        if picture.mode != "L":
            return found
        once = {str({k: v for k, v in one.options.items() if k != "subsampling"}): one for one in reversed(found)}
        return tuple(reversed(once.values()))


def _avif(tune: str, subsampling: str) -> Variant:
    return Variant(f"{tune} {subsampling}", {"advanced": {"tune": tune}, "subsampling": subsampling})


_JPEG = (Variant("4:2:0", {"subsampling": "4:2:0"}), Variant("4:4:4", {"subsampling": "4:4:4"}))
_ONE = (Variant("", {}),)
_WEBP = (*_ONE, Variant("sharp", {"use_sharp_yuv": True}))
_AVIF = (_avif("ssimulacra2", "4:4:4"), _avif("iq", "4:4:4"), _avif("ssimulacra2", "4:2:0"), _avif("iq", "4:2:0"), _avif("ssim", "4:4:4"), _avif("ssim", "4:2:0"))

CODECS = {
    codec.name: codec
    for codec in (
        Codec("jpeg", "JPEG", ".jpg", (1, 100), 60, None, dict.fromkeys(EFFORTS, _JPEG), alpha=False, fixed=(("optimize", True), ("progressive", True))),
        Codec(
            "webp", "WEBP", ".webp", (0, 100), 60, ("method", 3, {"fast": 4, "normal": 6, "best": 6}), {"fast": _ONE, "normal": _ONE, "best": _WEBP}, 1.2, grey=False,
            lossless={"lossless": True, "quality": 100, "exact": True},
        ),
        Codec(
            "avif", "AVIF", ".avif", (1, 99), 50, ("speed", 7, {"fast": 7, "normal": 6, "best": 4}), {"fast": _AVIF[:1], "normal": _AVIF[:4], "best": _AVIF}, 1.5,
            fixed=(("autotiling", False),),  # tiles would depend on how many cores there are
        ),
        Codec(
            "jxl", "JXL", ".jxl", (1, 99), 60, ("effort", 4, {"fast": 5, "normal": 8, "best": 9}), dict.fromkeys(EFFORTS, _ONE), 1.25, icc=False,
            lossless={"lossless": True},
        ),
        Codec("png", "PNG", ".png", (0, 0), 0, None, dict.fromkeys(EFFORTS, _ONE), lossless={"optimize": True}),
        TransformCodec(dict.fromkeys(EFFORTS, (Variant("dct", {}),))),
        LearnedCodec(dict.fromkeys(EFFORTS, _ONE)),
    )
}  # fmt: skip


def with_learned(basis: Basis | None) -> dict:
    """CODECS, the transform codec with a learned transform beside the DCT where there is one."""
    if basis is None:
        return CODECS
    variants = dict.fromkeys(EFFORTS, (Variant("dct", {}), Variant("klt", {"learned": True})))
    return CODECS | {"transform": TransformCodec(variants, basis, dumped(basis))}


def with_codec(trained: kinds.Trained) -> dict:
    """CODECS with a codec that was trained."""
    return CODECS | {"learned": kinds.codec_of(trained, dict.fromkeys(EFFORTS, _ONE))}


def with_model(data: bytes) -> dict:
    """CODECS with what stands beside coded images: a transform, a trained codec, or nothing.

    Raises:
        Damaged.
    """
    if not data:
        return CODECS
    return with_codec(kinds.Trained(kinds.loaded(data), data)) if data.startswith(kinds.MAGICS) else with_learned(loaded(data))
