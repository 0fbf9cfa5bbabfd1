"""A network that reads digits by the preset `deep-compression`, and smaller still: bytes of the packed file, container and all, and errors on MNIST's test images.

    .venv/bin/python -m benchmarks.deep_compression [--data ../shared/data] [--program lenet5.pt2] [--seeds 3] [--kept 0.05:4 0.035:3]

A row for each seed and each KEPT:BITS, the share of weights that stays and the bits of a code; the preset has 0.05:4. What is compressed is a `.pt2`:
LeNet-300-100, or a program of yours that takes images by 255, as [N, 784] or [N, 1, 28, 28]. It is calibrated and trained on the training images alone, 2,000
of which are held out to stop by. The test images are opened afterwards, to count errors; the original has as many bytes as its float32 tensors have.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from app.job_spec import PRESETS
from examples.mlp_pt2 import digits
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


class Scored:
    """A program of this machine's own making, with other tensors in their places."""

    def __init__(self, program: Path):
        loaded = torch.export.load(program)
        ((self.input, *self.shape),) = [(node.name, *node.meta["val"].shape[1:]) for node in loaded.graph.nodes if node.name in loaded.graph_signature.user_inputs]
        self.module = loaded.module()
        self.tensors = {name: t.detach().clone() for name, t in self.module.state_dict().items()}

    def errors(self, tensors: dict[str, torch.Tensor], mnist: Path) -> int:
        """Test images of which it says another digit."""
        self.module.load_state_dict({name: tensors.get(name, t) for name, t in self.tensors.items()})
        x, y = digits(mnist, "test")
        with torch.no_grad():
            said = [self.module(part).argmax(1) for part in torch.from_numpy(x).reshape(-1, *self.shape).split(500)]
        return int((torch.cat(said).numpy() != y).sum())


def prepared(program: Path | None, folder: Path, data: Path) -> Scored:
    """What is given to the tool: `mlp.pt2`, `calibration.npz` and `labels.npy`."""
    weights, mnist = data / "lenet_300_100.safetensors", data / "mnist.npz"
    subprocess.run([sys.executable, "examples/mlp_pt2.py", folder, "--weights", weights, "--mnist", mnist], check=True, stdout=subprocess.DEVNULL)
    if program is not None:
        shutil.copyfile(program, folder / "mlp.pt2")
    scored = Scored(folder / "mlp.pt2")
    if program is not None:
        x, _ = digits(mnist)
        np.savez_compressed(folder / "calibration.npz", **{scored.input: x.reshape(-1, *scored.shape)})
    return scored


def main() -> None:
    parser = argparse.ArgumentParser(description="Deep compression of a network that reads digits.")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--program", type=Path, help="a .pt2 in the place of LeNet-300-100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", nargs="+", default=["0.05:4"], metavar="KEPT:BITS")
    args = parser.parse_args()
    print(f"{'kept':>6} {'bits':>4} {'seed':>4} {'bytes':>9} {'ratio':>7} {'errors':>6} {'seconds':>7}")
    with tempfile.TemporaryDirectory() as work:
        scored = prepared(args.program, folder := Path(work, "lenet"), args.data)
        original = sum(t.nbytes for t in scored.tensors.values())
        print(f"{1:6.3f} {32:4} {'':>4} {original:9,} {1:7.1f} {scored.errors(scored.tensors, args.data / 'mnist.npz'):6}", flush=True)
        for kept, bits in (part.split(":") for part in args.kept):
            for seed in range(args.seeds):
                file, seconds = compressed(folder, Path(work, f"{kept}-{bits}-{seed}"), float(kept), int(bits), seed)
                with open_packed(file) as packed:
                    tensors = {name: packed.read(name) for name in packed.names}
                size, wrong = file.stat().st_size, scored.errors(tensors, args.data / "mnist.npz")
                print(f"{float(kept):6.3f} {bits:>4} {seed:4} {size:9,} {original / size:7.1f} {wrong:6} {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
