"""The checkpoint of compressed-tensors 0.20 as transformers and vLLM load it (what it consists of: `app.compressed`).

A packed row is a dense bit stream along the inputs, least significant bit first, of u = code + 2^(b-1); zero points are packed the same way along the
outputs. [-8, -7, -6, -5, 0, 1, 2, 7] becomes 0xFA983210. Source: compressed_tensors/compressors of the public package, which is the tests' oracle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from app.compressed import config_path, config_text, format_of, parts, words
from app.errors import InputRefused
from app.layout import Folder
from app.limits import shown
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded, Quantized
from worker.formats.safetensors_writer import FolderWriter, SafetensorsReader
from worker.kernels import native
from worker.kernels.bits import pack_bits, unpack_bits
from worker.kernels.uniform import dense
from worker.plan import TensorPlan

_PART = 1 << 20


def pack_rows(codes: torch.Tensor, num_bits: int) -> torch.Tensor:
    """int8 codes [O, I], signed, to int32 [O, words(I, num_bits)]."""
    if codes.shape[1] % 32 == 0 and codes.numel() and native.available():
        return torch.from_numpy(native.pack(codes.numpy().view(np.uint8).reshape(-1), num_bits, 1 << (num_bits - 1))).view(torch.int32).reshape(codes.shape[0], -1)
    out = torch.empty(codes.shape[0], words(codes.shape[1], num_bits), dtype=torch.int32)
    step = max(1, _PART // max(1, codes.shape[1]))
    for i in range(0, codes.shape[0], step):
        biased = (codes[i : i + step].numpy().view(np.uint8) + np.uint8(1 << (num_bits - 1))).astype(np.uint8)
        biased &= np.uint8((1 << num_bits) - 1)
        padded = np.pad(biased, ((0, 0), (0, -biased.shape[1] % 32)))
        stream = np.ascontiguousarray(pack_bits(padded.reshape(-1), num_bits)).reshape(biased.shape[0], -1)
        out[i : i + step] = torch.from_numpy(stream.view("<i4")[:, : out.shape[1]].astype(np.int32))
    return out


def unpack_rows(packed: torch.Tensor, num_bits: int, inputs: int) -> torch.Tensor:
    """The inverse: int8 codes [O, inputs]."""
    if inputs % 32 == 0 and packed.shape[1] == words(inputs, num_bits) and native.available():
        data = packed.contiguous().view(torch.uint8).reshape(-1).numpy()
        return torch.from_numpy(native.unpack(data, num_bits, packed.shape[0] * inputs, 1 << (num_bits - 1)).view(np.int8)).reshape(packed.shape[0], inputs)
    out = torch.empty(packed.shape[0], inputs, dtype=torch.int8)
    step = max(1, _PART // max(1, inputs))
    whole = -(-inputs // 32) * num_bits
    for i in range(0, packed.shape[0], step):
        rows = np.zeros((min(step, packed.shape[0] - i), whole), "<i4")
        rows[:, : packed.shape[1]] = packed[i : i + step].numpy()
        codes = unpack_bits(rows.view(np.uint8).reshape(-1), num_bits, rows.shape[0] * whole * 32 // num_bits)
        codes = codes.reshape(rows.shape[0], -1)[:, :inputs] - np.uint8(1 << (num_bits - 1))
        out[i : i + step] = torch.from_numpy(codes.view(np.int8).copy())
    return out


class CompressedTensorsWriter(FolderWriter):
    """Quantized modules by their parts, everything else as it is; config.json gains `quantization_config`."""

    def __init__(self, out: Path, checkpoint: Checkpoint, plans: dict[str, TensorPlan]):
        self.plans = plans
        super().__init__(out, Folder(checkpoint, parts(checkpoint, plans)))

    def write(self, encoded: Encoded) -> int:
        name = encoded.spec.name
        if encoded.quantized is None:
            count = len(self.layout.parts[name])
            return self.put(name, [encoded.dense] * count) // count
        return self.put(name, _tensors(encoded.quantized))

    def finish(self) -> None:
        path = self.out / config_path(self.checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(config_text(self.checkpoint, self.plans))
        super().finish()


def _tensors(q: Quantized) -> Iterator[torch.Tensor]:
    """The parts of `app.compressed.entries`, in its order."""
    step = q.params
    scale = q.scale.reshape(1) if step.strategy == "tensor" else q.scale
    if format_of(step) != "pack-quantized":
        yield from (q.codes, scale)
        return
    yield pack_rows(q.codes, step.num_bits)
    yield scale
    yield torch.tensor(q.codes.shape, dtype=torch.int64)
    if not step.symmetric:
        yield q.zero_point.reshape(1) if step.strategy == "tensor" else pack_rows(q.zero_point.T.contiguous(), step.num_bits).T


class CompressedTensorsReader(SafetensorsReader):
    """A folder of compressed-tensors, with weights dequantized under their own names.

    Raises:
        InputRefused: the config does not say how the weights are stored.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        path = min(folder.rglob("config.json"), key=lambda p: len(p.parts))
        self.groups = _groups(path.read_bytes())

    def weights(self, module: str) -> dict:
        """The `weights` of the group that a module belongs to: by its name, else by its class."""
        named = [g for g in self.groups if module in g["targets"]] or [g for g in self.groups if "Linear" in g["targets"]]
        if not named:
            raise InputRefused("invalid-hf", f"config.json names no scheme for {shown(module)}")
        return named[0]["weights"]

    def parts(self, name: str) -> list[str]:
        suffixes = ("", "_packed", "_scale", "_shape", "_zero_point")
        return [name + s for s in suffixes if name + s in self.where]

    def stored_bytes(self, name: str) -> int:
        return sum(self.tensor(p).nbytes for p in self.parts(name))

    def read(self, name: str) -> torch.Tensor:
        parts = self.parts(name)
        if parts == [name]:
            return self.tensor(name)
        scale = self.tensor(f"{name}_scale")
        if f"{name}_packed" in parts:
            weights = self.weights(name.removesuffix(".weight"))
            outputs, inputs = self.tensor(f"{name}_shape").tolist()
            codes = unpack_rows(self.tensor(f"{name}_packed"), weights["num_bits"], inputs)
            zero = self._zero_point(name, weights["num_bits"], outputs)
        else:
            codes, zero = self.tensor(name), None
        scale2d = scale.reshape(1, 1) if scale.dim() == 1 else scale
        return dense(codes, scale2d, zero, -(-codes.shape[1] // scale2d.shape[1]), scale.dtype)

    def _zero_point(self, name: str, num_bits: int, outputs: int) -> torch.Tensor | None:
        if f"{name}_zero_point" not in self.where:
            return None
        packed = self.tensor(f"{name}_zero_point")
        return packed.reshape(1, 1) if packed.dim() == 1 else unpack_rows(packed.T.contiguous(), num_bits, outputs).T


def _groups(text: bytes) -> list[dict]:
    """`config_groups` of a config.json that a stranger may have written."""
    try:
        groups = list(json.loads(text)["quantization_config"]["config_groups"].values())
        sound = all(isinstance(g["targets"], list) and isinstance(g["weights"], dict) for g in groups)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InputRefused("invalid-hf", f"config.json does not describe compressed-tensors: {type(e).__name__}") from None
    if not sound:
        raise InputRefused("invalid-hf", "config.json has a group without targets or weights")
    return groups
