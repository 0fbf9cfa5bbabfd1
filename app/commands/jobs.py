"""`modelpress jobs`: list, show, watch, cancel."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from app.bars import bars, job_bar
from app.client import Client
from app.commands.options import Json, Url, err, out, print_json

jobs = typer.Typer(help="List, show, watch or cancel jobs. Alone it lists.", invoke_without_command=True)


@jobs.callback()
def jobs_default(context: typer.Context, url: Url = None, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_jobs(url, as_json)


@jobs.command("list")
def list_jobs(url: Url = None, as_json: Json = False) -> None:
    """All jobs, the newest first."""
    with Client(url) as client:
        found = client.jobs()
    if as_json:
        return print_json(found)
    table = Table(Column("id", min_width=36), "state", "stage", "output", "error")
    for job in found:
        table.add_row(job["id"], job["state"], _stage(job), job.get("output") or "", (job.get("error") or {}).get("type", ""))
    out.print(table)


@jobs.command("show")
def show_job(ident: Annotated[str, typer.Argument(metavar="ID")], url: Url = None) -> None:
    """Everything about one job, as JSON."""
    with Client(url) as client:
        print_json(client.job(ident))


@jobs.command("watch")
def watch_job(ident: Annotated[str, typer.Argument(metavar="ID")], url: Url = None, as_json: Json = False) -> None:
    """Follow a job to its end; what it fails with is this command's error."""
    state: dict = {}
    with Client(url) as client:
        with bars(err) as shown:
            show = job_bar(shown)
            for event in client.events(ident):
                state |= event if event["kind"] == "state" else {"progress": event} if event["kind"] == "progress" else {}
                show(state)
                if event["kind"] == "log":
                    err.print(event["message"], markup=False)
        job = client.wait(ident)
    print_json(job) if as_json else out.print(f"{job['id']}: {job['state']}, result {job['output']}")


@jobs.command("cancel")
def cancel_job(ident: Annotated[str, typer.Argument(metavar="ID")], url: Url = None, as_json: Json = False) -> None:
    """Stop a job that has not ended."""
    with Client(url) as client:
        job = client.cancel(ident)
    print_json(job) if as_json else out.print(f"{job['id']}: {job['state']}")


def _stage(job: dict) -> str:
    progress = job.get("progress") or {}
    return f"{progress.get('stage', '')} {progress['fraction']:.0%}" if progress.get("fraction") is not None else progress.get("stage") or ""
