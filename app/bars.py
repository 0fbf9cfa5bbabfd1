"""Progress bars: bytes on their way, and a job."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn
from rich.text import Text


class _OfBytes(ProgressColumn):
    """A column that only bars of bytes have."""

    def __init__(self, column: ProgressColumn):
        super().__init__()
        self._column = column

    def render(self, task: Task) -> Text:
        return self._column.render(task) if task.fields.get("bytes") else Text()


def bars(console: Console) -> Progress:
    """A context; while it is open, the bars below are shown on `console`."""
    title, note = TextColumn("{task.description:>15}"), TextColumn("{task.fields[note]}")
    speed = _OfBytes(TransferSpeedColumn()), _OfBytes(TimeRemainingColumn())
    return Progress(title, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), *speed, note, console=console)


def byte_bar(shown: Progress, what: str, total: int) -> Callable[[int], None]:
    """Takes the bytes moved since the last call."""
    task = shown.add_task(what, total=total, note=f"{total:,} bytes", bytes=True)
    return lambda n: shown.advance(task, n)


def job_bar(shown: Progress, what: str = "job") -> Callable[[dict], None]:
    """Takes a job as the API shows it."""
    task = shown.add_task(what, total=1, note="")

    def show(job: dict) -> None:
        progress = job.get("progress") or {}
        if job["state"] == "succeeded":
            progress = {"fraction": 1, "stage": "succeeded"}
        eta = progress.get("eta")
        note = (progress.get("stage") or job["state"]) + (f", {eta:.0f} s left" if eta is not None else "")
        shown.update(task, completed=progress.get("fraction") or 0, note=note)

    return show


def comparison_bar(shown: Progress) -> Callable[[dict], None]:
    """Takes a comparison as the API shows it."""
    task = shown.add_task("compare", total=1, note="")

    def show(found: dict) -> None:
        rows = found["rows"]
        running = [row["name"] for row in rows if row["state"] in ("running", "signing")]
        shown.update(task, total=len(rows), completed=sum(row["state"] in ("succeeded", "failed", "cancelled") for row in rows), note=", ".join(running[:2]))

    return show
