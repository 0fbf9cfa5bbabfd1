"""Presets: recipes by name, each for input of one kind."""

from __future__ import annotations

_MATRICES = {"targets": ["re:.*"], "ignore": ["*embed*", "*wte*", "*wpe*", "shared.weight"]}  # heads too: training tells what they need
_TRAINED = {"batch_size": 256, "learning_rate": 0.06, "steps": 6000}
_CODED = {"batch_size": 256, "learning_rate": 0.007, "steps": 3000}

MODEL: dict[str, dict] = {
    "lossless": {"steps": [{"method": "lossless"}]},
    "int8": {"steps": [{"method": "quantize", "num_bits": 8, "strategy": "channel", "activations": "dynamic"}]},
    "w8a16": {"steps": [{"method": "quantize", "num_bits": 8, "strategy": "channel"}]},
    "w4a16": {"steps": [{"method": "quantize", "num_bits": 4, "strategy": "group", "group_size": 128, "scale_search": "mse"}]},
    "fp8": {"steps": [{"method": "quantize", "num_bits": 8, "type": "float", "strategy": "channel", "activations": "dynamic"}]},
    "prune-50": {"steps": [{"method": "prune", "sparsity": 0.5}]},
    "prune-2:4": {"steps": [{"method": "prune", "mask_structure": "2:4"}]},
    "auto": {"steps": [{"method": "auto"}]},
    "deep-compression": {
        "steps": [
            _MATRICES | {"method": "prune", "saliency": "fisher", "scope": "global", "sparsity": 0.95, "schedule": {"kind": "cubic", "steps": 100}, "recover": _TRAINED},
            _MATRICES | {"method": "quantize", "mapping": "gradient", "num_bits": 4, "strategy": "tensor", "recover": _CODED},
            {"method": "lossless"},
        ]
    },
}

IMAGES: dict[str, dict] = {
    "images-lossless": {"steps": [{"method": "image", "lossless": True}]},
    "images-high": {"steps": [{"method": "image", "target": {"ms_ssim": 0.99}}]},
    "images-web": {"steps": [{"method": "image", "target": {"ms_ssim": 0.97}}]},
    "images-small": {"steps": [{"method": "image", "target": {"ms_ssim": 0.95}}]},
}
DATASET: dict[str, dict] = {}

BY_KIND = {"model": MODEL, "images": IMAGES, "dataset": DATASET}
PRESETS: dict[str, dict] = MODEL | IMAGES | DATASET
"""Recipe by name."""


def kind_of_preset(name: str) -> str:
    """The kind of input that a preset is for."""
    return next(kind for kind, presets in BY_KIND.items() if name in presets)
