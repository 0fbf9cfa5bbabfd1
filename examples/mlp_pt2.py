"""A perceptron as a program of torch.export, with data to calibrate on: `python examples/mlp_pt2.py FOLDER`.

    FOLDER/mlp.pt2           the program: fc1, relu, fc2, relu, ..., with weights of a safetensors file under its own names
    FOLDER/calibration.npz   x: float32 [N, inputs], the images of MNIST's *training* set by 255
    FOLDER/labels.npy        their digits, int64 [N]

Weights and MNIST are those of LeNet-300-100 in ../shared/data where they are; `--weights` and `--mnist` name others. Without any, a small network is trained
here on points around ten random centres.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy, relu

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Perceptron(nn.Module):
    """Linear layers fc1, fc2, ..., relu between them."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.depth = len(sizes) - 1
        for i in range(self.depth):
            setattr(self, f"fc{i + 1}", nn.Linear(sizes[i], sizes[i + 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(1, self.depth):
            x = relu(getattr(self, f"fc{i}")(x))
        return getattr(self, f"fc{self.depth}")(x)


def from_weights(path: Path) -> Perceptron:
    """Its sizes are those of the matrices fc1.weight [out, in], fc2.weight, ..."""
    tensors = load_file(path)
    matrices = [tensors[f"fc{i}.weight"] for i in range(1, 1 + sum(n.endswith(".weight") for n in tensors))]
    module = Perceptron([matrices[0].shape[1], *(m.shape[0] for m in matrices)])
    module.load_state_dict(tensors)
    return module


def digits(path: Path, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Images of `train` or `test` by 255, float32 [N, 784], and what they show."""
    with np.load(path) as z:
        return z[f"x_{part}"].reshape(len(z[f"x_{part}"]), -1).astype(np.float32) / 255, z[f"y_{part}"].astype(np.int64)


def points(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in 64 dimensions around one of ten centres."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, count)
    return (rng.normal(size=(10, 64))[y] + rng.normal(scale=0.8, size=(count, 64))).astype(np.float32), y


def trained(x: np.ndarray, y: np.ndarray) -> Perceptron:
    torch.manual_seed(0)
    module = Perceptron([x.shape[1], 128, 64, 10])
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for order in torch.randperm(len(x)).repeat(3).split(128):
        optimizer.zero_grad()
        cross_entropy(module(torch.from_numpy(x)[order]), torch.from_numpy(y)[order]).backward()
        optimizer.step()
    return module


def save(module: nn.Module, path: Path, inputs: int) -> None:
    """As a program for any number of samples."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    program = torch.export.export(module.eval(), (torch.zeros(2, inputs),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a .pt2 and calibration data for it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=DATA / "lenet_300_100.safetensors")
    parser.add_argument("--mnist", type=Path, default=DATA / "mnist.npz")
    parser.add_argument("--samples", type=int, default=60_000, help="how many training samples to write, the first ones")
    args = parser.parse_args()
    if args.weights.exists() and args.mnist.exists():
        x, y = digits(args.mnist)
        module = from_weights(args.weights)
    else:
        x, y = points(min(args.samples, 6000))
        module = trained(x, y)
    x, y = x[: args.samples], y[: args.samples]
    args.folder.mkdir(parents=True, exist_ok=True)
    save(module, args.folder / "mlp.pt2", x.shape[1])
    np.savez_compressed(args.folder / "calibration.npz", x=x)
    np.save(args.folder / "labels.npy", y)
    print(f"{args.folder}: {sum(p.numel() for p in module.parameters())} parameters, {len(x)} samples of {x.shape[1]} numbers")


if __name__ == "__main__":
    main()
