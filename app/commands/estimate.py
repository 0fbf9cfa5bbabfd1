"""`modelpress estimate`: what a job would give and cost, told from a model on this machine's disk. Nothing is uploaded, and no service is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app.commands.options import Json, out, print_json
from app.errors import NotEstimable
from app.estimate import estimate as told
from app.job_spec import FORMATS, PRESETS, parse_job
from app.local import open_local
from app.strict import parse_json

_ANY_ID = "00000000-0000-0000-0000-000000000000"  # a job names its input by id; here it is a path


def estimate(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", exists=True, help="A safetensors file, or a Hugging Face folder of them.")],
    preset: Annotated[str | None, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = None,
    recipe: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help='A JSON file: {"steps": [...]}.')] = None,
    format: Annotated[str | None, typer.Option(help=f"One of: {', '.join(FORMATS)}. Default: what fits the recipe.")] = None,
    as_json: Json = False,
) -> None:
    """Bytes, ratio, memory, disk and time of a job, before it runs; looks at headers and a sample of the values."""
    if (preset is None) == (recipe is None):
        raise typer.BadParameter("give either --preset or --recipe")
    body: dict[str, Any] = {"input": _ANY_ID} | ({"preset": preset} if preset else {"recipe": parse_json(recipe.read_bytes())})
    spec = parse_job(body | ({"output": {"format": format}} if format else {}), source.is_dir() and (source / "config.json").is_file())
    model, read = open_local(source)
    if model is None or spec.recipe.kind == "restore":
        raise NotEstimable(f"{source} has no safetensors header to tell from: PyTorch checkpoints, archives and packed files are known once they are parsed")
    answer = told(model, spec, read)
    print_json(answer) if as_json else out.print(_table(answer))


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
