"""How comparisons look from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from app.job_spec import COMPANIONS
from app.models import TERMINAL, Comparison, Job
from app.times import rfc3339


class ComparisonRow(BaseModel):
    """What came of one recipe. `state` is the job's, None once it was deleted; figures are None as long as they are not known.

    Bytes are of all files. `relative_error` is that of the changed weights (mean by elements; `max_relative_error`: of the worst tensor), `quality` what
    the reloaded result says to the calibration data beside the original. `seconds` by stage, `total_seconds` all of them; those of a `cached` result are
    of the job that computed it. `restore_seconds` (within them): reading the result back, every tensor decoded from its files and held against what was
    meant. `peak_memory`: bytes that the largest process of the work had resident, what it maps included; memory of a GPU is not in it.
    """

    name: str
    recipe: dict[str, Any]
    output_format: str
    job: str
    state: str | None
    error: dict[str, Any] | None
    output: str | None
    report: str | None
    cached: bool
    device: str | None
    bytes_before: int | None
    bytes_after: int | None
    ratio: float | None
    relative_error: float | None
    max_relative_error: float | None
    quality: dict[str, Any]
    seconds: dict[str, float]
    total_seconds: float | None
    restore_seconds: float | None
    peak_memory: int | None


class ComparisonView(BaseModel):
    """`state` is running until every job has ended. `rows` are in the order of the recipes."""

    id: str
    state: Literal["running", "ended"]
    input: str
    gradients: str | None
    calibration: str | None
    labels: str | None
    created_at: str
    rows: list[ComparisonRow]


class ComparisonBrief(BaseModel):
    """`states`: how many of its jobs are in each."""

    id: str
    input: str
    names: list[str]
    states: dict[str, int]
    created_at: str


class Comparisons(BaseModel):
    items: list[ComparisonBrief]
    next: str | None


def brief(c: Comparison, states: dict[str, int]) -> ComparisonBrief:
    return ComparisonBrief(id=c.id, input=c.spec["input"], names=[r["name"] for r in c.spec["recipes"]], states=states, created_at=rfc3339(c.created_at))


def table(c: Comparison, found: Mapping[str, Job]) -> ComparisonView:
    """Args: found: its jobs by id, as far as they are still there."""
    rows = [_row(told, ident, found.get(ident)) for told, ident in zip(c.spec["recipes"], c.jobs, strict=True)]
    ended = all(row.state is None or row.state in TERMINAL for row in rows)
    return ComparisonView(
        id=c.id,
        state="ended" if ended else "running",
        input=c.spec["input"],
        **{role: c.spec.get(role) for role in COMPANIONS},
        created_at=rfc3339(c.created_at),
        rows=rows,
    )


def _row(told: dict[str, Any], ident: str, job: Job | None) -> ComparisonRow:
    figures = (job and job.figures) or {}
    seconds = figures.get("seconds", {}) | ((job and job.timings) or {})
    of_the_job = {name: getattr(job, name, None) for name in ("state", "error", "device")}
    known = ("bytes_before", "bytes_after", "ratio", "relative_error", "max_relative_error", "restore_seconds", "peak_memory")
    return ComparisonRow(
        **told,
        **of_the_job,
        **{name: figures.get(name) for name in known},
        job=ident,
        output=job and job.output_id,
        report=f"/v1/jobs/{ident}/report" if job and job.report_sha256 else None,
        cached=bool(job and job.cached),
        quality=figures.get("quality") or {},
        seconds=seconds,
        total_seconds=round(sum(seconds.values()), 3) if seconds else None,
    )
