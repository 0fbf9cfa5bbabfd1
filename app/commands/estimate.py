"""`modelpress estimate`: what a job would give and cost, told from a model on this machine's disk. Nothing is uploaded, and no service is needed.

One that is running says how fast its workers are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from app import budget as budgets
from app.client import Client
from app.commands.options import Json, Url, out, print_json
from app.errors import ModelpressError
from app.estimate import estimate as told
from app.job_spec import FORMATS, PRESETS, parse_job
from app.local import has_config, is_program, open_local
from app.recipe import Recipe
from app.strict import parse_json

_ANY_ID = "00000000-0000-0000-0000-000000000000"  # a job names its input by id; here it is a path
_PATIENCE = httpx.Timeout(2, connect=0.5)  # seconds


def estimate(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", exists=True, help="A model: a file, an archive or a Hugging Face folder.")],
    preset: Annotated[str | None, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = None,
    recipe: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help='A JSON file: {"steps": [...]}.')] = None,
    format: Annotated[str | None, typer.Option(help=f"One of: {', '.join(FORMATS)}. Default: what fits the recipe.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="With --preset auto, what the result must keep to, e.g. ratio=4; may be repeated.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Bytes, ratio, memory, disk and time of a job, before it runs; looks at headers and a sample of the values."""
    if (preset is None) == (recipe is None):
        raise typer.BadParameter("give either --preset or --recipe")
    body: dict[str, Any] = {"input": _ANY_ID} | ({"preset": preset} if preset else {"recipe": parse_json(recipe.read_bytes())})
    body |= ({"output": {"format": format}} if format else {}) | ({"budget": budgets.given(budget)} if budget else {})
    spec = parse_job(body, has_config(source), program=is_program(source))
    model, read = open_local(source)
    rate = _measured(url, spec.recipe)
    if model is not None:
        answer = told(model, spec, read, rate)
    else:
        choice = ["--preset", preset] if preset else ["--recipe", str(recipe)]
        choice += [word for one in budget or [] for word in ("--budget", one)]
        answer = _parsed(source, choice + (["--format", format] if format else []) + (["--rate", str(rate)] if rate else []))
    print_json(answer) if as_json else out.print(_table(answer))


def _measured(url: str | None, recipe: Recipe) -> float | None:
    """Bytes of input a second, where a service answers and has done such work."""
    try:
        with Client(url) as client:
            client.http.timeout = _PATIENCE
            rates = client.rates()
    except (ModelpressError, ValueError, KeyError):  # nobody answers, or somebody else
        return None
    from app.meters import method  # the database's library takes longer than all else here

    return rates.get(method(recipe.model_dump(mode="json")))


def _parsed(source: Path, options: list[str]) -> dict[str, Any]:
    """The same of a file that only its reader can open, in a process that has the readers."""
    child = subprocess.run([sys.executable, "-m", "worker", str(source), "--estimate", *options], stdout=subprocess.PIPE)
    if child.returncode:
        raise typer.Exit(1)  # the child has said why
    return json.loads(child.stdout)


def _table(answer: dict[str, Any]) -> Table:
    size = f"{answer['bytes_after']:,}"
    if not answer["exact"]:
        size += f" ({answer['bytes_least']:,} to {answer['bytes_most']:,}, {answer['basis']})"
    table = Table(show_header=False)
    table.add_row("format", answer["output_format"])
    table.add_row("bytes before", f"{answer['bytes_before']:,}")
    table.add_row("bytes after", size + (", exact" if answer["exact"] else ""))
    table.add_row("ratio", f"{answer['ratio']:.3f} to 1")
    for action, told_of in answer["actions"].items():
        table.add_row(action, f"{told_of['tensors']} tensors, {told_of['bytes_before']:,} -> {told_of['bytes_after']:,} bytes")
    table.add_row("memory, scratch disk", f"{answer['peak_memory'] / 1e6:,.0f} MB, {answer['scratch_bytes'] / 1e6:,.0f} MB")
    table.add_row("time", f"{answer['seconds']:.0f} s ({answer['seconds_basis']} rates)")
    table.add_row("loads in", ", ".join(answer["loaders"]))
    for note in answer["notes"]:
        table.add_row("note", note)
    return table
