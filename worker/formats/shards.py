"""Which files of one folder hold its weights: one file, shards with an index, or shards without."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath

from app.errors import InputRefused
from app.formats import suffix
from app.limits import Limits, shown
from app.safetensors_header import check_json
from worker.formats.safetensors_file import SafetensorsFile
from worker.formats.torch_zip import TorchFile

WeightFile = SafetensorsFile | TorchFile


def parent(path: str) -> str:
    parent = PurePosixPath(path).parent.as_posix()
    return "" if parent == "." else parent


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def choose(folder: str, weights: dict[str, WeightFile], files: dict[str, Path], limits: Limits, notes: list[str]) -> dict[str, WeightFile]:
    """The weight files of a folder that are read: safetensors before pickles, an index before names."""
    safetensors = {p: w for p, w in weights.items() if suffix(p) == ".safetensors"}
    group = safetensors or weights
    if safetensors and len(weights) > len(safetensors):
        notes.append(f"{', '.join(p for p in weights if p not in safetensors)}: checked and kept as it is; the weights are read from safetensors")
    index = join(folder, "model.safetensors.index.json" if safetensors else "pytorch_model.bin.index.json")
    whole = join(folder, "model.safetensors" if safetensors else "pytorch_model.bin")
    if index in files and whole not in group:
        chosen = _indexed(files[index], index, folder, group, limits)
    else:
        chosen = _distinct(group, whole)
    if left := [p for p in group if p not in chosen]:
        notes.append(f"{', '.join(left[:5])}: checked and kept as it is; the weights are read from {', '.join(list(chosen)[:3])}")
    return chosen


def _distinct(group: dict[str, WeightFile], whole: str) -> dict[str, WeightFile]:
    """All files of the group when no two hold a tensor of the same name, else the one with the usual name."""
    names = Counter(n for w in group.values() for n in (*w.specs, *w.aliases))
    if not (twice := next((n for n, count in names.items() if count > 1), None)):
        return group
    if whole in group:
        return {whole: group[whole]}
    raise InputRefused(
        "invalid-hf", f"tensor {shown(twice)} is in more than one of {', '.join(map(shown, list(group)[:5]))}; upload one set of weights"
    )


def _indexed(path: Path, name: str, folder: str, group: dict[str, WeightFile], limits: Limits) -> dict[str, WeightFile]:
    """The shards that an index names, when it and they agree on every tensor.

    Raises:
        InputRefused: invalid-hf.
    """
    index = read_json(path, name, limits, limits.safetensors_header_bytes, pairs=2 * limits.tensors)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputRefused("invalid-hf", f"{name} has no weight_map from tensor names to file names")
    chosen: dict[str, WeightFile] = {}
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


def read_json(path: Path, name: str, limits: Limits, most: int, pairs: int) -> dict:
    """A JSON object from a file of the folder.

    Raises:
        InputRefused: invalid-hf, limit-header, limit-depth, limit-entries.
    """
    if (size := path.stat().st_size) > most:
        raise InputRefused("limit-header", f"{name} has {size} bytes; at most {most} are taken")
    raw = path.read_bytes()
    check_json(raw, limits, pairs, pairs)
    try:
        value = json.loads(raw.decode())
    except ValueError as e:  # not UTF-8, not JSON, an integer of thousands of digits
        raise InputRefused("invalid-hf", f"{name} is not JSON in UTF-8: {str(e)[:100]}") from None
    if not isinstance(value, dict):
        raise InputRefused("invalid-hf", f"{name} is not a JSON object")
    return value
