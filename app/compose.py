"""One folder of several uploads, by reference: no byte is copied."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from app.config import settings
from app.errors import InputRefused, InvalidPath
from app.limits import check_path
from app.models import Artifact, ArtifactFile
from app.owned import owned
from app.retention import until
from app.strict import Id, Strict
from app.statement import artifact_digest

Kind = Literal["model", "gradients", "calibration", "images", "dataset"]
_WEIGHTS = ("safetensors", "packed", "torch")


class Part(Strict):
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    artifact: Id


class Composition(Strict):
    """The JSON body of `POST /v1/artifacts`."""

    files: Annotated[list[Part], Field(min_length=1, max_length=10_000)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=255)] = "model"
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


def compose(s: Session, owner: str, asked: Composition, ident: str) -> Artifact:
    """The folder as a new artifact with the id `ident`, in the caller's transaction.

    Raises:
        InvalidPath; NotFound: no such artifact of this owner; InputRefused: a part that is not one file, an archive, or no weights at all.
    """
    check_paths([p.path for p in asked.files])
    files, formats = [], set()
    for i, part in enumerate(asked.files):
        found = owned(s, Artifact, part.artifact, owner, f"/files/{i}/artifact", lock=True)  # what it refers to stays until we do, too
        if len(found.files) != 1 or found.format not in (*_WEIGHTS, "file"):
            what = f"artifact {part.artifact} is {found.format} with {len(found.files)} files"
            raise InputRefused("unsupported-format", f"{what}; a folder is made of single files", pointer=f"/files/{i}/artifact")
        (file,) = found.files
        files.append({"path": part.path, "size": file.size, "sha256": file.sha256})
        formats.add(found.format)
    chosen = next((f for f in _WEIGHTS if f in formats), None)
    if chosen is None:
        raise InputRefused("no-tensors", "none of the files holds weights: a safetensors or PyTorch file is needed among them", pointer="/files")
    artifact = Artifact(id=ident, owner=owner, kind=asked.kind, format=chosen, name=asked.name, digest=artifact_digest(files), size=sum(f["size"] for f in files))
    artifact.files, artifact.signatures = [ArtifactFile(**f) for f in sorted(files, key=lambda f: f["path"])], []
    artifact.expires_at = until(settings().upload_artifact_ttl)
    s.add(artifact)
    s.flush()
    s.refresh(artifact, ["created_at", "expires_at"])
    return artifact
