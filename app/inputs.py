"""What can be said about a job and its input before any work starts."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.errors import InputNotUsable, InvalidJobSpec, NotFound
from app.formats import header_bytes_needed, parse_safetensors_header
from app.models import Artifact
from app.owned import find
from app.job_spec import JobSpec, parse_job
from app.recipe import check_matched
from app.storage import Storage


def find_input(s: Session, body: Any, owner: str, lock: bool = False) -> Artifact:
    """The artifact that a job's body names. What else is wrong with the body is said first.

    Raises:
        NotFound: unknown, or somebody else's. InvalidJobSpec and others: see `parse_job`.
    """
    found = find(s, Artifact, body.get("input") if isinstance(body, dict) else None, owner, lock)
    if found is None:
        parse_job(body)
        raise NotFound("there is no such artifact", pointer="/input")
    return found


def has_config(source: Artifact) -> bool:
    """Whether it brings a config.json; an archive may."""
    return source.format in ("zip", "tar") or any(f.path == "config.json" for f in source.files)


def check_input(source: Artifact, spec: JobSpec, storage: Storage) -> None:
    """Hold the recipe against the input.

    Raises:
        InputNotUsable: it is no model. InvalidJobSpec: restore of what was never compressed. NoTensorMatched.
    """
    if source.kind != "model" or source.format == "file":
        what = f"{source.kind} ({source.format})"
        raise InputNotUsable(f"artifact {source.id} is {what}, not a model; a file that goes beside weights is composed with them first", pointer="/input")
    if spec.recipe.kind == "restore":
        if len(source.files) == 1 and source.format in ("safetensors", "torch"):
            raise InvalidJobSpec(f"restore takes a packed or compressed-tensors artifact; this one is {source.format}", pointer="/input")
    elif source.format == "safetensors":
        check_matched(spec.recipe, tensor_names(source, storage))


def tensor_names(source: Artifact, storage: Storage) -> set[str]:
    """The names in the headers of all its safetensors files."""
    names: set[str] = set()
    for file in source.files:
        if file.path.lower().endswith(".safetensors"):
            head = storage.read(file.sha256, 0, min(8, file.size))
            head = storage.read(file.sha256, 0, min(header_bytes_needed(head), file.size))
            names |= parse_safetensors_header(head, file.size).entries.keys()
    return names
