"""What is on this machine's disk: its kind, and of a model what its headers tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.formats import TAR, detect, header_bytes_needed, parse_safetensors_header, suffix
from app.limits import check_path
from app.made import INDEX, index_kind
from app.outline import Outline, outline
from app.presets import kind_of_preset
from app.recipe import kind_of
from app.steps import KINDS


def input_kind(source: Path, recipe: Any = None, preset: str | None = None) -> str:
    """The kind of a job's input: what its recipe or preset is for, if that is one kind alone, else what its files are; a model where nothing tells.

    Raises:
        InputRefused: its index is no index (`app.made`).
    """
    told = kind_of_preset(preset) if preset else kind_of(recipe)
    if told is not None:
        return told
    if source.is_dir() and (source / INDEX).is_file():
        return index_kind(source / INDEX)
    files = [p for p in source.rglob("*") if p.is_file()] if source.is_dir() else [source]
    kinds = {detect(p.name) for p in files}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(KINDS) else "model"


def has_config(source: Path) -> bool:
    """Whether it brings a config.json; an archive may."""
    return (source / "config.json").is_file() if source.is_dir() else suffix(source.name) in (".zip", *TAR)


def is_program(source: Path) -> bool:
    """Whether it is a program of torch.export."""
    return source.is_file() and suffix(source.name) == ".pt2"


def open_local(source: Path) -> tuple[Outline | None, Callable[[str, int, int], bytes]]:
    """A file or a folder: its outline (None where no header tells it) and a function that reads bytes `begin` to `end` of a path.

    Raises:
        InputRefused: what a worker would refuse it for, as far as headers show it.
    """
    paths = {p.relative_to(source).as_posix(): p for p in sorted(source.rglob("*")) if p.is_file()} if source.is_dir() else {source.name: source}

    def read(path: str, begin: int, end: int) -> bytes:
        with paths[path].open("rb") as f:
            f.seek(begin)
            return f.read(end - begin)

    sizes, headers = {}, {}
    for path, p in paths.items():
        check_path(path)
        sizes[path] = p.stat().st_size
        first = read(path, 0, 8)
        if path.lower().endswith(".safetensors"):
            headers[path] = parse_safetensors_header(read(path, 0, header_bytes_needed(first)), sizes[path])
    return outline(sizes, headers, lambda path, most: read(path, 0, most)), read
