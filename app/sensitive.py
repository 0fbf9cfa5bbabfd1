"""Which files of a model, by their paths, its owner may not want to publish, and which metadata of safetensors is kept. What stands in files: `worker/private`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_SIDE_FILES = {
    r"training_args\.(bin|json)": "the arguments of a training run (host names, paths, keys)",
    r"(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin|pth)": "state of the optimizer, which can tell about the training data",
    r"rng_state(_\d+)?\.pth": "state of random generators",
    r"trainer_state\.json|all_results\.json": "the log of a training run",
    r"events\.out\.tfevents\..*": "TensorBoard's log of a training run",
    r"\.git|\.gitconfig|\.gitmodules": "a git repository",
    r"wandb|runs|\.ipynb_checkpoints|__pycache__|\.idea|\.vscode|\.cache": "working files of a tool",
    r"\.env(\..*)?|\.netrc|\.npmrc|\.pypirc|id_(rsa|ed25519|ecdsa|dsa)|.*\.(pem|key|p12|pfx)|credentials|\.bash_history": "keys or credentials",
    r"__MACOSX|\._.*|\.DS_Store|Thumbs\.db|desktop\.ini": "files of a desktop system",
}
_SIDE = [(re.compile(p), what) for p, what in _SIDE_FILES.items()]
_METADATA = re.compile(
    r"format|format_version|total_size|total_parameters|num_parameters|dtype|torch_dtype|license|version|library|library_name|framework|arch|architecture"
    r"|model_type|quant(ization)?(_\w{1,40})?|modelspec\.(sai_model_spec|architecture|implementation|resolution|prediction_type|license)"
)


def side_file(path: str) -> str | None:
    return next((what for part in PurePosixPath(path).parts for pattern, what in _SIDE if pattern.fullmatch(part)), None)


def strips(path: str) -> bool:
    """Whether a stripped result leaves this file out."""
    return side_file(path) is not None


def allowed_metadata(key: str) -> bool:
    """Whether a safetensors file's `__metadata__` may keep this key: what loaders read, and nothing that tells who made it where."""
    return _METADATA.fullmatch(key) is not None
