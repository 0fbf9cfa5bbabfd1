"""Progress bars: bytes on their way, and a job."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


def bars(console: Console) -> Progress:
    """A context; while it is open, the bars below are shown on `console`."""
    title, note = TextColumn("{task.description:>15}"), TextColumn("{task.fields[note]}")
    return Progress(title, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), note, console=console)


def byte_bar(shown: Progress, what: str, total: int) -> Callable[[int], None]:
    """Takes the bytes moved since the last call."""
    task = shown.add_task(what, total=total, note=f"{total:,} bytes")
    return lambda n: shown.advance(task, n)


def job_bar(shown: Progress, what: str = "job") -> Callable[[dict], None]:
    """Takes a job as the API shows it."""
    task = shown.add_task(what, total=1, note="")

    def show(job: dict) -> None:
        progress = job.get("progress") or {}
        if job["state"] == "succeeded":
            progress = {"fraction": 1, "stage": "succeeded"}
        shown.update(task, completed=progress.get("fraction") or 0, note=progress.get("stage") or job["state"])

    return show
