"""Jobs: submitted, followed, cancelled."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from app import idempotency, jobs
from app.api.artifacts import storage_of
from app.api.customer_key import CustomerKeySent
from app.api.paging import Cursor, Limit, page
from app.api.reports import send_report
from app.api.requests import read_json
from app.api.schemas import body_schema
from app.api.views import Jobs, JobView, job_view
from app.auth import Owner
from app.config import settings
from app.db import reading
from app.errors import NotFound
from app.job_spec import PRESETS, JobSpec, Output
from app.links import Reader
from app.models import STATES, TERMINAL, Blob, Job, new_id
from app.owned import owned
from app.queue import flush_outbox
from app.recipe import RECIPES
from app.settled import settled
from app.submission import prepare

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

RETRY_AFTER = "1"  # seconds
IdempotencyKey = Annotated[str | None, Header(description="1 to 255 printable characters, such as a UUID; kept for a day.")]
UNSHOWN = [defer(Job.handoff, raiseload=True)]  # as large as the result has files


class JobRequest(JobSpec):
    """The body of `POST /v1/jobs`: either `recipe` or `preset`; what is left out is filled in."""

    recipe: Union[*RECIPES.values()] | None = None  # noqa: UP007
    preset: Literal[tuple(PRESETS)] | None = None
    output: Output | None = None
    sanitize: Literal["report", "strip"] | None = None


@router.post("", status_code=202, openapi_extra=body_schema(JobRequest))
async def submit(
    request: Request, response: Response, owner: Owner, after: BackgroundTasks, customer_key: CustomerKeySent, idempotency_key: IdempotencyKey = None
) -> JobView:
    """Queue a job. What it asks for is checked first: the recipe against the input's tensors, the output format against both.

    Sent again under the same `Idempotency-Key` it makes no second job, and the answer is that of the first.
    """
    job, replayed = await run_in_threadpool(_submit_once, await read_json(request), owner, request, idempotency_key, customer_key)
    after.add_task(flush_outbox)  # committed already; should nobody be woken now, the sweep does it
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    response.headers["Retry-After"] = RETRY_AFTER
    return job_view(job)


def _submit_once(body: Any, owner: str, request: Request, key: str | None, customer_key: bytes | None) -> tuple[Job, bool]:
    """The job, and whether an earlier request with the same Idempotency-Key has made it."""
    asked = idempotency.request(owner, key, body)
    with reading() as s:
        if job := idempotency.earlier(s, asked, customer_key):
            return job, True
    try:
        return _submit(body, owner, request, asked, customer_key), False
    except IntegrityError:
        with reading() as s:
            if job := idempotency.earlier(s, asked, customer_key):  # both came at once, and the other one was first
                return job, True
        raise


def _submit(body: Any, owner: str, request: Request, asked: idempotency.Request | None, customer_key: bytes | None) -> Job:
    submission = prepare(body, owner, storage_of(request), customer_key)
    ident = new_id()

    def insert(s: Session) -> Job:
        job = submission.insert(s, ident)
        idempotency.remember(s, asked, job)
        s.refresh(job)
        return job

    return settled(insert, lambda s: s.get(Job, ident))


@router.get("")
def list_jobs(owner: Owner, limit: Limit = 50, cursor: Cursor = None, state: Annotated[Literal[STATES] | None, Query()] = None) -> Jobs:
    """The newest first."""
    with reading() as s:
        rows, following = page(s, Job, owner, cursor, limit, *([Job.state == state] if state else []), options=UNSHOWN)
        return Jobs(items=[job_view(j) for j in rows], next=following)


def _get(ident: str, owner: str) -> Job:
    """What is shown of it: asked for at every poll."""
    with reading() as s:
        return owned(s, Job, ident, owner, options=UNSHOWN)


@router.get("/{ident}")
async def get_job(
    ident: str,
    request: Request,
    response: Response,
    owner: Owner,
    wait: Annotated[float, Query(ge=0, allow_inf_nan=False, description="Seconds to hold the answer back until the job has ended.")] = 0,
) -> JobView:
    job = await run_in_threadpool(_get, ident, owner)
    if wait and job.state not in TERMINAL:
        await request.app.state.watcher.wait(ident, min(wait, settings().wait_max))
        job = await run_in_threadpool(_get, ident, owner)
    if job.state not in TERMINAL:
        response.headers["Retry-After"] = RETRY_AFTER
    return job_view(job)


@router.post("/{ident}/cancel")
def cancel(ident: str, owner: Owner, after: BackgroundTasks) -> JobView:
    """Stop it, unless it has ended or is being signed (409). Twice is as good as once."""

    def end(s: Session) -> JobView:
        job = owned(s, Job, ident, owner)
        jobs.cancel(s, ident)
        s.refresh(job)
        return job_view(job)

    view = settled(end)
    after.add_task(flush_outbox)
    return view


@router.get("/{ident}/report", response_class=Response)
async def get_report(ident: str, request: Request, owner: Reader) -> Response:
    """The report of a job that has one, also when it failed on a gate."""
    blob = await run_in_threadpool(_report, ident, owner)
    return await send_report(request, storage_of(request).of(owner), blob.sha256, blob.size)


def _report(ident: str, owner: str) -> Blob:
    with reading() as s:
        job = owned(s, Job, ident, owner)
        if job.report_sha256 is None:
            raise NotFound("this job has no report")
        return s.get_one(Blob, job.report_sha256)
