"""What a job on images writes: files, whose names are given at the end, an entry of the index and a row of the report for each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from app.steps.image import Image as Step
from worker.images.codecs import CODECS
from worker.images.index import ORIGINAL, Entry
from worker.images.judging import Figures
from worker.images.picture import Picture
from worker.progress import Progress

TRIES = 20_000
"""Most that a report lists; the rows after it have their best try only."""
FINDINGS = 200
"""Most of what is told beside pixels that is listed for all images together."""
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Coded:
    """An image as a codec has it. `tried`: rows of the report; `skipped`: why codecs were not."""

    codec: str
    data: bytes
    figures: Figures
    variant: str
    quality: int | None
    tried: Sequence[dict] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False


@dataclass
class Writing:
    """Args:
    step: how images are coded; None where they are not.
    strip: whether files carry nothing beside their picture.
    folder: where files lie until their names are known.
    """

    step: Step | None
    strip: bool
    progress: Progress
    folder: Path
    codecs: dict = field(default_factory=lambda: CODECS)
    made: dict[str, tuple[str, Path]] = field(default_factory=dict)  # path -> (suffix, file)
    entries: dict[str, Entry] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    model: bytes = b""  # of a learned transform that was used
    listed: int = 0

    def _put(self, path: str, end: str, data: bytes) -> None:
        """Args: end: the suffix that it is to have; empty: its path stays."""
        file = self.folder / str(len(self.made))
        file.write_bytes(data)
        self.made[path] = (end, file)

    def copied(self, path: str, data: bytes, reason: str, picture: Picture | None = None, tried: Sequence[dict] = (), skipped: Mapping[str, str] = NOTHING) -> None:
        """A file that stays as it is, or all but what is stripped from it."""
        self._put(path, "", data)
        self.entries[path] = Entry(path, path, ORIGINAL)
        row = {"name": path, "action": "copied", "reason": reason, "bytes_before": len(picture.data) if picture else len(data), "bytes_after": len(data)}
        if picture:
            row |= {"width": picture.width, "height": picture.height, "bpp": _bpp(picture, data), "ms_ssim": 1.0, "codec": ORIGINAL} | self._told(picture, tried, skipped)
        self.rows.append(row)

    def dropped(self, path: str, nbytes: int, reason: str) -> None:
        self.rows.append({"name": path, "action": "dropped", "reason": reason, "bytes_before": nbytes, "bytes_after": 0})

    def coded(self, picture: Picture, one: Coded) -> None:
        decoded = self.codecs[one.codec].decode(one.data, picture.mode)
        pixels, exact = hashlib.sha256(decoded).hexdigest(), np.array_equal(decoded, picture.pixels)
        self._put(picture.path, CODECS[one.codec].suffix, one.data)
        self.entries[picture.path] = Entry(picture.path, "", one.codec, picture.mode, picture.width, picture.height, pixels, exact, one.whole)
        self.rows.append({
            "name": picture.path, "action": "coded", "codec": one.codec, "variant": one.variant, "quality": one.quality, "bytes_before": len(picture.data), "bytes_after": len(one.data),
            "width": picture.width, "height": picture.height, "mode": picture.mode, "bpp": _bpp(picture, one.data), "exact": exact,
        } | one.figures.told() | self._told(picture, one.tried, one.skipped))  # fmt: skip

    def _told(self, picture: Picture, tried: Sequence[dict], skipped: Mapping[str, str]) -> dict:
        self.listed += len(tried)
        listed = list(tried) if self.listed <= TRIES else []
        out = {"tries": len(tried), "search_seconds": round(sum(t["seconds"] for t in tried), 3), "tried": listed}
        if skipped:
            out["skipped"] = dict(skipped)
        if picture.findings:
            stays = [] if self.strip else [name for name in ("exif", "xmp") if name in picture.beside]
            out |= {"private": picture.findings, "carried": stays}
        return out | ({"notes": picture.notes} if picture.notes else {})

    def findings(self) -> list[dict]:
        """As a model's report has them: of all images, where and what; at most FINDINGS, and how many more there are."""
        found = [{"where": f"{row['name']}, {f['where']}", "what": f["what"]} for row in sorted(self.rows, key=lambda r: r["name"]) for f in row.get("private", ())]
        more = len(found) - FINDINGS
        return found[:FINDINGS] + ([{"where": "elsewhere", "what": f"{more} more findings"}] if more > 0 else [])

    def notes(self) -> list[str]:
        if self.step is None:
            return []
        notes = ["ms_ssim: five scales, mean over R, G, B, of the decoded file; psnr: dB over all values"]
        if self.listed > TRIES:
            notes.append(f"the tries of the images after the first {TRIES} tries are not listed")
        if not self.strip and any("private" in r for r in self.rows):
            notes.append("coded files carry EXIF and XMP where `carried` says so; comments and other text are not carried. sanitize strip leaves all of it out")
        return notes


def _bpp(picture: Picture, data: bytes) -> float:
    return round(8 * len(data) / (picture.width * picture.height), 4)
