"""Makes the golden packed files anew: `python tests/worker/formats/golden/make_packed.py`. Only for a new version of the format.

expected.json has the SHA-256 of every original tensor (its bytes, row-major) and file, taken before anything was packed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.recipe import Quantize
from worker.encoded import Encoded, Quantized
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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        expected = {
            "weights": {name: sha256(tensor_bytes(t)) for name, t in weights().items()},
            "files": make_files(Path(a)),
            "tensors": make_tensors(Path(b)),
        }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
