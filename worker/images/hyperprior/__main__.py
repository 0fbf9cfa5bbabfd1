"""Trains an autoencoder with a hyperprior on a folder of images, without a service: torch, numpy and Pillow alone.

    python -m worker.images.hyperprior FOLDER OUT.pt [--held-out FOLDER] [--minutes 5] [--device cuda] [--measure mse | ms_ssim] [--lambda X] [--state STATE.pt]

Without --held-out every fifth image is held out. Prints the curve, and what held-out images take and look like at five qualities. OUT.pt has the network in half precision, of
what decodes the very weights; with --state all that training needs to go on is kept there, and it goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from worker.images.hyperprior.fixed import MIDDLE
from worker.images.hyperprior.network import Convolution, Network, Shape
from worker.images.hyperprior.training import AROUND, SHAPES, Course, State, begun, measured, train


def pictures(folder: Path) -> list[np.ndarray]:
    """[H, W, 3] uint8 of each file."""
    return [np.array(Image.open(p).convert("RGB")) for p in sorted(folder.iterdir()) if p.suffix in (".png", ".jpg", ".webp")]


def kept(state: State, path: Path | None) -> None:
    if path:
        torch.save({"network": state.network.state_dict(), "adam": state.descent.tensors(), "course": asdict(state.course)}, path)


def restored(path: Path | None, state: State, device: str) -> State:
    if path and path.exists():
        found = torch.load(path, map_location=device, weights_only=True)
        state.network.load_state_dict(found["network"])
        state.descent.take(found["adam"])
        state.course = Course(**found["course"])
    return state


@torch.no_grad()
def written(network: Network, path: Path) -> None:
    tensors = network.state_dict() | {f"{name}.weight": m.rounded() for name, m in network.named_modules() if isinstance(m, Convolution) and m.whole}
    torch.save({"shape": asdict(network.shape), "network": {k: v.half().cpu() for k, v in tensors.items()}}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--measure", choices=("mse", "ms_ssim"), default="ms_ssim")
    parser.add_argument("--lambda", type=float, dest="worth", default=16.0, help="0.013 is usual for mse")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = pictures(args.folder)
    held_out = pictures(args.held_out) if args.held_out else images[::5]
    learned = images if args.held_out else [x for i, x in enumerate(images) if i % 5]
    widths, latents, side = SHAPES[args.device]
    state = restored(args.state, begun(Shape(3, widths, latents, side), args.device, args.seed), args.device)
    print(f"{len(learned)} images of {sum(x.shape[0] * x.shape[1] for x in learned) / 1e6:.1f} million pixels, {len(held_out)} held out; {sum(p.numel() for p in state.network.parameters()):,} weights", flush=True)
    seen = len(state.course.curve)

    def tick(used: float) -> None:
        nonlocal seen
        for point in state.course.curve[seen:]:
            print(json.dumps(point), flush=True)
        seen = len(state.course.curve)

    train(state, learned, held_out[:4], 60 * args.minutes, args.worth, args.measure, args.seed, args.device, keep=lambda s: kept(s, args.state), tick=tick)
    kept(state, args.state)
    written(state.network, args.out)
    print(json.dumps({"seconds": round(state.course.seconds, 1), "steps": state.course.steps}))
    for quality in range(MIDDLE - AROUND, MIDDLE + AROUND + 1, AROUND // 2):
        print(json.dumps({"quality": quality, "held_out": measured(state.network, held_out, quality, args.device)}), flush=True)


if __name__ == "__main__":
    main()
