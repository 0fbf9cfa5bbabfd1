"""Turns a result back into the files it was made of: `packed`, or a folder of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from app.errors import InputRefused
from app.limits import shown
from app.safetensors_header import PACKED
from worker.formats.compressed_restore import restore_compressed_tensors
from worker.formats.packed import restore_packed
from worker.formats.safetensors_file import read_header

_CONFIG_BYTES = 16 << 20


def restore(folder: Path, scratch: Path, out: Path, progress: Callable[[int], None]) -> dict:
    """Write the original files of the artifact in `folder` into `out`.

    Args:
        folder: a packed file (beside nothing else that is packed), or config.json and weights of compressed-tensors.
        progress: told of bytes written, as they are.

    Returns:
        `format` (packed or compressed-tensors) and what that format's restore says.

    Raises:
        InputRefused: unsupported-format when `folder` is neither; invalid-packed and others when it is damaged.
    """
    weights = sorted(p for p in folder.rglob("*.safetensors") if p.is_file())
    packed = [p for p in weights if read_header(p).metadata.get("format") == PACKED]
    if len(packed) == 1 and len(weights) == 1:
        return {"format": "packed"} | restore_packed(packed[0], out, progress)
    if packed:
        raise InputRefused("unsupported-format", f"{len(packed)} packed files among {len(weights)} weight files; restore them one by one")
    if weights and any(_is_compressed(p) for p in folder.rglob("config.json")):
        return {"format": "compressed-tensors"} | restore_compressed_tensors(folder, out, progress)
    found = ", ".join(shown(p.name) for p in sorted(folder.iterdir())[:5])
    raise InputRefused("unsupported-format", f"restore takes a packed file or a compressed-tensors folder, not {found or 'an empty folder'}")


def _is_compressed(config: Path) -> bool:
    """Whether a config.json says that compressed-tensors wrote the weights."""
    if not config.is_file() or config.stat().st_size > _CONFIG_BYTES:
        return False
    try:
        parsed = json.loads(config.read_bytes())
        return parsed.get("quantization_config", {}).get("quant_method") == "compressed-tensors"
    except (ValueError, AttributeError, RecursionError):
        return False
