"""What the headers of a model tell of it, without a byte of its tensors: names, shapes, dtypes, sizes of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as its header describes it.

    `dtype` is a dtype's name as safetensors has it. `file` is the path of the file that holds it. `nbytes` counts its elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


class Model(Protocol):
    """What an outline and an opened checkpoint have in common. `files` has every path; see `Outline` for the rest."""

    files: Mapping[str, Any]
    weight_files: tuple[str, ...]
    tensors: dict[str, TensorSpec]
    aliases: dict[str, str]
    config: dict | None
    metadata: dict[str, dict[str, str]]
