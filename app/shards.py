"""Which files of one folder hold its weights: one file, shards with an index, or shards without."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

from app.errors import InputRefused
from app.formats import suffix
from app.limits import Limits, shown
from app.safetensors_header import check_json

CONFIG_BYTES = 4 << 20
Read = Callable[[str, int], bytes]  # (path, at most) -> the bytes of a file


class Weights(Protocol):
    """A weight file: names of its tensors, and of those tied to them."""

    specs: Mapping[str, Any]
    aliases: Mapping[str, str]


W = TypeVar("W", bound=Weights)


def parent(path: str) -> str:
    parent = PurePosixPath(path).parent.as_posix()
    return "" if parent == "." else parent


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def main_folder(weights: Collection[str], files: Collection[str]) -> str:
    """The one with a config.json beside its weights, then the topmost, then the first by name."""
    folders = {parent(p) for p in weights}
    return min(folders, key=lambda f: (join(f, "config.json") not in files, f.count("/") + bool(f), f))


def choose(folder: str, weights: dict[str, W], files: Collection[str], read: Read, limits: Limits, notes: list[str]) -> dict[str, W]:
    """The weight files of a folder that are read: safetensors before pickles, an index before names."""
    safetensors = {p: w for p, w in weights.items() if suffix(p) == ".safetensors"}
    group = safetensors or weights
    if safetensors and len(weights) > len(safetensors):
        notes.append(f"{', '.join(p for p in weights if p not in safetensors)}: checked and kept as it is; the weights are read from safetensors")
    index = join(folder, "model.safetensors.index.json" if safetensors else "pytorch_model.bin.index.json")
    whole = join(folder, "model.safetensors" if safetensors else "pytorch_model.bin")
    if index in files and whole not in group:
        chosen = _indexed(read, index, folder, group, limits)
    else:
        chosen = _distinct(group, whole)
    if left := [p for p in group if p not in chosen]:
        notes.append(f"{', '.join(left[:5])}: checked and kept as it is; the weights are read from {', '.join(list(chosen)[:3])}")
    return chosen


def _distinct(group: dict[str, W], whole: str) -> dict[str, W]:
    """All files of the group when no two hold a tensor of the same name, else the one with the usual name."""
    names = Counter(n for w in group.values() for n in (*w.specs, *w.aliases))
    if not (twice := next((n for n, count in names.items() if count > 1), None)):
        return group
    if whole in group:
        return {whole: group[whole]}
    raise InputRefused(
        "invalid-hf", f"tensor {shown(twice)} is in more than one of {', '.join(map(shown, list(group)[:5]))}; upload one set of weights"
    )


def _indexed(read: Read, name: str, folder: str, group: dict[str, W], limits: Limits) -> dict[str, W]:
    """The shards that an index names, when it and they agree on every tensor.

    Raises:
        InputRefused: invalid-hf.
    """
    index = read_json(read, name, limits, limits.safetensors_header_bytes, pairs=2 * limits.tensors)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputRefused("invalid-hf", f"{name} has no weight_map from tensor names to file names")
    chosen: dict[str, W] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if join(folder, shard) not in group:
            raise InputRefused("invalid-hf", f"{name} names {shown(shard)}, which is not among the files beside it")
        chosen[join(folder, shard)] = group[join(folder, shard)]
    held = {n: p for p, w in chosen.items() for n in (*w.specs, *w.aliases)}
    if sum(len(w.specs) + len(w.aliases) for w in chosen.values()) != len(held):
        raise InputRefused("invalid-hf", f"two of the shards that {name} names hold a tensor of the same name")
    for tensor, shard in weight_map.items():
        if held.get(tensor) != join(folder, shard):
            where = f"in {shown(held[tensor])}" if tensor in held else "in none of the shards"
            raise InputRefused("invalid-hf", f"{name} says that tensor {shown(tensor)} is in {shown(shard)}; it is {where}")
    if unnamed := next((n for n in held if n not in weight_map), None):
        raise InputRefused("invalid-hf", f"{name} does not name tensor {shown(unnamed)}, which {shown(held[unnamed])} holds")
    return chosen


def read_config(read: Read, name: str, limits: Limits) -> dict:
    """A config.json. Raises: see `read_json`."""
    return read_json(read, name, limits, CONFIG_BYTES, pairs=limits.tensors)


def read_json(read: Read, name: str, limits: Limits, most: int, pairs: int) -> dict:
    """A JSON object from a file of the folder.

    Raises:
        InputRefused: invalid-hf, limit-header, limit-depth, limit-entries.
    """
    if len(raw := read(name, most + 1)) > most:
        raise InputRefused("limit-header", f"{name} has more than {most} bytes, which is all that is taken")
    check_json(raw, limits, pairs, pairs)

    def unique(items: list[tuple[str, object]]) -> dict:
        if len(out := dict(items)) != len(items):
            raise InputRefused("invalid-hf", f"{name} has a key twice in an object, and readers disagree on which one counts")
        return out

    try:
        value = json.loads(raw.decode(), object_pairs_hook=unique)
    except ValueError as e:  # not UTF-8, not JSON, an integer of thousands of digits
        raise InputRefused("invalid-hf", f"{name} is not JSON in UTF-8: {str(e)[:100]}") from None
    if not isinstance(value, dict):
        raise InputRefused("invalid-hf", f"{name} is not a JSON object")
    return value
