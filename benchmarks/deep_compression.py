"""LeNet-300-100 by the preset `deep-compression`, and smaller still: bytes of the packed file, container and all, and errors on MNIST's test images.

    .venv/bin/python -m benchmarks.deep_compression [--data ../shared/data] [--seeds 3] [--kept 0.05:4 0.035:3]

A row for each seed and each KEPT:BITS, the share of weights that stays and the bits of a code; the preset has 0.05:4. What is compressed is a `.pt2`, calibrated
and trained on the training images alone, 2,000 of which are held out to stop by. The test images are opened afterwards, to count errors.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from app.job_spec import PRESETS
from examples.mlp_pt2 import from_weights
from worker.formats.packed import open_packed


def recipe(kept: float, bits: int) -> dict:
    """The preset with another sparsity and width."""
    made = copy.deepcopy(PRESETS["deep-compression"])
    prune, quantize, _ = made["steps"]
    prune["sparsity"], quantize["num_bits"] = round(1 - kept, 6), bits
    return made


def compressed(folder: Path, out: Path, kept: float, bits: int, seed: int) -> tuple[Path, float]:
    """The packed file, and the seconds that it took, imports and quality included."""
    (steps := Path(f"{out}.json")).write_text(json.dumps(recipe(kept, bits)))
    command = [sys.executable, "-m", "worker", folder / "mlp.pt2", out, "--recipe", steps, "--format", "packed", "--seed", str(seed)]
    start = time.monotonic()
    subprocess.run([*command, "--calibration", folder / "calibration.npz", "--labels", folder / "labels.npy"], check=True)
    return out / "model.packed.safetensors", time.monotonic() - start


def errors(weights: Path, tensors: dict[str, torch.Tensor], mnist: Path) -> int:
    """Test images of which the network says another digit."""
    module = from_weights(weights)
    module.load_state_dict(tensors)
    with np.load(mnist) as z, torch.no_grad():
        x = torch.from_numpy(z["x_test"].reshape(len(z["x_test"]), -1).astype(np.float32) / 255)
        return int((module(x).argmax(1).numpy() != z["y_test"]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Deep compression of LeNet-300-100.")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", nargs="+", default=["0.05:4"], metavar="KEPT:BITS")
    args = parser.parse_args()
    weights, mnist = args.data / "lenet_300_100.safetensors", args.data / "mnist.npz"
    original = weights.stat().st_size
    print(f"{'kept':>6} {'bits':>4} {'seed':>4} {'bytes':>9} {'ratio':>7} {'errors':>6} {'seconds':>7}")
    print(f"{1:6.3f} {32:4} {'':>4} {original:9,} {1:7.1f} {errors(weights, load_file(weights), mnist):6}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "lenet")
        subprocess.run([sys.executable, "examples/mlp_pt2.py", folder, "--weights", weights, "--mnist", mnist], check=True, stdout=subprocess.DEVNULL)
        for kept, bits in (part.split(":") for part in args.kept):
            for seed in range(args.seeds):
                file, seconds = compressed(folder, Path(work, f"{kept}-{bits}-{seed}"), float(kept), int(bits), seed)
                with open_packed(file) as packed:
                    tensors = {name: packed.read(name) for name in packed.names}
                size = file.stat().st_size
                print(f"{float(kept):6.3f} {bits:>4} {seed:4} {size:9,} {original / size:7.1f} {errors(weights, tensors, mnist):6} {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
