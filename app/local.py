"""A model on this machine's disk, told by its headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.formats import TAR, header_bytes_needed, parse_safetensors_header, suffix
from app.limits import check_path
from app.outline import Outline, outline


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
