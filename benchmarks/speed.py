"""Seconds from file to file of the data-free path, beside other quantizers and the machine's own limit, the copy of the file; and of what is done in memory.

    .venv/bin/python -m benchmarks.speed [--bytes 1000000000] [--runs 5]

The file is Llama-shaped bf16 (`benchmarks.checkpoints`), warm in the page cache, nothing is synced; a copy reads and writes all of it, without a reflink. Each run is a process of
its own whose imports do not count, medians are told, and the ratio to the copy of the same run. `memory` is anonymous, beyond that of the imports. Ours check that all is finite,
write a report with the errors of every tensor, and read the result back; the others do not. `pip install -e .[bench]` brings optimum-quanto and ggml (in xllamacpp).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.checkpoints import llama
from benchmarks.lossless import median
from benchmarks.row import measured
from worker import pipeline
from worker.kernels import native, scale_search, select
from worker.kernels.uniform import Levels

_PIECE = 4 << 20
RECIPES = {  # name -> step, format
    "int8 per channel": ({"num_bits": 8}, "compressed-tensors"),
    "int4, group 128": ({"num_bits": 4, "group_size": 128}, "compressed-tensors"),
    "int4, group 128, scale search": ({"num_bits": 4, "group_size": 128, "scale_search": "mse"}, "compressed-tensors"),
    "fp8 per channel": ({"num_bits": 8, "type": "float"}, "compressed-tensors"),
    "50 % pruned": (None, "packed"),
    "lossless": ("lossless", "packed"),
}
PEERS = {
    "optimum-quanto, int8": ("optimum.quanto", "benchmarks.peers:quanto_file", {"num_bits": 8}),
    "ggml, Q8_0": ("xllamacpp", "benchmarks.peers:ggml_file", {"kind": "Q8_0"}),
    "optimum-quanto, int4": ("optimum.quanto", "benchmarks.peers:quanto_file", {"num_bits": 4}),
    "ggml, Q4_0": ("xllamacpp", "benchmarks.peers:ggml_file", {"kind": "Q4_0"}),
    "ggml, Q4_K": ("xllamacpp", "benchmarks.peers:ggml_file", {"kind": "Q4_K"}),
}
MEMORY = ("int8 per channel", "int4, group 128", "int4 with scale search", "codes back to values", "lowest half, exact, all together", "lowest half, exact, per row")


def copy(inp: str, out: str) -> None:
    """Read and write every byte, in pieces."""
    with open(inp, "rb", buffering=0) as source, open(out, "wb", buffering=0) as target:
        piece = bytearray(_PIECE)
        while n := source.readinto(piece):
            target.write(memoryview(piece)[:n])


def compress(inp: str, out: str, step: dict | str | None, output: str) -> None:
    method = {"method": "lossless"} if step == "lossless" else {"method": "prune", "sparsity": 0.5} if step is None else {"method": "quantize"} | step
    spec = {"recipe": {"steps": [method]}, "output": {"format": output}, "sanitize": "report", "seed": 0, "gates": {}}
    pipeline.run(Path(inp), Path(out), spec, lambda event: None)


def in_memory(runs: int) -> dict:
    """Seconds of kernels alone on 134 M weights in bf16, all threads; and of torch.kthvalue, on 33 M of them in float32."""
    w = (torch.randn(16384, 8192, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    levels = Levels(4)
    codes, scale = native.quantize(w, levels, 128, None, torch.float16)
    part = w[:4096].float().abs().reshape(-1)
    work = {
        MEMORY[0]: lambda: native.quantize(w, Levels(8), w.shape[1], None, torch.float16),
        MEMORY[1]: lambda: native.quantize(w, levels, 128, None, torch.float16),
        MEMORY[2]: lambda: native.quantize(w, levels, 128, scale_search.multipliers(4), torch.float16),
        MEMORY[3]: lambda: native.dequantize(codes, scale, None, 128, torch.bfloat16, False),
        MEMORY[4]: lambda: select.threshold(lambda: [w], w.numel() // 2, torch.float32),
        MEMORY[5]: lambda: native.lowest_per_row(w, w.shape[1] // 2),
        "kthvalue": lambda: part.kthvalue(part.numel() // 2),
    }
    return {name: median(f, runs) for name, f in work.items()} | {"weights": w.numel(), "kth_weights": part.numel()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        root = Path(d)
        source = llama(root / "model", args.bytes)
        size = (source / "model.safetensors").stat().st_size
        print(f"{size:,} bytes, {torch.get_num_threads()} threads, {native.LEVELS[native.use(-1)] if native.available() else 'no native kernels'}, {os.cpu_count()} cores")
        print(f"{'from file to file':40}{'seconds':>9}{'of a copy':>11}{'memory MB':>11}{'bytes':>15}", flush=True)
        copied = 0.0
        for name, work, arguments, missing in _rows(source):
            if missing:
                print(f"{name:40}{missing} is not installed (pip install -e .[bench]): not run", flush=True)
                continue
            took = []
            for i in range(args.runs):
                (out := root / f"out-{i}").mkdir()
                took.append(measured(work, root, **{k: v if v is not ... else (out / "file" if work.endswith("copy") else out) for k, v in arguments.items()}))
                nbytes = sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and p.name != "report.json")
                for p in sorted(out.rglob("*"), reverse=True):
                    p.rmdir() if p.is_dir() else p.unlink()
                out.rmdir()
            seconds = statistics.median(t["seconds"] for t in took)
            copied = copied or seconds
            print(f"{name:40}{seconds:9.2f}{seconds / copied:11.2f}{max(t['memory'] for t in took) / 1e6:11.0f}{nbytes:15,}", flush=True)
        if native.available():
            found = measured("benchmarks.speed:in_memory", root, runs=args.runs)
            print(f"\n{'in memory, 134 M weights in bf16':40}{'seconds':>9}{'GB/s':>11}")
            for name in MEMORY:
                print(f"{name:40}{found[name]:9.3f}{2 * found['weights'] / found[name] / 1e9:11.1f}")
            one = found[MEMORY[4]] / found["weights"], found["kthvalue"] / found["kth_weights"]
            print(f"{'torch.kthvalue, per weight':40}{one[1] / one[0]:9.1f} times as long as the threshold here")
        print(json.dumps({"bytes": size, "copy": copied}))


def _rows(source: Path):
    """(name, work, arguments, what is missing); `...` stands for where the result goes."""
    file = source / "model.safetensors"
    yield "copy", "benchmarks.speed:copy", {"inp": file, "out": ...}, None
    for name, (step, output) in RECIPES.items():
        yield name, "benchmarks.speed:compress", {"inp": source, "out": ..., "step": step, "output": output}, None
    for name, (module, work, arguments) in PEERS.items():
        yield name, work, {"source": file, "out": ...} | arguments, module if peers.missing(module) else None


if __name__ == "__main__":
    main()
