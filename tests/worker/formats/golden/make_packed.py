"""Makes golden packed files anew: `python tests/worker/formats/golden/make_packed.py [files] [tensors] [codebooks] [grids]`. Only for what the format gains: old
files stay as they were written, so that it shows when they are no longer read.

expected.json has the SHA-256 of every original tensor (its bytes, row-major) and file, taken before anything was packed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.recipe import Quantize
from worker.encoded import Codebook, Encoded, Factors, Grid, Quantized
from worker.formats import open_checkpoint
from worker.formats.packed import PackedWriter, pack_files
from worker.kernels.uniform import dequantize
from worker.formats.packed_parts import tensor_bytes

HERE = Path(__file__).parent


def sha256(data) -> str:
    return hashlib.sha256(data).hexdigest()


def weights() -> dict[str, torch.Tensor]:
    """Something for every codec and coding."""
    torch.manual_seed(2026)
    w = torch.randn(40, 36).mul(0.02)
    narrow = torch.rand(3000).mul(3).add(1)
    narrow[5], narrow[999] = 3e30, float("nan")
    return {
        "bf16": torch.randn(48, 32).mul(0.02).bfloat16(),
        "fp16": w[:20].half(),
        "fp32.narrow": torch.rand(900).add(1).bfloat16().float(),
        "fp32.sparse": torch.where(w.abs() > 0.02, w, 0),
        "bf16.escapes": narrow.bfloat16(),
        "bf16.gaps.signed": (torch.randn(4000) * (torch.rand(4000) > 0.95)).bfloat16(),
        "fp64": w[0].double(),
        "noise": torch.randint(0, 256, (100,), dtype=torch.uint8),
        "constant": torch.full((50, 2), 7.5),
        "position_ids": torch.arange(512)[None],
        "scalar": torch.tensor(-0.0),
        "empty": torch.zeros(0, 4),
        "flags": torch.arange(33) % 3 == 0,
    }


def quantized(x: torch.Tensor, num_bits: int, group_size: int, symmetric: bool) -> Quantized:
    groups, high = -(-x.shape[1] // group_size), (1 << (num_bits - 1)) - 1
    scale = torch.rand(x.shape[0], groups).mul(0.01).add(0.001).half()
    zero = None if symmetric else torch.randint(-2, 2, scale.shape, dtype=torch.int8)
    codes = (torch.randn(x.shape) * high / 3).round().clamp(-high - 1, high).to(torch.int8)
    params = Quantize(method="quantize", num_bits=num_bits, symmetric=symmetric, strategy="group", group_size=group_size)
    return Quantized(codes, scale, zero, group_size, params)


def make_files(work: Path) -> dict[str, str]:
    (work / "in").mkdir()
    save_file(weights(), work / "in" / "model.safetensors", metadata={"format": "pt"})
    (work / "in" / "config.json").write_text(json.dumps({"model_type": "golden", "layers": list(range(50))}))
    checkpoint = open_checkpoint(work / "in", work)
    pack_files(checkpoint, HERE / "files.packed.safetensors", lambda name: name != "fp16", lambda nbytes: None)
    return {rel: sha256(p.read_bytes()) for rel, p in checkpoint.files.items()}


def make_tensors(work: Path) -> dict[str, str]:
    (work / "in").mkdir()
    torch.manual_seed(7)
    w = torch.randn(24, 20)
    state = {name: w.clone() for name in ("int4.short", "int3.coded", "int8.asymmetric", "conv1d")} | {"plain": weights()["bf16"]}
    torch.save(state | {"tied": state["plain"]}, work / "in" / "model.pt")
    checkpoint = open_checkpoint(work / "in", work)
    writer = PackedWriter(HERE / "tensors.packed.safetensors", checkpoint)
    codes = {"int4.short": (4, 16, True), "int3.coded": (3, 20, True), "int8.asymmetric": (8, 5, False)}
    expected = {}
    for name, spec in checkpoint.tensors.items():
        q, dense = None, checkpoint.read(name)
        if name in codes:
            q = quantized(w, *codes[name])
            dense = dequantize(q.codes, q.scale, q.zero_point, q.group_size)
        if name == "conv1d":
            fp8 = w.T.contiguous().to(torch.float8_e4m3fn)
            params = Quantize(method="quantize", num_bits=8, type="float", strategy="tensor")
            q = Quantized(fp8, torch.tensor([[0.5]]), None, 24, params, transposed=True)
            dense = fp8.float().T.contiguous() * 0.5
        writer.write(Encoded(spec, "quantized" if q else "encoded", dense, quantized=q, lossless=name != "int4.short"))
        expected[name] = sha256(tensor_bytes(dense))
    writer.finish()
    return expected | {alias: expected[name] for alias, name in checkpoint.aliases.items()}


def codebook(codes: torch.Tensor, levels: torch.Tensor, group_size: int, num_bits: int, transposed: bool = False) -> Codebook:
    return Codebook(codes.to(torch.uint8), levels.half(), group_size, num_bits, Quantize(method="quantize", num_bits=num_bits), transposed)


def codebooks() -> dict[str, Codebook]:
    """Codes in contexts and by their frequency, of a tensor, of rows and of groups."""
    pictures = torch.randn(30, 12, 12)
    pictures = sum(pictures.roll(by, axis) for by in (-1, 0, 1) for axis in (1, 2)).reshape(30, 144)
    pictures = torch.where(pictures.abs() > 4, (pictures.div(2).round() + 8).clamp(0, 15), 8)
    rows = torch.where(torch.rand(20, 50) < 0.2, torch.randint(0, 6, (20, 50)), 3)
    frequent = torch.multinomial(torch.tensor([*range(3, 11), *range(10, 2, -1)]).float(), 130 * 128, replacement=True).reshape(130, 128)
    levels = torch.randn(1, 16)
    levels[0, 8] = 0
    return {
        "pictures": codebook(pictures, levels, 144, 4),
        "rows.transposed": codebook(rows, torch.randn(20, 6), 50, 3, transposed=True),
        "groups": codebook(torch.randint(0, 4, (9, 33)), torch.randn(9 * 5, 4), 8, 2),
        "frequent": codebook(frequent, torch.randn(130, 16), 128, 4),
    }


def make_codebooks(work: Path) -> dict[str, str]:
    (work / "in").mkdir()
    torch.manual_seed(11)
    made = codebooks()
    state = {name: (q.dequantize().T if q.transposed else q.dequantize()).contiguous() for name, q in made.items()}
    state |= {"pruned": torch.randn(40, 60) * (torch.rand(40, 60) < 0.1), "bias": torch.randn(60).bfloat16(), "empty": torch.zeros(3, 0), "ids": torch.arange(7)}
    torch.save(state, work / "in" / "model.pt")
    checkpoint = open_checkpoint(work / "in", work)
    writer = PackedWriter(HERE / "codebooks.packed.safetensors", checkpoint)
    for name, spec in checkpoint.tensors.items():
        writer.write(Encoded(spec, "quantized" if name in made else "encoded", checkpoint.read(name), quantized=made.get(name)))
    writer.finish()
    return {name: sha256(tensor_bytes(checkpoint.read(name))) for name in checkpoint.tensors}


def grids() -> dict[str, Grid]:
    """Scales and offsets of every kind, codes raw and coded, in the bundle and not."""

    def made(rows: int, columns: int, num_bits: int, size: int, bits: int | None, symmetric: bool, zero: bool = False, transposed: bool = False, table: bool = False) -> Grid:
        shape, codes = (rows, -(-columns // size)), torch.randint(0, 1 << num_bits, (rows, columns)).to(torch.uint8)

        def factor(signed: bool) -> Factors:
            if bits is None:
                return Factors(torch.rand(shape).add(0.1).half())
            integers = torch.randint(0, 1 << bits, shape)
            above = torch.rand(rows, -(-columns // 256)).add(0.1).half()
            return Factors((integers - (1 << bits - 1)).to(torch.int8) if signed else integers.to(torch.uint8), above, 256 // size, bits, -7)

        fields = {"symmetric": symmetric, "zero_point": "integer" if symmetric else "float", "scale_bits": bits, "strategy": "group", "group_size": size}
        params = Quantize(method="quantize", num_bits=num_bits, **fields)
        return Grid(codes, factor(symmetric), None if symmetric else factor(False), size, params, torch.randn(1 << num_bits) if table else None, zero, transposed)

    return {
        "two.level": made(7, 300, 4, 32, 6, False), "zero": made(9, 70, 3, 16, 4, False, zero=True), "signed.transposed": made(5, 260, 2, 64, 8, True, transposed=True),
        "floats.zero": made(6, 45, 5, 10, None, False, zero=True), "own": made(40, 512, 4, 128, 5, False), "table": made(11, 90, 4, 30, None, True, table=True),
    }  # fmt: skip


def make_grids(work: Path) -> dict[str, str]:
    (work / "in").mkdir()
    torch.manual_seed(13)
    made = grids()
    torch.save({name: (q.dequantize().T if q.transposed else q.dequantize()).contiguous() for name, q in made.items()}, work / "in" / "model.pt")
    checkpoint = open_checkpoint(work / "in", work)
    writer = PackedWriter(HERE / "grids.packed.safetensors", checkpoint)
    for name, spec in checkpoint.tensors.items():
        writer.write(Encoded(spec, "quantized", checkpoint.read(name), quantized=made[name], lossless=name.startswith("zero")))
    writer.finish()
    return {name: sha256(tensor_bytes(checkpoint.read(name))) for name in checkpoint.tensors}


if __name__ == "__main__":
    expected = json.loads((HERE / "expected.json").read_text())
    for kind in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as work:
            expected[kind] = {"files": make_files, "tensors": make_tensors, "codebooks": make_codebooks, "grids": make_grids}[kind](Path(work))
        if kind == "files":
            expected["weights"] = {name: sha256(tensor_bytes(t)) for name, t in weights().items()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
