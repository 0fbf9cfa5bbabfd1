"""What an owner has of what it may have."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from app import quotas
from app.auth import Owner
from app.db import reading

router = APIRouter(prefix="/v1", tags=["api keys"])


class UsageView(BaseModel):
    """Each with its bound, None where there is none. `stored_bytes`: what several artifacts share counts once."""

    stored_bytes: int
    max_stored_bytes: int | None
    open_uploads: int
    max_open_uploads: int
    open_jobs: int
    max_open_jobs: int
    running_jobs: int
    max_running_jobs: int | None


@router.get("/usage")
def get_usage(owner: Owner) -> UsageView:
    """How many bytes, uploads and jobs are yours, and how many may be. How many requests may be sent is told by `RateLimit` on every answer."""
    with reading() as s:
        return UsageView(**quotas.usage(s, owner))
