"""`modelpress`: the service, and what one does with it, on the command line.

Exit codes: 0 done; 1 refused or failed, with one line on stderr; 2 usage; 3 no service answers; 130 interrupted.
`--json` prints one JSON document on stdout; progress bars and errors go to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app import signing
from app.bars import bars, byte_bar, job_bar
from app.client import Client
from app.config import settings
from app.errors import InvalidJobSpec, InvalidSignature, ModelpressError, Unavailable
from app.job_spec import FORMATS, PRESETS
from app.recipe import parse_recipe
from app.strict import parse_json
from app.statement import SIDECARS
from app.verify import verify_folder

app = typer.Typer(name="modelpress", help=__doc__.splitlines()[0], no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
jobs = typer.Typer(help="List, show or cancel jobs. Alone it lists.", invoke_without_command=True)
app.add_typer(jobs, name="jobs")

out, err = Console(highlight=False), Console(stderr=True, highlight=False)

_URL = "The service. Default: the one of this machine. Its key: MODELPRESS_API_KEY, else HOME/api-key."
_KEY = "A public key (PEM); may be repeated. Default: the keys of the home folder."
Url = Annotated[str | None, typer.Option("--url", envvar="MODELPRESS_URL", help=_URL)]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Into = Annotated[Path, typer.Option("--output", "-o", help="A folder, new or empty.")]


@app.command()
def up(
    port: Annotated[int | None, typer.Option(help="Where the API listens. Default: 8720.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where everything is kept. Default: MODELPRESS_HOME, else ~/.modelpress.")] = None,
) -> None:
    """Start the service and everything that it needs; Ctrl-C stops all of it."""
    for name, value in (("MODELPRESS_PORT", port), ("MODELPRESS_HOME", home)):
        if value is not None:
            os.environ[name] = str(value)  # the processes that `up` starts read it too
    settings.cache_clear()
    from app import embedded

    raise typer.Exit(embedded.up())


@app.command()
def compress(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", exists=True, help="A model: a file, an archive or a Hugging Face folder.")],
    output: Into,
    preset: Annotated[str | None, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = None,
    recipe: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help='A JSON file: {"steps": [...]}.')] = None,
    format: Annotated[str | None, typer.Option(help=f"One of: {', '.join(FORMATS)}. Default: what fits the recipe.")] = None,
    sanitize: Annotated[str | None, typer.Option(help="report or strip. Default: report for lossless, else strip.")] = None,
    seed: Annotated[int, typer.Option(help="For methods that draw random numbers.")] = 0,
    gate: Annotated[list[str] | None, typer.Option(help="A bound that the result must keep, e.g. max_relative_error=0.1; may be repeated.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload a model, compress it, download the result and verify its signatures."""
    if (preset is None) == (recipe is None):
        raise typer.BadParameter("give either --preset or --recipe")
    _check_empty(output)
    spec: dict[str, Any] = {"preset": preset} if preset else {"recipe": _recipe(recipe)}
    given = {"output": {"format": format} if format else None, "sanitize": sanitize, "gates": _gates(gate or []), "seed": seed}
    spec |= {k: v for k, v in given.items() if v}
    with Client(url) as client, bars(err) as shown:
        size = sum(p.stat().st_size for p in source.rglob("*") if p.is_file()) if source.is_dir() else source.stat().st_size
        artifact = client.upload(source, progress=byte_bar(shown, "upload", size))
        job = client.submit(artifact["id"], **spec)
        job = client.wait(job["id"], job_bar(shown))
        result = client.artifact(job["output"])
        client.download(result["id"], output, byte_bar(shown, "download", result["size"]))
        verified = verify_folder(output, client.public_keys(), byte_bar(shown, "verify", result["size"]))
    if as_json:
        return _print_json({"job": job, "artifact": result, "key_id": verified.key_id, "folder": str(output)})
    ratio = size / max(1, result["size"])
    out.print(f"{output}: {result['format']}, {result['size']:,} bytes of {size:,} ({ratio:.3f} to 1), signed by key {verified.key_id[:16]}")


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
        return _print_json(found)
    table = Table("id", "state", "stage", "output", "error")
    for job in found:
        table.add_row(job["id"], job["state"], _stage(job), job.get("output") or "", (job.get("error") or {}).get("type", ""))
    out.print(table)


@jobs.command("show")
def show_job(ident: Annotated[str, typer.Argument(metavar="ID")], url: Url = None) -> None:
    """Everything about one job, as JSON."""
    with Client(url) as client:
        _print_json(client.job(ident))


@jobs.command("cancel")
def cancel_job(ident: Annotated[str, typer.Argument(metavar="ID")], url: Url = None, as_json: Json = False) -> None:
    """Stop a job that has not ended."""
    with Client(url) as client:
        job = client.cancel(ident)
    _print_json(job) if as_json else out.print(f"{job['id']}: {job['state']}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A downloaded result with its model.sig.")],
    key: Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False, help=_KEY)] = None,
    as_json: Json = False,
) -> None:
    """Check every file of a result against its signatures, offline."""
    keys = [signing.parse_public(p.read_bytes(), str(p)) for p in key] if key else list(signing.public_keys(settings().keys).values())
    if not keys:
        raise InvalidSignature(f"{settings().keys} holds no public key: give one with --key (`modelpress keys --pem` prints it)")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    with bars(err) as shown:
        done = verify_folder(folder, keys, byte_bar(shown, "verify", size))
    if as_json:
        return _print_json({"verified": True, "key_id": done.key_id, "checked": done.checked, "files": done.files})
    out.print(f"{folder}: {len(done.files)} files hold ({', '.join(done.checked)}), signed by key {done.key_id}")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", exists=True, help="A packed file, or the folder of a result.")],
    output: Into,
    as_json: Json = False,
) -> None:
    """Turn a result back into the original files, without a service."""
    _check_empty(output)
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
    _print_json({"folder": str(output), "files": files}) if as_json else out.print(f"{output}: {len(files)} files")


@app.command()
def keys(
    pem: Annotated[bool, typer.Option("--pem", help="Print the newest key as PEM, for openssl and model_signing.")] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help="Replace the signing key in the home folder; the old public keys stay.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """The public keys of the service, the newest first."""
    if rotate:
        signing.rotate(settings().keys)
        found = list(signing.public_keys(settings().keys).values())
    else:
        with Client(url) as client:
            found = client.public_keys()
    if pem:
        return typer.echo(signing.public_pem(found[0]), nl=False)
    _print_json(signing.jwks(found)) if as_json else out.print("\n".join(map(signing.key_id, found)))


def _recipe(path: Path) -> dict:
    recipe = parse_json(path.read_bytes())
    return parse_recipe(recipe, "").model_dump(mode="json", exclude_unset=True)


def _gates(pairs: list[str]) -> dict:
    try:
        return {name: json.loads(value) for name, value in (p.split("=", 1) for p in pairs)}
    except ValueError:
        raise InvalidJobSpec(f"a gate is NAME=NUMBER, not one of {', '.join(pairs)}", pointer="/gates") from None


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(f"{folder} is not a new or empty folder", param_hint="--output")


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


def _stage(job: dict) -> str:
    progress = job.get("progress") or {}
    return f"{progress.get('stage', '')} {progress['fraction']:.0%}" if progress.get("fraction") is not None else progress.get("stage") or ""


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def main() -> None:
    try:
        app()
    except ModelpressError as e:
        at = f" (at {e.pointer})" if e.pointer else ""
        typer.echo(f"{e.title}: {e.detail}{at} [{e.type}]", err=True)
        sys.exit(3 if isinstance(e, Unavailable) else 1)


if __name__ == "__main__":
    main()
