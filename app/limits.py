"""Bounds on what a stranger's file may claim, and which names in it are safe to use."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from app.errors import InputRefused


@dataclass(frozen=True)
class Limits:
    """Checked before anything is allocated. Sizes are bytes.

    `model_header_bytes` and `model_tensors` are of all safetensors files of a model together. A file of n bytes may expand to `expand_ratio * n`, and a small one to `expanded_bytes`. Tensors that overlap in their storage may take
    `materialised_ratio * n` once each is contiguous, and those of a small file `materialised_bytes`.
    """

    safetensors_header_bytes: int = 16 << 20
    tensors: int = 100_000
    model_header_bytes: int = 32 << 20
    model_tensors: int = 200_000
    tensor_name_chars: int = 512
    rank: int = 32
    metadata_bytes: int = 1 << 20
    json_depth: int = 64
    dict_keys: int = 200_000
    expand_ratio: int = 100
    expanded_bytes: int = 256 << 20
    archive_entries: int = 10_000
    path_chars: int = 512
    path_depth: int = 32
    pickle_bytes: int = 32 << 20
    program_bytes: int = 32 << 20
    pickle_depth: int = 64
    pickle_opcodes: int = 3_000_000  # what 80,000 tensors take; each costs two microseconds or three
    image_pixels: int = 64_000_000
    materialised_ratio: int = 8
    materialised_bytes: int = 256 << 20

    def expanded(self, size: int) -> int:
        return max(self.expanded_bytes, self.expand_ratio * size)

    def materialised(self, size: int) -> int:
        return max(self.materialised_bytes, self.materialised_ratio * size)


_UNSAFE = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # control, format (bidirectional overrides, zero width), surrogates, private use, line separators


_DEVICES = frozenset(("con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(1, 10))))


def unsafe_text(text: str) -> str | None:
    """Why a name must not reach a path, a header or a log line as it is; None when it may."""
    if not text:
        return "it is empty"
    if not text.isascii() or not text.isprintable():
        for c in text:
            if unicodedata.category(c) in _UNSAFE:
                return f"it holds U+{ord(c):04X}"
    if text[0] in "/\\" or re.match(r"[A-Za-z]:[/\\]", text):
        return "it is an absolute path"
    if ".." in text and ".." in re.split(r"[/\\]", text):
        return "it has a '..' component"
    return None


def shown(text: str) -> str:
    """A stranger's text, for a message: escaped and short."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def check_tensor_name(name: str, limits: Limits = Limits()) -> None:
    """Names of tensors become keys, paths and log lines.

    Raises:
        InputRefused: limit-name or bad-tensor-name.
    """
    if len(name) > limits.tensor_name_chars:
        raise InputRefused("limit-name", f"tensor name {shown(name)} has {len(name)} characters; at most {limits.tensor_name_chars} are taken")
    if why := unsafe_text(name):
        raise InputRefused("bad-tensor-name", f"tensor name {shown(name)} is refused: {why}")
    if name == "__metadata__":
        raise InputRefused("bad-tensor-name", "a tensor cannot be named __metadata__, which safetensors keeps for itself")


def check_path(path: str, limits: Limits = Limits()) -> None:
    """A relative POSIX path of an archive's member: no component is empty, `.` or `..`, nothing means something else on another system.

    Raises:
        InputRefused: limit-name or unsafe-archive.
    """
    if len(path) > limits.path_chars:
        raise InputRefused("limit-name", f"member name {shown(path)} has {len(path)} characters; at most {limits.path_chars} are taken")
    why = unsafe_text(path)
    parts = path.split("/")
    if not why and ("\\" in path or re.match(r"[A-Za-z]:", path)):
        why = "it is a path of another system"
    if not why and any(p in ("", ".") for p in parts):
        why = "it has an empty or '.' component"
    if not why and any(p[-1] in ". " or ":" in p or p.split(".")[0].strip().lower() in _DEVICES for p in parts):
        why = "Windows takes a component of it for another file, a stream or a device"
    if not why and any(len(p.encode()) > 255 for p in parts):
        why = "a component has more than 255 bytes"
    if not why and len(parts) > limits.path_depth:
        why = f"it has {len(parts)} levels, and at most {limits.path_depth} are taken"
    if why:
        raise InputRefused("unsafe-archive", f"member {shown(path)} is refused: {why}")
