"""Weight error on a checkpoint with heavy channels: two-level scales beside ggml's K-quants of as many stored bits, both on the same file.

    .venv/bin/python -m benchmarks.outliers [--bytes 100000000] [--bits 2 3 4 5 6]

The file is Llama-shaped, N(0, 0.02) in bf16 with every 64th input channel ten times heavier (`benchmarks.checkpoints`); `--bytes 1000000000` is what the
published figures are of. ggml comes with the wheel `xllamacpp`; where that is not installed its rows are not run, and the table says so. Errors are
|w - w'| / |w| of each matrix of a layer, their mean weighed by elements; seconds are CPU seconds of quantization (ours with reading, writing and the report).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import peers
from benchmarks.checkpoints import Widths, llama
from benchmarks.row import measured

_SMALL = Widths(1024, 2816, 8000)  # below 500 MB, where the default's embeddings would be most of the file
_TWO_LEVEL = {"method": "quantize", "scale_search": "mse"}
RECIPES = {  # the layout of the K-quant of as many bits
    2: ("Q2_K", {"group_size": 16, "scale_bits": 4, "symmetric": False}),
    3: ("Q3_K", {"group_size": 16, "scale_bits": 6}),
    4: ("Q4_K", {"group_size": 32, "scale_bits": 6, "symmetric": False}),
    5: ("Q5_K", {"group_size": 32, "scale_bits": 6, "symmetric": False}),
    6: ("Q6_K", {"group_size": 16, "scale_bits": 8}),
}


def rows(num_bits: int):
    """Name -> the step."""
    kind, fields = RECIPES[num_bits]
    two = _TWO_LEVEL | {"num_bits": num_bits}
    yield f"uniform {num_bits} bits, group 128, mse", two | {"group_size": 128}
    yield f"uniform {num_bits} bits, as {kind}, absmax", two | fields | {"scale_search": "absmax"}
    yield f"uniform {num_bits} bits, as {kind}, mse", two | fields


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=100_000_000)
    parser.add_argument("--bits", type=int, nargs="+", default=list(RECIPES), choices=RECIPES)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        root = Path(d)
        source = llama(root / "model", args.bytes, widths=Widths() if args.bytes >= 500_000_000 else _SMALL)
        print(f"{(source / 'model.safetensors').stat().st_size:,} bytes\n{'row':40}{'bits/weight':>12}{'error':>10}{'seconds':>10}", flush=True)

        def show(name: str, took: dict) -> None:
            print(f"{name:40}{took['bits']:12.4f}{took['relative_error']:10.5f}{took['cpu']:10.1f}", flush=True)

        for num_bits in args.bits:
            for number, (name, step) in enumerate(rows(num_bits)):
                (out := root / f"{num_bits}-{number}").mkdir()
                show(name, measured("benchmarks.ours:compress", root, inp=source, out=out, recipe={"steps": [step]}, beside={}))
            if peers.missing("xllamacpp"):
                print(f"ggml {RECIPES[num_bits][0]}: xllamacpp is not installed (pip install -e .[bench]): not run", flush=True)
            else:
                show(f"ggml {RECIPES[num_bits][0]}", measured("benchmarks.peers:ggml", root, source=source / "model.safetensors", kind=RECIPES[num_bits][0]))


if __name__ == "__main__":
    main()
