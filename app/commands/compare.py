"""`modelpress compare`: several recipes on one model, and a table of what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from app import budget as budgets
from app.bars import bars, byte_bar, comparison_bar
from app.client import Client
from app.commands.compress import given_gates, given_recipe, given_tags
from app.commands.options import Json, Url, err, out, print_json, size_of
from app.job_spec import FORMATS, PRESETS


def compare(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", exists=True, help="A model: a file, an archive or a Hugging Face folder.")],
    preset: Annotated[list[str] | None, typer.Option(help=f"One of: {', '.join(PRESETS)}; may be repeated.")] = None,
    recipe: Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False, help='A JSON file: {"steps": [...]}; may be repeated.')] = None,
    budget: Annotated[list[str] | None, typer.Option(help='A line of the preset auto within it: ratio=4, or {"ratio": 4, "min_cosine": 0.9} for several bounds at once; may be repeated.')] = None,
    format: Annotated[str | None, typer.Option(help=f"One of: {', '.join(FORMATS)}. Default: what fits each recipe.")] = None,
    gradients: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Gradients of the model, a safetensors file.")] = None,
    calibration: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Data to run the model on: .txt, .jsonl, .json, .npz or .npy.")] = None,
    labels: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Labels of that data.")] = None,
    seed: Annotated[int, typer.Option(help="For methods that draw random numbers.")] = 0,
    gate: Annotated[list[str] | None, typer.Option(help="A bound that every result must keep, e.g. min_cosine=0.9; may be repeated.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. Default: auto.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=TEXT, kept with the jobs; may be repeated.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload a model, compress it by each recipe, and print one table: bytes, ratio, error, quality, seconds, memory, restore time."""
    recipes: list[Any] = [*(preset or []), *({"name": path.stem[:100], "recipe": given_recipe(path)} for path in recipe or [])]
    recipes += [{"name": f"auto {text}"[:100], "preset": "auto", "budget": budgets.given([text])} for text in budget or []]
    if not recipes:
        raise typer.BadParameter("give --preset, --recipe or --budget, each as often as you like")
    spec: dict[str, Any] = {"output": {"format": format} if format else None, "gates": given_gates(gate or []), "seed": seed, "device": device}
    spec = {k: v for k, v in (spec | {"tags": given_tags(tag or [])}).items() if v}
    with Client(url) as client, bars(err) as shown:
        artifact = client.upload(source, progress=byte_bar(shown, "upload", size_of(source)))
        for role, kind, path in (("gradients", "gradients", gradients), ("calibration", "calibration", calibration), ("labels", "calibration", labels)):
            if path:
                spec[role] = client.upload(path, kind=kind, progress=byte_bar(shown, role, size_of(path)))["id"]
        made = client.compare(artifact["id"], recipes, **spec)
        err.print(f"comparison {made['id']}: its jobs go on whatever becomes of this command; GET /v1/comparisons/{made['id']} tells them")
        found = client.wait_comparison(made["id"], comparison_bar(shown))
    print_json(found) if as_json else out.print(_table(found["rows"]))
    if any(row["state"] != "succeeded" for row in found["rows"]):
        raise typer.Exit(1)


def _table(rows: list[dict]) -> Table:
    """Figures of quality that at least one result has get a column of their own."""
    measured = list(dict.fromkeys(name for row in rows for name, _ in _flat(row["quality"])))
    head = ("bytes", "ratio", "rel. error", *measured, "seconds", "restore s", "peak MB")
    table = Table(Column("recipe"), *(Column(name, justify="right") for name in head), Column("result", min_width=36))
    for row in rows:
        quality = dict(_flat(row["quality"]))
        figures = (_shown(row["bytes_after"]), _shown(row["ratio"]), _shown(row["relative_error"]), *(_shown(quality.get(name)) for name in measured))
        memory = None if row["peak_memory"] is None else row["peak_memory"] // 1_000_000
        result = row["output"] or f"{row['state']}: {(row['error'] or {}).get('type', '')}"
        table.add_row(row["name"], *figures, _shown(row["total_seconds"]), _shown(row["restore_seconds"]), _shown(memory), result)
    return table


def _flat(quality: dict, prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of an object of objects, by their paths."""
    found = []
    for name, value in quality.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((prefix + name, value))
    return found


def _shown(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
