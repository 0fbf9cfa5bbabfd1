"""A recipe that changes values: every tensor through the steps that its plan names, one at a time, then the result read back and compared."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from isal.isal_zlib import crc32

from app.errors import AccountingMismatch
from app.recipe import Recipe
from worker import report
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.methods import apply, plan, prepare
from worker.output import open_writer, reopen
from worker.plan import TensorPlan
from worker.progress import Emit, Progress
from worker.statistics import Statistics, check


_BESIDE = 64 << 20  # bytes of a tensor that may wait to be written while the next one is computed


class ModelWide(Protocol):
    """What works on the model as a whole before tensors are written (`worker.recovering`, `worker.reconstructing`)."""

    section: str
    """Of the report, where `told` goes."""
    told: Any

    def work(self, checkpoint: Checkpoint, recipe: Recipe, plans: dict[str, TensorPlan], device: torch.device) -> None: ...
    def encode(self, plan: TensorPlan, original: torch.Tensor) -> Encoded | None:
        """None for a tensor that goes through its own steps alone."""


def compress(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: str,
    files: Path,
    emit: Emit,
    device: torch.device,
    statistics: Statistics | None = None,
    ahead: ModelWide | None = None,
) -> tuple[list[dict], dict]:
    """The input is mapped and the output written as it is made, so that memory holds one tensor, or two where they are small, not the model: one is written while the errors of it are
    summed and the next is computed.

    Args:
        statistics: of the gradients, for the steps that ask for them; held against the model here.
        ahead: works on the model first; what it has of a tensor is written in the place of what the tensor's steps alone would make of it.

    Returns:
        the rows of the report, and its load proof.

    Raises:
        InputRefused: see `worker.statistics.check`.
    """
    plans = plan(checkpoint, recipe, output)
    if recipe.needs_gradients:
        check(statistics or Statistics([]), checkpoint, [n for n, p in plans.items() if any(getattr(s, "needs_gradients", False) for s in p.steps)])
    costs = {name: (tensor_plan.check_cost, tensor_plan.cost) for name, tensor_plan in plans.items()}
    progress = Progress(emit, "compress", sum(s.nbytes for s in checkpoint.tensors.values()), sum(map(sum, costs.values())))
    prepare(checkpoint, recipe, plans, device, lambda checked: progress.add(0, costs[checked.spec.name][0]), statistics)
    if ahead:
        ahead.work(checkpoint, recipe, plans, device)
    writer = open_writer(output, files, checkpoint, plans)
    rows, sums, last = [], {}, None
    with ThreadPoolExecutor(1, "write") as pool:
        for name, tensor_plan in plans.items():
            original = checkpoint.read(name)
            encoded = ahead.encode(tensor_plan, original) if ahead else None
            encoded = encoded or apply(tensor_plan, original, device)
            if last:
                last.settle()
            last = _Written(pool.submit(writer.write, encoded), report.encoded_row(original, encoded, 0, tensor_plan.experts))
            rows.append(last.row)
            sums[name] = checksum(encoded.dense)
            if encoded.spec.nbytes > _BESIDE:
                last.settle()
            if name in checkpoint.shrunk:
                last.settle()
                rows[-1] = checkpoint.shrunk[name].row(last.row, encoded)
            progress.add(encoded.spec.nbytes, costs[name][1])
        if last:
            last.settle()
    writer.finish()
    rows += report.leftover_rows(checkpoint, stored=False, kept=getattr(writer, "kept", lambda name: None))
    return rows, read_back(output, files, rows, sums, emit)


@dataclass(frozen=True)
class _Written:
    """A tensor on its way to the disk, and its row of the report, which lacks the bytes that it takes until it is settled."""

    size: Future[int]
    row: dict

    def settle(self) -> None:
        """Wait for it. Raises what the writer does."""
        self.row["bytes_after"] = self.size.result()


def checksum(tensor: torch.Tensor) -> tuple:
    """dtype, shape and the CRC-32 of a tensor's bytes (row-major)."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), crc32(data.numpy())


def read_back(output: str, files: Path, rows: list[dict], sums: dict[str, tuple], emit: Emit) -> dict:
    """Open the result with its reader and hold every tensor against what was meant: dtype, shape, bytes stored and values.

    Raises:
        AccountingMismatch: naming the tensor.
    """
    progress = Progress(emit, "verify", sum(r["bytes_before"] for r in rows))
    with reopen(output, files) as result:
        for r in (r for r in rows if r["name"] in sums):
            name = r["name"]
            if (got := checksum(result.read(name))) != sums[name]:
                raise AccountingMismatch(f"tensor {name!r} reads back as {got}, written as {sums[name]}")
            if (stored := result.stored_bytes(name)) != r["bytes_after"]:
                raise AccountingMismatch(f"tensor {name!r} takes {stored} bytes, expected {r['bytes_after']}")
            progress.add(r["bytes_before"])
        return {"reader": result.reader, "tensors": len(sums), "proof": "every tensor read back; its bytes are those that the report measures"}
