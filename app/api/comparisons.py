"""Comparisons: several recipes on one input, and one table of what came of them."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import audit, idempotency, jobs
from app.api.artifacts import storage_of
from app.api.comparison_views import Comparisons, ComparisonView, brief, table
from app.api.customer_key import CustomerKeySent
from app.api.jobs import RETRY_AFTER, UNSHOWN, IdempotencyKey
from app.api.paging import Cursor, Limit, page
from app.api.requests import read_json
from app.api.schemas import body_schema
from app.auth import Owner
from app.budget import Budget
from app.comparing import MAX_RECIPES, insert, prepared
from app.config import settings
from app.db import reading
from app.errors import Conflict
from app.job_spec import PRESETS, Gates, JobSpec, Output, Tag
from app.models import TERMINAL, Comparison, Job, new_id
from app.owned import owned
from app.queue import flush_outbox
from app.recipe import Recipe
from app.settled import settled
from app.strict import Strict

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])

Preset = Literal[tuple(PRESETS)]


class OneRecipe(Strict):
    """A line of the table: `preset` or `recipe`, under a name of its own; `output` and `gates` in the place of those that are given for all."""

    name: Tag | None = None
    preset: Preset | None = None
    recipe: Recipe | None = None
    budget: Budget | None = None
    output: Output | None = None
    gates: Gates | None = None


class ComparisonRequest(JobSpec):
    """The body of `POST /v1/comparisons`: that of a job with `recipes` in the place of `recipe`; everything else counts for all of them."""

    recipe: SkipJsonSchema[None] = None
    budget: SkipJsonSchema[None] = None
    recipes: Annotated[list[Preset | Recipe | OneRecipe], Field(min_length=1, max_length=MAX_RECIPES)]
    output: Output | None = None
    sanitize: Literal["report", "strip"] | None = None


@router.post("", status_code=202, openapi_extra=body_schema(ComparisonRequest))
async def submit(
    request: Request, response: Response, owner: Owner, after: BackgroundTasks, customer_key: CustomerKeySent, idempotency_key: IdempotencyKey = None
) -> ComparisonView:
    """Queue a job for every recipe, all or none. They run one after another, and what calibration finds in the data is found once.

    Sent again under the same `Idempotency-Key` it makes no second comparison.
    """
    view, replayed = await run_in_threadpool(_submit_once, await read_json(request), owner, request, idempotency_key, customer_key)
    after.add_task(flush_outbox)
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"/v1/comparisons/{view.id}"
    response.headers["Retry-After"] = RETRY_AFTER
    return view


def _submit_once(body: Any, owner: str, request: Request, key: str | None, customer_key: bytes | None) -> tuple[ComparisonView, bool]:
    asked = idempotency.request(owner, key, body)
    if (view := _earlier(owner, asked, customer_key)) is not None:
        return view, True
    try:
        return _submit(body, owner, request, asked, customer_key), False
    except IntegrityError:
        if (view := _earlier(owner, asked, customer_key)) is not None:  # both came at once, and the other one was first
            return view, True
        raise


def _earlier(owner: str, asked: idempotency.Request | None, customer_key: bytes | None) -> ComparisonView | None:
    with reading() as s:
        job = idempotency.earlier(s, asked, customer_key)
        return job and _view(s, owned(s, Comparison, job.comparison_id, owner))


def _submit(body: Any, owner: str, request: Request, asked: idempotency.Request | None, customer_key: bytes | None) -> ComparisonView:
    lines = prepared(body, owner, storage_of(request), customer_key)
    ident = new_id()

    def end(s: Session) -> ComparisonView:
        comparison, made = insert(s, owner, lines, ident)
        idempotency.remember(s, asked, made[0])
        s.refresh(comparison)
        return _view(s, comparison)

    def found(s: Session) -> ComparisonView | None:
        comparison = s.get(Comparison, ident)
        return comparison and _view(s, comparison)

    return settled(end, found)


def _view(s: Session, comparison: Comparison) -> ComparisonView:
    rows = s.scalars(select(Job).where(Job.id.in_(comparison.jobs)).options(*UNSHOWN))
    return table(comparison, {job.id: job for job in rows})


def _get(ident: str, owner: str) -> ComparisonView:
    with reading() as s:
        return _view(s, owned(s, Comparison, ident, owner))


@router.get("")
def list_comparisons(owner: Owner, limit: Limit = 50, cursor: Cursor = None) -> Comparisons:
    """The newest first, without their tables."""
    with reading() as s:
        rows, following = page(s, Comparison, owner, cursor, limit)
        count: dict[str, dict[str, int]] = {c.id: {} for c in rows}
        states = select(Job.comparison_id, Job.state, func.count()).where(Job.comparison_id.in_(list(count))).group_by(Job.comparison_id, Job.state)
        for ident, state, n in s.execute(states):
            count[ident][state] = n
    return Comparisons(items=[brief(c, count[c.id]) for c in rows], next=following)


@router.get("/{ident}")
async def get_comparison(
    ident: str,
    request: Request,
    response: Response,
    owner: Owner,
    wait: Annotated[float, Query(ge=0, allow_inf_nan=False, description="Seconds to hold the answer back until every job has ended.")] = 0,
) -> ComparisonView:
    """The table, as far as it is known."""
    view = await run_in_threadpool(_get, ident, owner)
    until = time.monotonic() + min(wait, settings().wait_max)
    for row in view.rows if wait else ():
        if row.state not in (*TERMINAL, None) and (left := until - time.monotonic()) > 0:
            await request.app.state.watcher.wait(row.job, left)
    if wait:
        view = await run_in_threadpool(_get, ident, owner)
    if view.state != "ended":
        response.headers["Retry-After"] = RETRY_AFTER
    return view


@router.post("/{ident}/cancel")
def cancel(ident: str, owner: Owner, after: BackgroundTasks) -> ComparisonView:
    """Stop every job of it that can still be stopped."""

    def end(s: Session) -> ComparisonView:
        comparison = owned(s, Comparison, ident, owner)
        for job_id in s.scalars(select(Job.id).where(Job.comparison_id == ident, Job.state.not_in(TERMINAL)).order_by(Job.id)).all():
            try:
                jobs.cancel(s, job_id)
            except Conflict:  # it is being signed, or has just ended
                pass
        s.expire_all()
        return _view(s, comparison)

    view = settled(end)
    after.add_task(flush_outbox)
    return view


@router.delete("/{ident}", status_code=204)
def delete(ident: str, owner: Owner) -> None:
    """Forget the table. Its jobs stay, and go on."""

    def end(s: Session) -> bool:
        s.delete(owned(s, Comparison, ident, owner))
        audit.record(s, "comparison.delete", owner, ident)
        s.execute(update(Job).where(Job.comparison_id == ident).values(comparison_id=None), execution_options={"synchronize_session": False})
        return True

    def gone(s: Session) -> bool | None:
        return True if s.get(Comparison, ident) is None else None

    settled(end, gone)
