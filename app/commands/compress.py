"""`modelpress compress`: upload, compress, download, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app import budget as budgets
from app.bars import bars, byte_bar, job_bar
from app.client import Client
from app.commands.options import Into, Json, Url, check_empty, err, out, print_json, size_of
from app.errors import BudgetNotMet, GateFailed, InvalidJobSpec
from app.gates import figures
from app.job_spec import FORMATS, PRESETS
from app.local import input_kind
from app.recipe import parse_recipe
from app.steps import KINDS
from app.strict import parse_json
from app.verify import verify_folder


def compress(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", exists=True, help="A model: a file, an archive or a Hugging Face folder.")],
    output: Into,
    preset: Annotated[str | None, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = None,
    recipe: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help='A JSON file: {"steps": [...]}.')] = None,
    kind: Annotated[str | None, typer.Option(help=f"Of the input, one of: {', '.join(KINDS)}. Default: what the recipe is for, else what its files are.")] = None,
    format: Annotated[str | None, typer.Option(help=f"One of: {', '.join(FORMATS)}. Default: what fits the recipe.")] = None,
    sanitize: Annotated[str | None, typer.Option(help="report or strip. Default: report for lossless, else strip.")] = None,
    gradients: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Gradients of the model, a safetensors file.")] = None,
    calibration: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Data to run the model on: .txt, .jsonl, .json, .npz or .npy.")] = None,
    labels: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Labels of that data.")] = None,
    codec: Annotated[str | None, typer.Option(help="The id of what a job with train_codec has made, for test_codec and the candidate learned.")] = None,
    seed: Annotated[int, typer.Option(help="For methods that draw random numbers.")] = 0,
    budget: Annotated[list[str] | None, typer.Option(help="With --preset auto, what the result must keep to, e.g. ratio=4 or min_cosine=0.98; may be repeated.")] = None,
    gate: Annotated[list[str] | None, typer.Option(help="A bound that the result must keep, e.g. max_relative_error=0.1; may be repeated.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. Default: auto.")] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal or high, among your own jobs. Default: normal.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=TEXT, kept with the job; may be repeated.")] = None,
    webhook: Annotated[str | None, typer.Option(help="A URL that is told of the job's end.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload a model, compress it, download the result and verify its signatures."""
    if (preset is None) == (recipe is None):
        raise typer.BadParameter("give either --preset or --recipe")
    check_empty(output)
    kind = checked_kind(kind) or input_kind(source, parse_json(recipe.read_bytes()) if recipe else None, preset)
    spec: dict[str, Any] = {"preset": preset} if preset else {"recipe": given_recipe(recipe, kind)}
    given = {"output": {"format": format} if format else None, "sanitize": sanitize, "gates": given_gates(gate or []), "budget": budgets.given(budget or []), "seed": seed}
    given |= {"codec": codec, "device": device, "priority": priority, "tags": given_tags(tag or []), "webhook": {"url": webhook} if webhook else None}
    spec |= {k: v for k, v in given.items() if v}
    with Client(url) as client, bars(err) as shown:
        size = size_of(source)
        artifact = client.upload(source, kind=None if kind == "model" else kind, progress=byte_bar(shown, "upload", size))
        for role, of, path in (("gradients", "gradients", gradients), ("calibration", "calibration", calibration), ("labels", "calibration", labels)):
            if path:
                spec[role] = client.upload(path, kind=of, progress=byte_bar(shown, role, size_of(path)))["id"]
        job = client.submit(artifact["id"], **spec)
        try:
            job = client.wait(job["id"], job_bar(shown))
        except (GateFailed, BudgetNotMet):
            err.print(f"the whole report: GET /v1/jobs/{job['id']}/report")
            raise
        result = client.artifact(job["output"])
        client.download(result["id"], output, byte_bar(shown, "download", result["size"]))
        verified = verify_folder(output, client.public_keys(), byte_bar(shown, "verify", result["size"]))
        quality = client.report(result["id"]).get("quality") if calibration else None
    if as_json:
        return print_json({"job": job, "artifact": result, "key_id": verified.key_id, "folder": str(output)})
    ratio = size / max(1, result["size"])
    out.print(f"{output}: {result['format']}, {result['size']:,} bytes of {size:,} ({ratio:.3f} to 1), signed by key {verified.key_id[:16]}")
    if quality:
        out.print(quality_line(quality))


def quality_line(quality: dict) -> str:
    """What a report's `quality` says, on one line."""
    if not quality["measured"]:
        return f"quality was not measured: {quality['reason']}"
    told = [f"{name} {quality[name]:.6g}" for name in figures(quality["task"], labelled=True) if quality.get(name) is not None]
    return f"quality on {quality['samples']} samples: {', '.join(told)}"


def checked_kind(kind: str | None) -> str | None:
    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"--kind is one of {', '.join(KINDS)}, not {kind}")
    return kind


def given_recipe(path: Path, kind: str = "model") -> dict:
    recipe = parse_json(path.read_bytes())
    return parse_recipe(recipe, "", kind).model_dump(mode="json", exclude_unset=True)


def given_tags(pairs: list[str]) -> dict:
    if any("=" not in pair for pair in pairs):
        raise InvalidJobSpec(f"a tag is NAME=TEXT, not one of {', '.join(pairs)}", pointer="/tags")
    return dict(pair.split("=", 1) for pair in pairs)


def given_gates(pairs: list[str]) -> dict:
    try:
        return {name: json.loads(value) for name, value in (p.split("=", 1) for p in pairs)}
    except ValueError:
        raise InvalidJobSpec(f"a gate is NAME=NUMBER, not one of {', '.join(pairs)}", pointer="/gates") from None
