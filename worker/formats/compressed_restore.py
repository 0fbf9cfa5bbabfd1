"""compressed-tensors back to plain safetensors: original names, shapes and dtypes, and a config without `quantization_config`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from app.compressed import words
from app.errors import InputRefused
from app.layout import Entry
from app.limits import shown
from worker.checkpoint import NAMES
from worker.formats.compressed_tensors import CompressedTensorsReader
from worker.formats.safetensors_file import read_header
from worker.formats.safetensors_writer import Shard

_SUFFIXES = ("_packed", "_scale", "_shape", "_zero_point")
_INDEX = ".safetensors.index.json"
_BITS = range(1, 9)


def refuse(why: str) -> InputRefused:
    return InputRefused("invalid-safetensors", f"no valid compressed-tensors folder: {why}")


def restore_compressed_tensors(folder: Path, out: Path, progress: Callable[[int], None]) -> dict:
    """Write the dequantized model into `out`, shard by shard.

    Returns:
        `{"files": [paths]}`.

    Raises:
        InputRefused: a part is missing, or has another shape or dtype than its scheme asks for.
    """
    with CompressedTensorsReader(folder) as reader:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            rel = path.relative_to(folder)
            (out / rel).parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                _shard(reader, path, out / rel, progress)
            elif path.name == "config.json":
                config = json.loads(path.read_bytes())
                config.pop("quantization_config", None)
                (out / rel).write_text(json.dumps(config, indent=2) + "\n")
            elif not path.name.endswith(_INDEX):
                shutil.copyfile(path, out / rel)
    _write_index(folder, out)
    return {"files": sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())}


def _shard(reader: CompressedTensorsReader, path: Path, target: Path, progress: Callable[[int], None]) -> None:
    names = read_header(path).entries
    weights = {_weight(n) if _part_of(n, names) else n: None for n in names}
    entries = [_entry(reader, name) for name in weights]
    shard = Shard(target, entries)
    for entry in entries:
        shard.write(reader.read(entry.name))
        progress(reader.stored_bytes(entry.name))
    shard.close()


def _weight(name: str) -> str:
    return next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)


def _part_of(name: str, names: dict) -> bool:
    """Whether a tensor is a part of a quantized weight, not a tensor that only happens to be named like one."""
    weight = _weight(name)
    return weight != name and weight.endswith("weight") and f"{weight}_scale" in names and (f"{weight}_packed" in names or weight in names)


def _entry(reader: CompressedTensorsReader, name: str) -> Entry:
    """What a tensor restores to, once its parts are found to agree."""
    if reader.parts(name) == [name]:
        t = reader.tensor(name)
        return Entry(name, NAMES[t.dtype], tuple(t.shape))
    if f"{name}_scale" not in reader.where:
        raise refuse(f"{shown(name)} has parts and no scale")
    scale = reader.tensor(f"{name}_scale")
    if f"{name}_packed" not in reader.where:
        codes = reader.tensor(name)
        _check(codes.dim() == 2 and codes.dtype in (torch.int8, torch.float8_e4m3fn), name, "codes are int8 or float8_e4m3fn matrices")
        shape = tuple(codes.shape)
    else:
        shape = _shape(reader, name)
    _check(scale.is_floating_point() and (scale.numel() == 1 or (scale.dim() == 2 and scale.shape[0] == shape[0] and scale.shape[1] >= 1)), name, "a scale per row and group")
    _check(scale.dim() < 2 or shape[1] % scale.shape[1] == 0, name, "groups that divide the inputs")
    return Entry(name, NAMES[scale.dtype], shape)


def _shape(reader: CompressedTensorsReader, name: str) -> tuple[int, int]:
    packed, declared = reader.tensor(f"{name}_packed"), reader.where.get(f"{name}_shape")
    _check(declared is not None and packed.dtype == torch.int32 and packed.dim() == 2, name, "packed int32 words and their shape")
    shape = tuple(reader.tensor(f"{name}_shape").reshape(-1).tolist())
    bits = reader.weights(name.removesuffix(".weight")).get("num_bits")
    _check(bits in _BITS, name, "1 to 8 bits")
    _check(len(shape) == 2 and shape[0] == packed.shape[0] and 0 < shape[1] and words(shape[1], bits) == packed.shape[1], name, "a shape that its words fill")
    if f"{name}_zero_point" in reader.where:
        zero, groups = reader.tensor(f"{name}_zero_point"), reader.tensor(f"{name}_scale").reshape(shape[0] if reader.tensor(f"{name}_scale").dim() == 2 else 1, -1).shape[1]
        _check(zero.numel() == 1 or tuple(zero.shape) == (words(shape[0], bits), groups), name, "zero points packed along the outputs")
    return shape


def _check(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise refuse(f"{shown(name)} lacks {wanted}")


def _write_index(folder: Path, out: Path) -> None:
    """Where the input had one."""
    for path in folder.rglob(f"*{_INDEX}"):
        target = out / path.relative_to(folder)
        shards = {p.name: read_header(p) for p in sorted(target.parent.glob("*.safetensors"))}
        weight_map = {name: file for file, header in shards.items() for name in header.entries}
        total = sum(e.end - e.begin for header in shards.values() for e in header.entries.values())
        target.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
