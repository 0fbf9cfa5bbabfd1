"""`auto` beside fixed recipes: at each budget what it found, and the best of the fixed recipes that take no more bytes, both on data that neither has seen.

    .venv/bin/python -m benchmarks.auto [--models minilm stories] [--data DIR] [--budgets 2.2 3 4 ...] [--fixed WORD ...] [--rows FILE]

A budget is bits a weight, all stored ones counted. Every result is written as `packed`, restored, and scored as restored (`benchmarks.subjects`: test sentences
and the held-out half of the stories). Bytes are those of the matrices that are compressed. A fixed recipe beats `auto` where it is within the budget and loses
less by more than the noise: twice the standard error of what it loses less, sample by sample of the test data.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.fixed import FIXED
from benchmarks.ours import DONE
from benchmarks.row import measured
from benchmarks.subjects import Subject
from benchmarks.table import Table, arguments, calibrated, restored, subjects

ERRORS = 2.0  # standard errors
BUDGETS = (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0)


class Rows:
    """What was worked out of one model, by name, kept in a file from run to run. Args: path: None keeps it for this run alone."""

    def __init__(self, path: Path | None, model: str):
        self.path, self.model = path, model
        self.found: dict[str, dict] = self._read().get(model, {})

    def _read(self) -> dict:
        return json.loads(self.path.read_text()) if self.path and self.path.exists() else {}

    def add(self, name: str, row: dict) -> dict:
        self.found[name] = row
        if self.path:
            self.path.write_text(json.dumps(self._read() | {self.model: self.found}))
        return row


def bits_of(report: dict) -> tuple[float, int]:
    """Bits a weight of what was changed, and its bytes."""
    rows = [r for r in report["tensors"] if r["action"] in ("quantized", "pruned")]
    nbytes = sum(r["bytes_after"] for r in rows)
    return 8 * nbytes / sum(math.prod(r["shape"]) for r in rows), nbytes


def scored(subject: Subject, out: Path, took: dict | None = None) -> dict:
    """Args: took: None of a search, which tells its own seconds."""
    report = json.loads((out / "report.json").read_text())
    bits, nbytes = bits_of(report)
    with restored(out) as weights:
        score = subject.score(weights)
    took = {"seconds": took["seconds"], "memory": took["memory"]} if took else {"seconds": report["search"]["seconds"]["all"]}
    return {"bits": bits, "bytes": nbytes, "score": score, "search": report.get("search")} | took


def ahead(auto: dict, other: dict) -> float:
    """By how many standard errors another result loses less than `auto`: of the mean of the differences, sample by sample."""
    less = [a - b for a, b in zip(auto["score"]["each"], other["score"]["each"], strict=True)]
    return statistics.fmean(less) / max(statistics.stdev(less) / math.sqrt(len(less)), 1e-300)


def rival(auto: dict, budget: float, rows: dict[str, dict]) -> tuple[str, float] | None:
    """The fixed recipe that loses least of those within the budget, and by how many standard errors it is ahead. Args: budget: bits a weight."""
    fit = {name: r for name, r in rows.items() if r["bits"] <= budget}
    name = min(fit, key=lambda n: sum(fit[n]["score"]["each"]), default=None)
    return name and (name, ahead(auto, fit[name]))


def table(subject: Subject, budgets: list[float], fixed: dict[str, list[dict]], path: Path | None) -> int:
    """Prints it. Returns at how many budgets a fixed recipe beats `auto`. Args: path: where rows are kept."""
    kept, shown, column = Rows(path, subject.title.split()[0].strip(":")), Table(subject, subject.columns[:1]), subject.columns[0]
    with calibrated(subject, shown) as (root, beside):

        def show(name: str, row: dict) -> dict:
            shown.row(name, row["bits"], row["score"], row)
            return row

        for name, steps in fixed.items():
            if name not in kept.found:
                (out := root / "out").mkdir()
                took = measured("benchmarks.ours:compress", root, inp=subject.folder, out=out, beside=beside, recipe=of(subject, steps))
                kept.add(name, scored(subject, out, took))
            show(name, kept.found[name])
        names = {bits: f"auto within {bits:g} bits" for bits in budgets}
        if left := [bits for bits in budgets if names[bits] not in kept.found]:
            (out := root / "auto").mkdir()
            for i in searched(subject, root, out, beside, left):
                if (out / str(i) / "report.json").exists():
                    kept.add(names[left[i]], scored(subject, out / str(i)))
                else:
                    shown.said(names[left[i]], json.loads((out / str(i) / "refused.json").read_text()))
    rows = {name: kept.found[name] for name in fixed}
    beaten = 0
    for bits, name in ((b, n) for b, n in names.items() if n in kept.found):
        row = show(name, kept.found[name])
        took = f"the search {row['search']['seconds']['all']:.1f} s"
        if (best := rival(row, bits, rows)) is None:
            print(f"    no fixed recipe takes so few bytes; {took}", flush=True)
            continue
        other, errors = best
        beaten += errors > ERRORS
        what = f"{abs(errors):.1f} standard errors {'ahead' if errors > 0 else 'behind'}{', BEATS IT' if errors > ERRORS else ''}"
        print(f"    best fixed: {other}: {rows[other]['bits']:.3f} bits, {rows[other]['score'][column]:.4f}, {what}; {took}", flush=True)
    return beaten


def searched(subject: Subject, root: Path, out: Path, beside: dict, budgets: list[float]) -> Iterator[int]:
    """Budgets, by their place, as soon as what was found is in the folder of that name below `out`: so a run that is broken off loses little."""
    asked = [{"avg_bits": bits} for bits in budgets]
    given = {"inp": subject.folder, "out": out, "beside": beside, "recipe": of(subject, [{"method": "auto"}]), "budgets": asked}
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(measured, "benchmarks.ours:search", root, **given)
        for i in range(len(budgets)):
            while not (there := (out / str(i) / DONE).exists()) and not work.done():
                time.sleep(0.2)
            if not there:
                break
            yield i
        work.result()


def of(subject: Subject, steps: list[dict]) -> dict:
    return {"steps": [step | {"targets": subject.targets, "ignore": subject.ignore} for step in steps]}


def main() -> int:
    parser = arguments()
    parser.add_argument("--budgets", nargs="*", type=float, default=list(BUDGETS), metavar="BITS")
    parser.add_argument("--fixed", nargs="+", default=[], metavar="WORD", help="the fixed recipes alone whose name has one of the words")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="where rows are kept; those that are there already are not worked out again")
    args = parser.parse_args()
    fixed = {name: steps for name, steps in FIXED.items() if not args.fixed or any(word in name for word in args.fixed)}
    beaten = sum(table(subject, args.budgets, fixed, args.rows) for subject in subjects(args))
    print(f"\n{beaten} budgets at which a fixed recipe beats auto by more than the noise")
    return int(beaten > 0)


if __name__ == "__main__":
    sys.exit(main())
