"""Whether the colours of an image are those of sRGB, which is what a file that tells nothing means."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

from worker.images import png_walk

_GAMMA, _PLACES = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # of sRGB, as PNG tells them


def other_than_srgb(form: str, data: bytes, image: Image.Image) -> str:
    """Why its colours would look otherwise without what tells of them (PNG's gAMA, cHRM and cICP; AVIF's colr of type nclx), which nothing here carries; empty where they are those of sRGB."""
    if form == "AVIF":
        at = data.find(b"colrnclx", 0, 1 << 20)
        primaries, transfer = struct.unpack_from(">HH", data, at + 8) if 0 <= at <= len(data) - 12 else (1, 13)
        return "" if primaries in (1, 2) and transfer in (1, 2, 6, 13) else f"its colours are of primaries {primaries} and transfer {transfer} (CICP), not sRGB"
    if form != "PNG":
        return ""
    if (cicp := next((c for kind, c in png_walk.chunks("", data) if kind == b"cICP"), b"")) and cicp[:2] != b"\1\x0d":
        return f"its colours are of primaries {cicp[0]} and transfer {cicp[1:2].hex()} (cICP), not sRGB"
    if cicp or "icc_profile" in image.info or "srgb" in image.info:
        return ""
    gamma, places = image.info.get("gamma", _GAMMA), image.info.get("chromaticity", _PLACES)
    if abs(gamma - _GAMMA) > 0.02 or max(abs(a - b) for a, b in zip(places, _PLACES, strict=True)) > 0.01:
        return f"its colours (gAMA {gamma:g}, cHRM) are not those of sRGB, and the codecs here would drop what tells so"
    return ""


def is_srgb(icc: bytes) -> bool:
    """Whether a profile maps a grid of colours to where sRGB has them, to a level of 255."""
    grid = Image.fromarray(np.stack(np.meshgrid(*[np.linspace(0, 255, 6).astype(np.uint8)] * 3), -1).reshape(6, 36, 3))
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        mapped = ImageCms.profileToProfile(grid, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # grey profiles, and what is none
        return False
    return int(np.abs(np.asarray(mapped).astype(int) - np.asarray(grid)).max()) <= 1
