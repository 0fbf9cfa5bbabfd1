"""What the tables of `benchmarks.quality` and `benchmarks.auto` have in common: their head, their rows, the data that rows are worked out from."""

from __future__ import annotations

import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.row import measured
from benchmarks.subjects import SUBJECTS, Subject
from worker.reloaded import Weights, reloaded

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_NAME = 44


class Table:
    """Of one subject, printed row by row. Args: columns: of its score."""

    def __init__(self, subject: Subject, columns: tuple[str, ...]):
        self.columns = columns
        heads = "".join(f"{c.replace('_agreement', ''):>12}" for c in columns)
        print(f"\n{subject.title}\n{'row':{_NAME}}{'bits/weight':>12}{heads}{'seconds':>9}{'CPU s':>8}{'MB':>7}", flush=True)

    def row(self, name: str, bits: float, score: dict, took: dict | None = None) -> None:
        """Args: took: `seconds`, and `memory` and `cpu` where they are told."""
        figures = "".join(f"{'-':>12}" if score[c] is None else f"{score[c]:12.4f}" if score[c] < 1e6 else f"{score[c]:12.3g}" for c in self.columns)
        print(f"{name:{_NAME}}{bits:12.3f}{figures}{_took(took)}", flush=True)

    def done(self, name: str, took: dict) -> None:
        """What was done once for many rows."""
        print(f"{name:{_NAME}}{'':{12 + 12 * len(self.columns)}}{_took(took)}", flush=True)

    def said(self, name: str, what: object) -> None:
        print(f"{name:{_NAME}}  {what}", flush=True)


def _took(took: dict | None) -> str:
    if not took:
        return ""
    cpu = f"{took['cpu']:8.1f}" if "cpu" in took else f"{'-':>8}"
    memory = f"{took['memory'] / 1e6:7.0f}" if "memory" in took else f"{'-':>7}"
    return f"{took['seconds']:9.1f}{cpu}{memory}"


@contextmanager
def calibrated(subject: Subject, table: Table) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder to work in, and what is beside a job: the subject's calibration data and what their gradients came to."""
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        root = Path(d)
        (data := root / "data").mkdir()
        (data / subject.calibration.name).write_bytes(subject.calibration.read_bytes())
        (root / "calibrated").mkdir()
        took = measured("benchmarks.ours:calibrate", root, inp=subject.folder, out=root / "calibrated", beside={"calibration": str(data)})
        table.done("gradients of the calibration data, once", took)
        yield root, {"statistics": str(root / "calibrated" / "statistics.safetensors"), "calibration": str(data)}


@contextmanager
def restored(out: Path) -> Iterator[Weights]:
    """The weights of a `packed` result, which is then removed."""
    with reloaded("packed", out / "files", out, lambda nbytes: None) as (_, checkpoint):
        yield Weights(checkpoint)
    shutil.rmtree(out)


def arguments() -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--data", type=Path, default=DATA)
    return parser


def subjects(args: Namespace) -> Iterator[Subject]:
    """Those that were asked for, as far as their data are there."""
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as work:
        for name in args.models:
            try:
                yield SUBJECTS[name](args.data, Path(work))
            except FileNotFoundError as e:
                print(f"{name}: {e.filename} is not there; --data names another folder")
