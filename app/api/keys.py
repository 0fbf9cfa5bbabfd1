"""The service's public keys, and verification for those who have no tool at hand."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from pydantic import Field, StringConstraints
from sqlalchemy import select

from app.api.requests import read_json
from app.api.schemas import body_schema
from app.auth import ReadingOwner
from app.db import now, reading
from app.key_states import Known, document, revocations
from app.public_keys import published
from app.strict import Strict, validate
from app.verify import verify_bundle

router = APIRouter(prefix="/v1", tags=["keys"])

MAX_BODY = 16 << 20  # a bundle names every file


class Verification(Strict):
    """The JSON body of `POST /v1/verify`: a Sigstore bundle (`model.sig`), and what you have: path -> SHA-256 in hex."""

    bundle: dict[str, Any]
    files: dict[str, Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]] = Field(max_length=100_000)


def _keys() -> tuple[list[Known], float]:
    """And the time, on the database's clock."""
    with reading() as s:
        return published(s), s.scalar(select(now()))


@router.get("/keys")
def get_keys(request: Request) -> dict[str, Any]:
    """A JSON Web Key Set, the newest first; each key also as PEM, with its `status` (next, current, retired, revoked) and times. `age`: to whom uploads are encrypted, or null. Needs no API key."""
    identities = request.app.state.identities
    return document(*_keys()) | {"age": identities and identities.recipient}


@router.post("/verify", openapi_extra=body_schema(Verification))
async def verify(request: Request, owner: ReadingOwner) -> dict[str, Any]:
    """Whether a bundle is this service's and names exactly these files; 422 `invalid-signature` says what differs, `key-revoked` that its key was."""
    body = await read_json(request, MAX_BODY)

    def check():
        asked = validate(Verification, body)
        known, _ = _keys()
        return verify_bundle(asked.bundle, asked.files, [k.key for k in known], revocations(known))

    done = await run_in_threadpool(check)
    return {"verified": True, "key_id": done.key_id, "files": done.files}
