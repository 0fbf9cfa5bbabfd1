"""A job on files of a data set, and back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from app.job_spec import parse_job
from worker.datasets import job

ANY = "00000000-0000-0000-0000-000000000000"
REENCODE = {"method": "reencode", "level": 3}


def carried_out(inp: Path, out: Path, *steps: dict, **more) -> dict:
    """The report of a job with these steps."""
    spec = parse_job({"input": ANY, "recipe": {"steps": list(steps)}} | more, kind="dataset").model_dump(mode="json")
    job.run(inp, out, spec, lambda event: None)
    return json.loads((out / "report.json").read_text())


def there_and_back(inp: Path, *steps: dict, **more) -> tuple[dict, Path, Path]:
    """The report, what is stored, and what is restored out of that."""
    work = Path(tempfile.mkdtemp(dir=inp.parent))
    report = carried_out(inp, work / "out", *(steps or (REENCODE,)), **more)
    carried_out(work / "out" / "files", work / "back", {"method": "restore"})
    return report, work / "out" / "files", work / "back" / "files"
