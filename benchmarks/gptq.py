"""GPTQ of matrices, 4 bits in groups of 128: seconds, and the error of the layer's output, beside llm-compressor's own function on the same weights and second moments.

    .venv/bin/python -m benchmarks.gptq [--runs 5] [--searches absmax mse] [--peers-python PYTHON]

`2048 x 5632` has weights N(0, 0.02) whose every 64th input is ten times heavier; `MiniLM` its 36 matrices, one after another. Inputs are random and go together as those of a layer do: 4,096 tokens
through a matrix of half as many dimensions, and some noise. All of it counts but the moments: factor, scales, rounding. `absmax` has the scales that llm-compressor has by default, `mse` is what
`w4a16` with `algorithm: gptq` does. `--peers-python` is an environment with llmcompressor; nothing is installed here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.row import measured

GROUP, DAMPING = 128, 0.01
SHAPES = ("2048 x 5632", "MiniLM")


def layers(folder: str, shape: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights [O, I] and second moments [I, I]; made once, kept in `folder`."""
    path = Path(folder, f"{shape}.pt")
    if not path.exists():
        torch.save(_made(shape), path)
    return torch.load(path)


def _made(shape: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator, grams = torch.Generator().manual_seed(0), {}
    if shape == "MiniLM":
        from benchmarks.lossless import weights

        found = [w for w in weights() if w.dim() == 2 and len(w) < 10_000 and w.shape[0] % 384 == w.shape[1] % 384 == 0]
    else:
        found = [torch.randn(2048, 5632, generator=generator) * 0.02]
        found[0][:, ::64] *= 10
    for w in found:
        inputs = w.shape[1]
        if inputs not in grams:
            x = torch.randn(4096, inputs // 2, generator=generator) @ torch.randn(inputs // 2, inputs, generator=generator) + torch.randn(4096, inputs, generator=generator)
            grams[inputs] = x.T @ x / 4096
    return [(w, grams[w.shape[1]]) for w in found]


def _told(found: list, work, runs: int) -> dict:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        out = [work(w, gram) for w, gram in found]
        seconds.append(time.perf_counter() - start)
    errors = [float((((w - q) @ gram) * (w - q)).sum() / ((w @ gram) * w).sum()) for (w, gram), q in zip(found, out, strict=True)]
    return {"median": statistics.median(seconds), "error": sum(errors) / len(errors)}


def ours(cache: str, shape: str, search: str, runs: int) -> dict:
    from app.recipe import Quantize
    from app.strict import validate
    from worker.kernels import compensation
    from worker.reconstruction.grids import Columns
    from worker.schemes import scheme_of

    step = validate(Quantize, {"method": "quantize", "num_bits": 4, "group_size": GROUP, "scale_search": search})

    def work(w: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
        upper, _ = compensation.factor(gram, DAMPING)
        return compensation.solve(w, upper, Columns(scheme_of(step, w), step, w.shape[1]), weight=gram.diagonal()).values

    return _told(layers(cache, shape), work, runs)


def llm_compressor(cache: str, shape: str, runs: int) -> dict:
    """`quantize_weight` as its modifier calls it, with the scales of its minmax observer."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP)

    def work(w: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
        scale = w.unflatten(1, (-1, GROUP)).abs().amax(-1) / 7.5
        return quantize_weight(w.clone()[None], gram.clone()[None], scale[None], torch.zeros_like(scale, dtype=torch.int8)[None], None, args, 128, DAMPING)[0][0]

    return _told(layers(cache, shape), work, runs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--searches", nargs="+", choices=("absmax", "mse"), default=("absmax", "mse"))
    parser.add_argument("--peers-python", default=sys.executable)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        print(f"{'layers':14}{'':28}{'seconds':>9}{'error':>11}")
        for shape in args.shapes:
            layers(d, shape)
            rows = {f"ours, {search}": ("benchmarks.gptq:ours", {"search": search}, sys.executable) for search in args.searches}
            if peers.missing("llmcompressor", args.peers_python):
                print("llmcompressor is not installed there (--peers-python): not run")
            else:
                rows["llm-compressor"] = "benchmarks.gptq:llm_compressor", {}, args.peers_python
            for name, (work, more, python) in rows.items():
                found = measured(work, Path(d), python=python, cache=d, shape=shape, runs=args.runs, **more)
                print(f"{shape:14}{name:28}{found['median']:9.3f}{found['error']:11.6f}", flush=True)


if __name__ == "__main__":
    main()
