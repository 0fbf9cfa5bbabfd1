"""Turns coded images back: into PNG under their own names and folders, or into the very files where these were kept."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from app.errors import InputRefused
from app.formats import suffix
from app.limits import shown
from worker.images import index
from worker.images.codecs import CODECS, with_model
from worker.images.exact import unpacked
from worker.images.index import ORIGINAL, Entry
from worker.images.picture import FORMATS
from worker.images.sources import placed
from worker.images.transform.coding import Damaged

_LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {"compression": "tiff_deflate"}}
"""Formats into which pixels go as they are."""


def restore(inp: Path, out: Path, progress: Callable[[int], None]) -> dict:
    """Write the images of the result in `inp` into `out`.

    Returns:
        `rows`, `totals`, `load_proof`.

    Raises:
        InputRefused: what `index.read` raises; invalid-image: a file does not decode to what the index says.
    """
    entries = index.read(inp, tuple(CODECS))
    try:
        codecs = with_model(index.read_model(inp))
    except Damaged as e:
        raise InputRefused("invalid-image", str(e)) from None
    names = placed([(e.path, "" if _form(e) == FORMATS.get(suffix(e.path)) or e.codec == ORIGINAL else ".png") for e in entries])
    rows, differing = [], 0
    for entry in entries:
        data = (inp / entry.file).read_bytes()
        made, same = (data, True) if entry.codec == ORIGINAL else _restored(entry, data, codecs)
        target = out / names[entry.path]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(made)
        differing += not same
        rows.append(_row(entry, names[entry.path], len(data), len(made), same))
        progress(len(data))
    proof = {"reader": "modelpress", "restored": {"images": len(entries), "exact": sum(r["exact"] for r in rows), "other_pixels_than_at_the_coder": differing}}
    return {"rows": rows, "totals": {}, "load_proof": proof}


def _form(entry: Entry) -> str:
    """The format that it comes back in."""
    own = FORMATS.get(suffix(entry.path), "")
    if entry.whole or own in _LOSSLESS or own == CODECS.get(entry.codec, CODECS["png"]).form:
        return own
    return "PNG"


def _restored(entry: Entry, data: bytes, codecs: dict) -> tuple[bytes, bool]:
    """The file, and whether its pixels are those that the coder saw: decoders of other versions may round otherwise."""
    codec, form = codecs[entry.codec], _form(entry)
    try:
        size, beside = codec.look(data)
        if size != (entry.width, entry.height):
            raise ValueError("another size")
        pixels = codec.decode(data, entry.mode)
        whole = unpacked(data) if entry.whole else None
    except InputRefused:
        raise
    except (ArithmeticError, AttributeError, Damaged, EOFError, IndexError, KeyError, OSError, RuntimeError, SyntaxError, TypeError, ValueError) as e:
        raise InputRefused("invalid-image", f"{shown(entry.file)} is not what the index says: {ascii(str(e))[1:100]}") from None
    same = hashlib.sha256(pixels).hexdigest() == entry.pixels
    if (entry.exact and not same) or (entry.whole and whole is None):
        raise InputRefused("invalid-image", f"{shown(entry.file)} does not decode to the pixels that the index says")
    if entry.whole:
        return whole, True
    if form == codec.form:
        return data, same
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if entry.mode == "L" else pixels).save(out, form, **_LOSSLESS.get(form, {}), **beside)
    return out.getvalue(), same


def _row(entry: Entry, path: str, before: int, after: int, same: bool) -> dict:
    row = {"name": entry.file, "action": "copied" if entry.codec == ORIGINAL else "restored", "file": path, "codec": entry.codec, "bytes_before": before, "bytes_after": after}
    row |= {"exact": entry.exact, "reason": "it was kept as it is" if entry.codec == ORIGINAL else "restored"}
    return row | ({} if same else {"notes": ["the decoder here rounds otherwise than that of the coder: the pixels differ in their last bits"]})
