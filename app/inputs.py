"""What can be said about a job and its input before any work starts."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app import gates
from app.budget import bounds
from app.errors import InputNotUsable, InputRefused, InvalidJobSpec, NotFound
from app.formats import DATA_KINDS, SafetensorsHeader, header_bytes_needed, parse_safetensors_header
from app.limits import Limits
from app.models import Artifact, ArtifactFile
from app.owned import find, owned
from app.job_spec import COMPANIONS, OUTPUTS, JobSpec, check_loss, parse_job, with_codec
from app.memory import OTHER, peak_memory, proof_wanted, run_bytes, unknown_peak
from app.outline import Outline, outline
from app.recipe import kind_of
from app.steps import KINDS
from app.storage import Storage
from app.task import task_of
from app.targets import Treatment
from app.width import treated


def find_input(s: Session, body: Any, owner: str, lock: bool = False) -> Artifact:
    """The artifact that a job's body names. What else is wrong with the body is said first.

    Raises:
        NotFound: unknown, or somebody else's. InvalidJobSpec and others: see `parse_job`.
    """
    found = find(s, Artifact, body.get("input") if isinstance(body, dict) else None, owner, lock)
    if found is None:
        kind = body.get("kind") if isinstance(body, dict) else None
        parse_job(body, kind=kind if kind in KINDS else kind_of(body.get("recipe")) or "model" if isinstance(body, dict) else "model")
        raise NotFound("there is no such artifact", pointer="/input")
    _sound(found, "/input")
    return found


def job_kind(source: Artifact) -> str:
    """The kind of a job on it. What no job takes is refused as no model (`check_input`)."""
    return source.kind if source.kind in KINDS else "model"


def _sound(artifact: Artifact, pointer: str) -> None:
    """Raises:
    InputNotUsable: it is under quarantine.
    """
    if artifact.quarantined:
        raise InputNotUsable(f"artifact {artifact.id} is under quarantine: {artifact.quarantined}; upload it once more", pointer=pointer)


def find_companions(s: Session, body: Any, owner: str, lock: bool = False) -> dict[str, Artifact]:
    """What a job's body names beside its input, by role.

    Raises:
        NotFound: unknown, or somebody else's. InputNotUsable: it is of another kind.
    """
    body = with_codec(body)
    found = {role: owned(s, Artifact, body[role], owner, f"/{role}", lock) for role in COMPANIONS if body.get(role) is not None}
    for role, artifact in found.items():
        _sound(artifact, f"/{role}")
        if role == "codec":
            if (artifact.kind, artifact.format) != ("images", "codec"):
                raise InputNotUsable(f"artifact {artifact.id} is {artifact.kind} ({artifact.format}), no codec that a job with train_codec has made", pointer="/codec")
            continue
        wanted = ("gradients",) if role == "gradients" else DATA_KINDS
        if artifact.kind not in wanted:
            what = f"artifact {artifact.id} is {artifact.kind} ({artifact.format})"
            raise InputNotUsable(f"{what}; {role} are uploaded with kind={wanted[0]}", pointer=f"/{role}")
    return found


def has_config(source: Artifact) -> bool:
    """Whether it brings a config.json; an archive may."""
    return source.format in ("zip", "tar") or any(f.path == "config.json" for f in source.files)


def check_input(source: Artifact, spec: JobSpec, storage: Storage) -> dict[str, Treatment] | None:
    """Hold the recipe against the input.

    Returns:
        what is to happen to every tensor; None where the tensors are known only once the file is parsed.

    Raises:
        InputNotUsable: it is no model. InvalidJobSpec: restore of what was never compressed; a gate that `app.gates.check` refuses, a loss that `check_loss` does. What `outline` and `treated` raise.
    """
    if source.kind != spec.kind or source.format == "file":
        what = f"{source.kind} ({source.format})"
        raise InputNotUsable(f"artifact {source.id} is {what}, not a model; a file that goes beside weights is composed with them first", pointer="/input")
    if spec.kind != "model":
        if spec.recipe.kind == "restore" and source.format != OUTPUTS[spec.kind][0]:
            raise InvalidJobSpec(f"restore takes what a job has made (format {OUTPUTS[spec.kind][0]}); this one is {source.format}", pointer="/input")
        if spec.recipe.kind != "restore" and source.format in OUTPUTS[spec.kind][:-1]:
            raise InvalidJobSpec("this is the result of a job already, which takes restore", pointer="/input")
        return None
    if spec.recipe.kind == "restore":
        if len(source.files) == 1 and source.format in ("safetensors", "torch", "pt2"):
            raise InvalidJobSpec(f"restore takes a packed or compressed-tensors artifact; this one is {source.format}", pointer="/input")
        return None
    model = outlined(source, storage)
    task = "program" if source.format == "pt2" else task_of(model.config) if model else None
    if spec.calibration and task:
        check_loss(spec.recipe, bool(spec.labels), task)
    if model and spec.calibration and task:
        gates.check(spec.gates.model_dump(), task, bool(spec.labels))
        gates.check(bounds(spec.budget and spec.budget.model_dump()), task, bool(spec.labels), "/budget")
    return treated(model, spec.recipe.stand_in, spec.output.format)[1] if model else None


def outlined(source: Artifact, storage: Storage) -> Outline | None:
    """What the headers of an artifact's safetensors files tell; None where that is not the model.

    Raises:
        InputRefused: what `_headers` and `outline` raise.
    """
    if source.format not in ("safetensors", "compressed-tensors"):
        return None
    by_path = {f.path: f for f in source.files}
    headers = _headers([f for p, f in by_path.items() if p.lower().endswith(".safetensors") or len(by_path) == 1], storage)

    def read(path: str, most: int) -> bytes:
        return storage.read(by_path[path].sha256, 0, min(most, by_path[path].size))

    return outline({path: f.size for path, f in by_path.items()}, headers, read)


def _headers(files: list[ArtifactFile], storage: Storage, limits: Limits = Limits()) -> dict[str, SafetensorsHeader]:
    """The headers by path. What several paths share is parsed once, and counts for each of them.

    Raises:
        InputRefused: limit-header, before any is parsed; limit-entries; what `parse_safetensors_header` raises.
    """
    distinct = {f.sha256: f for f in files}
    needed = {sha256: min(header_bytes_needed(storage.read(sha256, 0, min(8, f.size))), f.size) for sha256, f in distinct.items()}
    if (size := sum(needed[f.sha256] for f in files)) > limits.model_header_bytes:
        why = f"the headers of {len(files)} safetensors files have {size} bytes; at most {limits.model_header_bytes} are taken"
        raise InputRefused("limit-header", why, pointer="/input")
    parsed: dict[str, SafetensorsHeader] = {}
    tensors = 0
    for file in files:
        if file.sha256 not in parsed:
            parsed[file.sha256] = parse_safetensors_header(storage.read(file.sha256, 0, needed[file.sha256]), file.size)
        tensors += len(parsed[file.sha256].entries)
        if tensors > limits.model_tensors:
            raise InputRefused("limit-entries", f"the model's files have more than {limits.model_tensors} tensors, which is all that is taken", pointer="/input")
    return {f.path: parsed[f.sha256] for f in files}


def expected_peak(source: Artifact, spec: JobSpec, treatments: dict[str, Treatment] | None) -> int:
    """Bytes of memory that the job's child takes at most, as far as that is known."""
    if spec.kind != "model":
        return OTHER
    if treatments is None:
        return unknown_peak(source.size)
    return peak_memory(treatments.values(), proof=proof_wanted(spec.output.format, [f.path for f in source.files]), runs=run_bytes(spec))
