"""Quality of every method beside other libraries: one table per model, all rows in one run, by one protocol, every stored bit counted.

    .venv/bin/python -m benchmarks.quality [--models minilm stories] [--data DIR] [--rows PATTERN ...] [--recover STEPS] [--peers-python PYTHON]

Our results are written as `packed`, restored, and scored as restored. DIR (../shared/data) has the models' data and protocols; a model whose data are not
there is left out. Each row is worked out in a process of its own: seconds of the work without imports, peak of its memory beyond them. `--rows` takes
those rows alone in whose name one of the patterns is found. PYTHON is that of an environment with the libraries of `benchmarks.blockwise`; what is not there is not run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from benchmarks import blockwise, peers
from benchmarks.fixed import LOSSLESS
from benchmarks.row import Broke, measured
from benchmarks.subjects import Subject, weights_of
from benchmarks.table import Table, arguments, calibrated, restored, subjects

GRIDS = {
    "nf, group 64": {"type": "nf", "group_size": 64},
    "nf, group 64, mse": {"type": "nf", "group_size": 64, "scale_search": "mse"},
    "nf, two-level 32, mse": {"type": "nf", "group_size": 32, "scale_bits": 6, "scale_search": "mse"},
    "two-level 32, mse": {"group_size": 32, "scale_bits": 6, "scale_search": "mse"},
    "two-level 64, offsets, mse": {"group_size": 64, "scale_bits": 6, "symmetric": False, "scale_search": "mse"},
    "two-level 32, offsets, mse": {"group_size": 32, "scale_bits": 6, "symmetric": False, "scale_search": "mse"},
    "float offsets, group 64, mse": {"group_size": 64, "symmetric": False, "zero_point": "float", "scale_search": "mse"},
    "hqq, group 64": {"group_size": 64, "symmetric": False, "scale_search": "hqq"},
}
GROUP = 128


def recipes(recover: int) -> Iterator[tuple[str, list[dict]]]:
    """Name -> steps. Args: recover: steps of training in the rows that have it."""
    for sparsity in (0.5, 0.7, 0.9):
        for saliency in ("magnitude", "gradient", "taylor", "fisher"):
            step = {"method": "prune", "saliency": saliency, "sparsity": sparsity, "norm": "l1"}  # taylor with l2 is fisher
            yield f"prune {sparsity:.0%} {saliency}, row", [step]
    for bits in (4, 3, 2):
        for group in (128, 64):
            yield f"uniform {bits} bits, group {group}, mse", [{"method": "quantize", "num_bits": bits, "group_size": group, "scale_search": "mse"}]
    for bits in (8, 4, 3):
        for name, fields in (("rtn", {}), ("searched", {"scale_search": "mse"}), ("gptq", {"scale_search": "mse", "algorithm": "gptq"})):
            yield f"{name} {bits} bits, row", [{"method": "quantize", "num_bits": bits} | fields]
    for bits in (4, 3, 2):
        for name, fields in GRIDS.items():
            yield f"uniform {bits} bits, {name}", [{"method": "quantize", "num_bits": bits} | fields]
    for bits in (4, 3, 2):
        yield f"gradient {bits} bits, row", [{"method": "quantize", "mapping": "gradient", "num_bits": bits}]
        yield f"gradient {bits} bits, row, coded", [{"method": "quantize", "mapping": "gradient", "num_bits": bits}, LOSSLESS]
    for average in (4.25, 3.1, 2.1):
        yield f"gradient {average} bits allocated, coded", [{"method": "quantize", "mapping": "gradient", "avg_bits": average}, LOSSLESS]
    for bits in (8, 4, 3, 2):
        for options in ({}, {"activation_order": True}, {"sequential": False}):
            gptq = {"method": "quantize", "algorithm": "gptq", "num_bits": bits, "group_size": GROUP, "scale_search": "mse"} | options
            yield f"gptq {bits} bits, group {GROUP}, mse" + "".join(f", {k}" if v else f", not {k}" for k, v in options.items()), [gptq]
    for bits in (4, 3, 2):
        yield f"awq {bits} bits, group {GROUP}, mse", [{"method": "quantize", "algorithm": "awq", "num_bits": bits, "group_size": GROUP, "scale_search": "mse"}]
        for steps in (200, 1000):
            autoround = {"method": "quantize", "algorithm": "autoround", "steps": steps, "num_bits": bits, "group_size": GROUP, "scale_search": "mse"}
            yield f"autoround {bits} bits, group {GROUP}, mse, {steps} steps", [autoround]
    for saliency in ("magnitude", "wanda", "sparsegpt"):
        for share in ({"sparsity": 0.5}, {"sparsity": 0.7}, {"mask_structure": "2:4"}):
            yield f"prune {saliency} {'2:4' if 'mask_structure' in share else format(share['sparsity'], '.0%')}", [{"method": "prune", "saliency": saliency} | share]
    if recover:
        for sparsity, saliency in ((0.7, "magnitude"), (0.7, "fisher"), (0.9, "fisher")):
            trained = {"steps": recover, "batch_size": 16}
            yield f"prune {sparsity:.0%} {saliency}, recovered", [{"method": "prune", "saliency": saliency, "sparsity": sparsity, "recover": trained}]


def others() -> Iterator[tuple[str, str, dict, str]]:
    """Name, work, its arguments, and the module that it needs."""
    for sparsity in (0.5, 0.7, 0.9):
        for scope in ("tensor", "global"):
            yield f"torch.nn.utils.prune {sparsity:.0%}, {scope}", "pruned", {"sparsity": sparsity, "scope": scope}, "torch"
    for bits in (4, 3, 2):
        yield f"hqq {bits} bits, group {peers.GROUP}", "hqq", {"num_bits": bits}, "hqq"
    for bits in (8, 4, 2):
        yield f"optimum-quanto {bits} bits, " + ("row" if bits == 8 else f"group {peers.GROUP}"), "quanto", {"num_bits": bits}, "optimum.quanto"


def learners() -> Iterator[tuple[str, str, dict, str]]:
    """The same, of the libraries that have an environment of their own (`benchmarks.blockwise`)."""
    for bits in (4, 3, 2):
        for symmetric in (True, False):
            name, options = f"{bits} bits, group {blockwise.GROUP}" + ("" if symmetric else ", offsets"), {"num_bits": bits, "symmetric": symmetric}
            yield f"llm-compressor gptq {name}", "llmcompressor", options, "llmcompressor"
            yield f"gptqmodel {name}", "gptqmodel", options, "gptqmodel"
            for steps in (200, 1000):
                yield f"auto-round {name}, {steps} steps", "autoround", options | {"steps": steps}, "auto_round"
            yield f"torchao {name}", "torchao", options | ({} if symmetric else {"algorithm": "HQQ_SCALE_ONLY"}), "torchao"
    for name, structure in (("50%", "0:0"), ("2:4", "2:4")):
        yield f"llm-compressor sparsegpt {name}", "llmcompressor_pruned", {"sparsity": 0.5, "structure": structure}, "llmcompressor"


def table(subject: Subject, wanted: list[str], recover: int, python: str | None) -> int:
    """Prints it. Returns how many rows broke."""
    broken, shown = 0, Table(subject, subject.columns)
    shown.row("the original", 32, subject.score(weights_of(subject.folder)))
    with calibrated(subject, shown) as (root, beside):
        for name, work in rows(subject, root, beside, recover, python):
            if wanted and not any(re.search(pattern, name) for pattern in wanted):
                continue
            try:
                took, weights = work()
            except Broke as e:
                broken += 1
                shown.said(name, e)
            except ModuleNotFoundError as e:
                shown.said(name, e)
            else:
                with weights as found:
                    shown.row(name, took["bits"], subject.score(found), took)
    return broken


def rows(subject: Subject, root: Path, beside: dict, recover: int, python: str | None) -> Iterator[tuple[str, Callable]]:
    """Name -> what does the work: it returns what `measured` does, and a context with the weights that came of it."""

    def ours(steps: list[dict], out: Path):
        out.mkdir()
        steps = [step | {"targets": subject.targets, "ignore": subject.ignore} for step in steps]
        took = measured("benchmarks.ours:compress", root, inp=subject.folder, out=out, recipe={"steps": steps}, beside=beside)
        return took, restored(out)

    def theirs(work: str, options: dict, module: str, python: str = sys.executable):
        if peers.missing(module, python):
            raise ModuleNotFoundError(f"{module} is not installed ({'pip install -e .[bench]' if python == sys.executable else python}): not run")
        out = root / "peer.safetensors"
        took = measured(work, root, python, out=out, names=subject.names, **options)
        return took, nullcontext(load_file(out))

    for number, (name, steps) in enumerate(recipes(recover)):
        yield name, partial(ours, steps, root / str(number))
    for name, work, options, module in others():
        yield name, partial(theirs, f"benchmarks.peers:{work}", {"source": subject.folder / "model.safetensors"} | options, module)
    for name, work, options, module in learners() if python else ():
        whole = {"source": subject.folder, "calibration": subject.calibration}
        yield name, partial(theirs, f"benchmarks.blockwise:{work}", whole | options, module, python)


def main() -> int:
    parser = arguments()
    parser.add_argument("--rows", nargs="+", default=[], metavar="PATTERN")
    parser.add_argument("--recover", type=int, default=300, metavar="STEPS", help="of training in the rows that recover; 0 leaves them out")
    parser.add_argument("--peers-python", metavar="PYTHON")
    args = parser.parse_args()
    return int(sum(table(subject, args.rows, args.recover, args.peers_python) for subject in subjects(args)) > 0)


if __name__ == "__main__":
    sys.exit(main())
