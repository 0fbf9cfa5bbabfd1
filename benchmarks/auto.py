"""`auto` beside fixed recipes: at each budget what it found, and the best of the fixed recipes that take no more bytes, both on data that neither has seen.

    .venv/bin/python -m benchmarks.auto [--models minilm stories] [--data DIR] [--budgets 2.2 3 4 ...] [--fixed N]

A budget is bits a weight, all stored ones counted. Every result is written as `packed`, restored, and scored as restored (`benchmarks.subjects`: test sentences
and the held-out half of the stories). Bytes are those of the matrices that are compressed. `seconds` of a search are beside those of one calibration pass.
A fixed recipe beats `auto` where it takes no more bytes and loses less by more than the noise: the standard error of the difference over parts of the test data
is not known here, so that 2 % of what is lost counts as noise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.quality import DATA, LOSSLESS, restored
from benchmarks.row import measured
from benchmarks.subjects import SUBJECTS, Subject

NOISE = 0.02
BUDGETS = (2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0)


def uniform(bits: int, group: int | None, *more: dict) -> list[dict]:
    shared = {"group_size": group} if group else {"strategy": "channel"}
    return [{"method": "quantize", "num_bits": bits, "scale_search": "mse"} | shared, *more]


def gptq(bits: int, *more: dict) -> list[dict]:
    (step, *_) = uniform(bits, 128)
    return [step | {"algorithm": "gptq"}, *more]


def gradient(*more: dict, **width) -> list[dict]:
    return [{"method": "quantize", "mapping": "gradient"} | width, *more]


FISHER = {"method": "prune", "saliency": "fisher", "sparsity": 0.5}
FIXED = {
    **{f"uniform {b} bits, group {g}": uniform(b, g) for b in (2, 3, 4) for g in (128, 64)},
    **{f"uniform {b} bits, group 32, coded": uniform(b, 32, LOSSLESS) for b in (2, 3, 4)},
    **{f"uniform {b} bits, row, coded": uniform(b, None, LOSSLESS) for b in (5, 6)},
    **{f"codebook {b} bits, row, coded": gradient(LOSSLESS, num_bits=b) for b in (2, 3, 4)},
    **{f"codebook, {a} bits allocated": gradient(LOSSLESS, avg_bits=a) for a in (2.1, 2.6, 3.1, 4.1)},
    **{f"gptq {b} bits, group 128": gptq(b) for b in (2, 3, 4)},
    **{f"gptq {b} bits, group 128, coded": gptq(b, LOSSLESS) for b in (2, 3, 4)},
    "prune 50 % fisher, 4 bits, group 128": [FISHER, *uniform(4, 128)],
    "prune 50 % fisher, codebook 4 bits, row": [FISHER, *gradient(num_bits=4)],
}
"""Name -> steps."""


def bits_of(report: dict) -> tuple[float, int]:
    """Bits a weight of what was changed, and its bytes."""
    rows = [r for r in report["tensors"] if r["action"] in ("quantized", "pruned")]
    count = sum(_count(r["shape"]) for r in rows)
    nbytes = sum(r["bytes_after"] for r in rows)
    return 8 * nbytes / count, nbytes


def _count(shape: list[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def scored(subject: Subject, out: Path) -> dict:
    report = json.loads((out / "report.json").read_text())
    bits, nbytes = bits_of(report)
    with restored(out) as weights:
        score = subject.score(weights)
    return {"bits": bits, "bytes": nbytes, "score": score, "lost": score["kl"] if "kl" in score else 1 - score["cosine"], "search": report.get("search")}


def table(subject: Subject, budgets: list[float], fixed: dict[str, list[dict]]) -> int:
    """Prints it. Returns at how many budgets a fixed recipe beats `auto`."""
    column = subject.columns[0]
    print(f"\n{subject.title}\n{'row':44}{'bits/weight':>12}{column:>10}{'seconds':>9}{'MB':>7}", flush=True)

    def show(name: str, row: dict, took: dict) -> None:
        print(f"{name:44}{row['bits']:12.3f}{row['score'][column]:10.4f}{took['seconds']:9.1f}{took['memory'] / 1e6:7.0f}", flush=True)

    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        root = Path(d)
        (data := root / "data").mkdir()
        (data / subject.calibration.name).write_bytes(subject.calibration.read_bytes())
        (root / "calibrated").mkdir()
        took = measured("benchmarks.ours:calibrate", root, inp=subject.folder, out=root / "calibrated", beside={"calibration": str(data)})
        print(f"{'gradients of the calibration data, once':44}{'':22}{took['seconds']:9.1f}{took['memory'] / 1e6:7.0f}", flush=True)
        beside = {"statistics": str(root / "calibrated" / "statistics.safetensors"), "calibration": str(data)}
        rows = {}
        for name, steps in fixed.items():
            steps = [step | {"targets": subject.targets, "ignore": subject.ignore} for step in steps]
            out = root / "fixed"
            out.mkdir()
            took = measured("benchmarks.ours:compress", root, inp=subject.folder, out=out, recipe={"steps": steps}, beside=beside)
            rows[name] = scored(subject, out)
            show(name, rows[name], took)
        beaten = 0
        for bits in budgets:
            out = root / "auto"
            out.mkdir()
            step = {"method": "auto", "targets": subject.targets, "ignore": subject.ignore}
            took = measured("benchmarks.ours:search", root, inp=subject.folder, out=out, recipe={"steps": [step]}, budget={"avg_bits": bits}, beside=beside)
            found = scored(subject, out)
            show(f"auto within {bits:g} bits", found, took)
            rivals = {name: r for name, r in rows.items() if r["bytes"] <= found["bytes"]}
            name = min(rivals, key=lambda n: rivals[n]["lost"], default=None)
            worse = name is not None and rivals[name]["lost"] < found["lost"] * (1 - NOISE)
            beaten += worse
            best = f"{name}: {rivals[name]['bits']:.3f} bits, {rivals[name]['score'][column]:.4f}" if name else "none takes so few bytes"
            seconds = found["search"]["seconds"]
            print(f"    best fixed: {best}{'  BEATS IT' if worse else ''}; the search {seconds['all']:.1f} s, of it measuring {seconds.get('measure', 0):.1f} s", flush=True)
    return beaten


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), metavar="BITS")
    parser.add_argument("--fixed", nargs="+", default=[], metavar="WORD", help="the fixed recipes alone whose name has one of the words")
    args = parser.parse_args()
    beaten = 0
    fixed = {name: steps for name, steps in FIXED.items() if not args.fixed or any(word in name for word in args.fixed)}
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as work:
        for name in args.models:
            try:
                subject = SUBJECTS[name](args.data, Path(work))
            except FileNotFoundError as e:
                print(f"{name}: {e.filename} is not there; --data names another folder")
                continue
            beaten += table(subject, args.budgets, fixed)
    print(f"\n{beaten} budgets at which a fixed recipe beats auto by more than the noise")
    return int(beaten > 0)


if __name__ == "__main__":
    sys.exit(main())
