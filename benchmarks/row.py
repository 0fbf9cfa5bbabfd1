"""The work of one row of a table in a process of its own, so that its memory is its own: `python -m benchmarks.row JOB.json`.

JOB is `{"work": "module:function", "arguments": {...}}`. What the function returns is written into JOB, with `seconds` and `memory`: the most bytes of
anonymous memory beyond those that the imports took, looked at every 5 ms.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path


class Broke(Exception):
    """A row's process ended with an error."""


def anonymous() -> int:
    """Bytes of memory of its own that this process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def measured(work: str, folder: Path, python: str = sys.executable, **arguments) -> dict:
    """Run `work` in a new process and return what it returns, `seconds` and `memory`.

    Args:
        folder: where the job's file goes.
        python: that of another environment, if `work` needs one.

    Raises:
        Broke: it did not end well; why is on stderr.
    """
    job = folder / "job.json"
    job.write_text(json.dumps({"work": work, "arguments": arguments}, default=str))
    if code := subprocess.run([python, "-m", "benchmarks.row", str(job)], stdout=sys.stderr).returncode:  # stdout is the table's
        raise Broke(f"{work} ended with {code}")
    return json.loads(job.read_text())


def main(path: Path) -> None:
    job = json.loads(path.read_text())
    module, function = job["work"].split(":")
    work, done, before = getattr(importlib.import_module(module), function), threading.Event(), anonymous()
    most = before

    def look() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, anonymous())

    threading.Thread(target=look, daemon=True).start()
    start = time.monotonic()
    returned = work(**job["arguments"])
    seconds = time.monotonic() - start
    done.set()
    path.write_text(json.dumps((returned or {}) | {"seconds": seconds, "memory": max(most, anonymous()) - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
