"""The child that does the work, and the same as a tool: `python -m worker IN OUT --recipe r.json`, with `--gradients`, `--calibration` and `--labels`
where the recipe goes by data; with `--estimate` for OUT it only tells.

It has no database, no keys and no network. The service calls `run` in a jail; a user calls `main`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from app import budget
from app.errors import JobFailure, ModelpressError, NoSpace, NotEstimable, OutOfMemory
from app.job_spec import COMPANIONS, PRESETS, parse_job
from app.local import has_config, input_kind, is_program
from app.steps import KINDS
from app.strict import parse_json
from worker import estimating, offline, pipeline

ANY_ID = "00000000-0000-0000-0000-000000000000"  # a spec names its input by id; here it is a path
_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|std::bad_alloc|can't start new thread")  # as torch and Python say it


def run(inp: Path, out: Path, spec: dict, emit: Callable[[dict], None], work: Callable = pipeline.run) -> None:
    """Run `work` and end with exactly one final event: `done`, or `failed` with a problem document.

    Anything else that ends the process (a signal, an error that is not ours) is a crash, which the worker tries again.
    """
    try:
        work(inp, out, spec, emit)
    except ModelpressError as e:
        emit({"event": "failed", "problem": e.problem()})
    except (MemoryError, OSError, RuntimeError) as e:
        if (failure := exhausted(e)) is None:
            raise
        emit({"event": "failed", "problem": failure.problem()})
    else:
        emit({"event": "done"})


def exhausted(error: Exception) -> JobFailure | None:
    """The failure that `error` means when memory (torch says so in a RuntimeError) or the disk has run out, else None."""
    code = getattr(error, "errno", None)
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory("the job ran out of the GPU's memory")
    if isinstance(error, MemoryError) or code == errno.ENOMEM or (type(error) is RuntimeError and _NO_MEMORY.search(str(error))):
        return OutOfMemory("the job ran into the memory limit of its process")
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace("the result or its intermediate files do not fit the scratch disk")
    return None


def resolve(args: argparse.Namespace) -> dict:
    """The spec of an offline run, by the same rules as `POST /v1/jobs`."""
    body: dict = {"input": ANY_ID, "sanitize": args.sanitize} if args.sanitize else {"input": ANY_ID}
    if args.preset:
        body["preset"] = args.preset
    else:
        recipe = parse_json(Path(args.recipe).read_bytes())
        body["recipe"] = recipe["recipe"] if isinstance(recipe, dict) and "recipe" in recipe else recipe
    if args.format:
        body["output"] = {"format": args.format}
    if args.budget:
        body["budget"] = budget.given(args.budget)
    body |= {"seed": args.seed} | {role: ANY_ID for role in COMPANIONS if getattr(args, role)}
    kind = args.kind or input_kind(args.input, body.get("recipe"), args.preset)
    if args.estimate and kind != "model":
        raise NotEstimable(f"what a job on {kind} gives is known once each of its trials is made; a sample of them tells")
    return parse_job(body, has_config(args.input), complete=not args.estimate, program=is_program(args.input), kind=kind).model_dump(mode="json")


def place(inp: Path, work: Path, role: str = "in") -> Path:
    """The folder that a stage reads: the input itself, or one that holds nothing but the input file."""
    if inp.is_dir():
        return inp
    folder = work / role
    folder.mkdir()
    (folder / inp.name).symlink_to(inp.resolve())
    return folder


def main(argv: list[str] | None = None) -> int:
    """0: done. 1: refused or failed, with one line on stderr. 2: usage."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Compress or restore a model, images or a data set without a service.")
    parser.add_argument("input", type=Path, help="a model file, an image, a data set, an archive, or a folder of them")
    parser.add_argument("output", type=Path, nargs="?", help="a folder, new or empty")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--recipe", help="a JSON file: {\"steps\": [...]}")
    which.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--kind", choices=KINDS, help="of the input; default: what the recipe is for, else what its files are")
    parser.add_argument("--budget", action="append", help="with --preset auto: {\"ratio\": 4}, or ratio=4; may be repeated")
    parser.add_argument("--format", help="packed, safetensors, compressed-tensors or pt2, of a model")
    parser.add_argument("--sanitize", choices=("report", "strip"))
    parser.add_argument("--seed", type=int, default=0, help="for methods that draw random numbers")
    parser.add_argument("--gradients", type=Path, help="a safetensors file with the model's tensor names, or a folder of them")
    parser.add_argument("--calibration", type=Path, help="data to run the model on: .txt, .jsonl, .npy or .npz")
    parser.add_argument("--labels", type=Path, help="what it should say to it: .txt, .jsonl, .npy or .npz")
    parser.add_argument("--codec", type=Path, help="of images: the result of a job with train_codec, for test_codec and the candidate learned")
    parser.add_argument("--events", action="store_true", help="progress as JSON lines on stdout")
    parser.add_argument("--estimate", action="store_true", help="make nothing: print as JSON what it would give and cost")
    parser.add_argument("--rate", type=float, help="for --estimate: bytes of input a second")
    args = parser.parse_args(argv)
    given = {role: path for role in COMPANIONS if (path := getattr(args, role))}
    if missing := next((p for p in (args.input, *given.values()) if not p.exists()), None):
        parser.error(f"{missing} does not exist")
    if args.estimate == (args.output is not None):
        parser.error("give either an output or --estimate")
    if args.output and args.output.exists() and any(args.output.iterdir()):
        parser.error(f"{args.output} is not empty")
    final: dict = {}

    def emit(event: dict) -> None:
        final.update(event)
        if args.events:
            print(json.dumps(event), flush=True)

    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a config.json may name models that are elsewhere
    work = Path(tempfile.mkdtemp(prefix="modelpress-")) if args.estimate else args.output / ".work"
    work.mkdir(parents=True, exist_ok=args.estimate)
    try:
        spec, placed = resolve(args), place(args.input, work)
        beside = {"beside": {role: str(place(path, work, role)) for role, path in given.items()}}
        if args.estimate:
            run(placed, work, spec, emit, partial(estimating.run, rate=args.rate))
        else:
            run(placed, work, spec | beside, emit, offline.run)
        for path in [*(work / "files").glob("*"), work / "report.json"]:
            if path.exists() and (final["event"] == "done" or path.name == "report.json"):
                path.rename(args.output / path.name)
    except ModelpressError as e:
        final = {"event": "failed", "problem": e.problem()}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if final["event"] == "failed":
        problem = final["problem"]
        at = f" (at {problem['pointer']})" if "pointer" in problem else ""
        print(f"{problem['title']}: {problem['detail']}{at} [{problem['type']}]", file=sys.stderr)
        return 1
    if args.estimate:
        print(json.dumps(final["estimate"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
