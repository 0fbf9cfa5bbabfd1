"""`modelpress restore`: the original files of a result, without a service."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from app.bars import bars, job_bar
from app.commands.options import Into, Json, check_empty, err, out, print_json
from app.statement import SIDECARS


def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", exists=True, help="A packed file, or the folder of a result.")],
    output: Into,
    as_json: Json = False,
) -> None:
    """Turn a result back into the original files, without a service."""
    check_empty(output)
    with tempfile.TemporaryDirectory(prefix="modelpress-") as work, bars(err) as shown:
        recipe = Path(work, "recipe.json")
        recipe.write_text('{"steps": [{"method": "restore"}]}')
        command = [sys.executable, "-m", "worker", str(_without_sidecars(source, Path(work))), str(output), "--recipe", str(recipe), "--events"]
        show = job_bar(shown)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for event in map(json.loads, child.stdout):
                show({"state": "succeeded" if event["event"] == "done" else "running", "progress": event})
    if child.returncode:
        raise typer.Exit(1)  # the child has said why
    files = sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())
    print_json({"folder": str(output), "files": files}) if as_json else out.print(f"{output}: {len(files)} files")


def _without_sidecars(source: Path, work: Path) -> Path:
    """A result's folder as the service stored it: links to its files, without signatures and report. A file stays as it is."""
    if not (source.is_dir() and (source / "model.sig").is_file()):
        return source
    for path in source.rglob("*"):
        if path.is_file() and path.relative_to(source).as_posix() not in SIDECARS:
            link = work / "in" / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    return work / "in"
