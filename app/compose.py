"""One folder of several uploads, by reference: no byte is copied."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy import Row, and_, func, select
from sqlalchemy.orm import Session, aliased

from app import audit, customer_keys
from app.config import settings
from app.errors import CustomerKeyNotApplicable, InputNotUsable, InputRefused, InvalidPath, NotFound
from app.limits import check_path, shown, unsafe_text
from app.models import Artifact, ArtifactFile
from app.retention import until
from app.strict import Id, Strict
from app.statement import artifact_digest

Kind = Literal["model", "gradients", "calibration", "images", "dataset"]
_WEIGHTS = ("safetensors", "packed", "torch")
_PARTS = {"images": ("codec", "images", "image")}
"""Formats of the files of a folder that is no model, by kind; the first that is there is the folder's."""
_AT_ONCE = 500  # ids of one query


def _safe(name: str) -> str:
    if why := unsafe_text(name):
        raise ValueError(f"{shown(name)} cannot be a name: {why}")
    return name


class Part(Strict):
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    artifact: Id


class Composition(Strict):
    """The JSON body of `POST /v1/artifacts`."""

    files: Annotated[list[Part], Field(min_length=1, max_length=10_000)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_safe)] = "model"
    kind: Kind = "model"


def check_paths(paths: list[str]) -> None:
    """Relative POSIX paths that are one file each, on every system.

    Raises:
        InvalidPath: with a pointer to the path.
    """
    seen: dict[str, str] = {}
    for i, path in enumerate(paths):
        pointer = f"/files/{i}/path"
        try:
            check_path(path)
        except InputRefused as e:
            raise InvalidPath(e.detail, pointer=pointer) from None
        if other := seen.get(folded := _folded(path)):
            raise InvalidPath(f"{path!r} and {other!r} are one file on some systems", pointer=pointer)
        seen[folded] = path
    for i, path in enumerate(paths):
        parts = _folded(path).split("/")
        for n in range(1, len(parts)):
            if other := seen.get("/".join(parts[:n])):
                raise InvalidPath(f"{other!r} is a file, so {path!r} cannot lie in it", pointer=f"/files/{i}/path")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def compose(s: Session, owner: str, asked: Composition, ident: str, customer_key: bytes | None = None) -> Artifact:
    """The folder as a new artifact with the id `ident`, in the caller's transaction. Its paths have been checked (`check_paths`) before that began.

    Raises:
        NotFound: no such artifact of this owner; InputNotUsable: it is under quarantine; InputRefused: a part that is not one file, an archive, or no weights at all. CustomerKeyRequired, WrongCustomerKey, CustomerKeyNotApplicable:
            the parts are not all stored under the key that came.
    """
    found = _single_files(s, owner, {p.artifact for p in asked.files})
    files, formats = [], set()
    for i, part in enumerate(asked.files):
        pointer = f"/files/{i}/artifact"
        if part.artifact not in found:
            raise NotFound("there is no such artifact", pointer=pointer)
        _, form, size, sha256, first, last, quarantined, under = found[part.artifact]
        if customer_key is not None and under is None:
            raise CustomerKeyNotApplicable(f"artifact {part.artifact} is not stored under a customer's key; a folder is, of all its parts, or of none", pointer=pointer)
        if first != last or form not in (*_PARTS.get(asked.kind, _WEIGHTS), "file"):
            what = f"artifact {part.artifact} is {form}" + " with several files" * (first != last)
            raise InputRefused("unsupported-format", f"{what}; a folder is made of single files", pointer=pointer)
        if quarantined:
            raise InputNotUsable(f"artifact {part.artifact} is under quarantine: {quarantined}; upload it once more", pointer=pointer)
        files.append({"path": part.path, "size": size, "sha256": sha256, "customer_key": under})
        formats.add(form)
    chosen = next((f for f in _PARTS.get(asked.kind, _WEIGHTS) if f in formats), None)
    if chosen is None:
        if asked.kind in _PARTS:
            raise InputRefused("invalid-image", "none of the files is an image", pointer="/files")
        raise InputRefused("no-tensors", "none of the files holds weights: a safetensors or PyTorch file is needed among them", pointer="/files")
    artifact = Artifact(id=ident, owner=owner, kind=asked.kind, format=chosen, name=asked.name, digest=artifact_digest(files), size=sum(f["size"] for f in files))
    artifact.files, artifact.signatures = [ArtifactFile(**f) for f in sorted(files, key=lambda f: f["path"])], []
    artifact.expires_at = until(settings().upload_artifact_ttl)
    customer_keys.ring(s, customer_key, artifact.files)
    s.add(artifact)
    s.flush()
    s.refresh(artifact, ["created_at", "expires_at"])
    audit.record(s, "artifact.create", owner, ident, size=artifact.size, digest=artifact.digest)
    return artifact


def _single_files(s: Session, owner: str, ids: set[str]) -> dict[str, Row]:
    """(id, format, size and sha256 of the first file, paths of the first and the last one, why it is under quarantine, its customer's key) of those of the artifacts that are there, by id.

    What a folder refers to stays until the folder does, so they are locked, in one order for everybody.
    """
    file = aliased(ArtifactFile)
    first, last = (select(end(file.path)).where(file.artifact_id == Artifact.id).correlate(Artifact).scalar_subquery() for end in (func.min, func.max))
    query = select(Artifact.id, Artifact.format, ArtifactFile.size, ArtifactFile.sha256, ArtifactFile.path, last, Artifact.quarantined, ArtifactFile.customer_key)
    query = query.join(ArtifactFile, and_(ArtifactFile.artifact_id == Artifact.id, ArtifactFile.path == first)).where(Artifact.owner == owner)
    query = query.order_by(Artifact.id).with_for_update(read=True, of=Artifact)
    wanted = sorted(ids)
    chunks = (wanted[i : i + _AT_ONCE] for i in range(0, len(wanted), _AT_ONCE))
    return {row.id: row for chunk in chunks for row in s.execute(query.where(Artifact.id.in_(chunk)))}
