"""What a job says of its result: a row for every tensor, errors, totals, versions. Nothing is left unaccounted for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import platform
from collections.abc import Callable, Iterable

import torch

from app.errors import AccountingMismatch
from worker.checkpoint import Checkpoint, TensorSpec
from worker.devices import describe
from worker.encoded import Codebook, Encoded
from worker.kernels import native

ACTIONS = ("quantized", "pruned", "encoded", "copied", "dropped")
_BLOCK = 1 << 20  # elements compared at a time: two float64 blocks are 16 MiB


def errors(original: torch.Tensor, decoded: torch.Tensor) -> dict:
    """How far `decoded` is from `original`, both of one shape.

    Returns:
        `relative_error` |w - w'| / |w| (Frobenius), `sqnr_db` 20 log10 of its inverse (None when it is 0), `cosine`, `sparsity` (share of zeros
        of `decoded`). A tensor of zeros that stays so has error 0 and cosine 1. Accumulated in float64.
    """
    return _figures(_sums(original, decoded), original.numel())


def _sums(original: torch.Tensor, decoded: torch.Tensor) -> tuple[float, float, float, float, int]:
    """|w|^2, |w - w'|^2, |w'|^2, w w', and the zeros of w'."""
    a, b = original.reshape(-1), decoded.reshape(-1)
    if a.dtype == b.dtype and native.takes(a, b):
        return native.compare(a, b)
    signal = noise = energy = dot = 0.0
    zeros = 0
    for start in range(0, a.numel(), _BLOCK):
        x, y = a[start : start + _BLOCK].double(), b[start : start + _BLOCK].double()
        signal += torch.dot(x, x).item()
        energy += torch.dot(y, y).item()
        dot += torch.dot(x, y).item()
        zeros += int((y == 0).sum())
        noise += torch.dot(d := x - y, d).item()
    return signal, noise, energy, dot, zeros


def _relative(signal: float, noise: float) -> float:
    return math.sqrt(noise / signal) if signal > 0 else (0.0 if noise == 0 else math.inf)


def _figures(sums: tuple[float, float, float, float, int], count: int) -> dict:
    signal, noise, energy, dot, zeros = sums
    relative = _relative(signal, noise)
    norm = math.sqrt(signal) * math.sqrt(energy)
    return {
        "relative_error": _finite(relative),
        "sqnr_db": round(-20 * math.log10(relative), 3) if 0 < relative < math.inf else None,
        "cosine": _finite(min(1.0, dot / norm) if norm > 0 else float(signal == energy)),
        "sparsity": zeros / count if count else 0.0,
    }


def errors_of_experts(original: torch.Tensor, decoded: torch.Tensor) -> dict:
    """`errors` of all experts together, both [E, ...], and `experts`: {`count`, `worst`: the one of the largest relative error, `relative_error`: that one's}."""
    each = [_sums(a, b) for a, b in zip(original, decoded, strict=True)]
    worst, error = max(enumerate(_relative(*sums[:2]) for sums in each), key=lambda one: one[1])
    told = {"count": len(each), "worst": worst, "relative_error": _finite(error)}
    return _figures(tuple(map(sum, zip(*each, strict=True))), original.numel()) | {"experts": told}


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def row(spec: TensorSpec, action: str, bytes_after: int, *, reason: str | None = None, notes: Iterable[str] = (), **figures) -> dict:
    """One line of the accounting."""
    out = {"name": spec.name, "action": action, "dtype": spec.dtype, "shape": list(spec.shape), "bytes_before": spec.nbytes, "bytes_after": bytes_after}
    return out | figures | ({"reason": reason} if reason else {}) | ({"notes": list(notes)} if notes else {})


def encoded_row(original: torch.Tensor, encoded: Encoded, bytes_after: int, experts: int | None = None) -> dict:
    """The row of a tensor that went through the recipe, with its errors where its values changed.

    Args:
        experts: that it holds, None where it is no such tensor.
    """
    changed = encoded.action in ("quantized", "pruned") or not (encoded.dense is original or torch.equal(encoded.dense, original))  # trained, for one
    figures = (errors_of_experts if experts else errors)(original, encoded.dense) if changed else {"relative_error": 0.0}
    if encoded.quantized is not None:
        q = encoded.quantized
        num_bits, kind = (q.num_bits, "codebook") if isinstance(q, Codebook) else (q.params.num_bits, q.params.type)
        figures |= {"num_bits": num_bits, "type": kind, "strategy": q.params.strategy, "group_size": q.group_size}
        figures |= {"scale_bits": q.params.scale_bits} if q.params.scale_bits else {}
    return row(encoded.spec, encoded.action, bytes_after, reason=encoded.reason, notes=encoded.notes, **figures)


def account(checkpoint: Checkpoint, rows: list[dict]) -> None:
    """Every tensor of the input has exactly one row, of a known action, with a reason where nothing was done to it.

    Raises:
        AccountingMismatch: naming the tensor.
    """
    seen = {}
    for r in rows:
        if r["name"] in seen:
            raise AccountingMismatch(f"tensor {r['name']!r} is accounted for twice")
        if r["action"] not in ACTIONS or (r["action"] in ("copied", "dropped") and not r.get("reason")):
            raise AccountingMismatch(f"tensor {r['name']!r} has action {r['action']!r} and no reason")
        seen[r["name"]] = r
    expected = {*checkpoint.tensors, *checkpoint.aliases, *(d.name for d in checkpoint.dropped)}
    if missing := expected - seen.keys():
        raise AccountingMismatch(f"{len(missing)} tensors are not accounted for, {min(missing)!r} first")
    if extra := seen.keys() - expected:
        raise AccountingMismatch(f"{len(extra)} tensors came from nowhere, {min(extra)!r} first")


def leftover_rows(checkpoint: Checkpoint, *, stored: bool, kept: Callable[[str], int | None] = lambda name: None) -> list[dict]:
    """Rows of what has no bytes of its own: tied names, and what is not carried.

    Args:
        stored: the whole files are kept (lossless), so nothing is dropped.
        kept: name -> bytes of what is carried nevertheless.
    """
    rows = []
    for alias, name in checkpoint.aliases.items():
        spec = checkpoint.tensors[name]
        tied = TensorSpec(alias, spec.dtype, spec.shape, 0, spec.file)
        rows.append(row(tied, "encoded" if stored else "copied", 0, reason=f"tied to {name}, stored once", relative_error=0.0))
    for d in checkpoint.dropped:
        lost = TensorSpec(d.name, "", (), d.nbytes, "")
        if not stored and (nbytes := kept(d.name)) is not None:
            rows.append(row(lost, "copied", nbytes, reason="carried with the result"))
            continue
        reason = f"kept with the file ({d.reason})" if stored else d.reason
        rows.append(row(lost, "encoded" if stored else "dropped", 0, reason=reason))
    return rows


def totals(rows: list[dict], files: dict[str, int], bytes_before: int) -> dict:
    """Sums over the rows and the files of the result. `relative_error` is the mean over changed tensors, weighted by their elements."""
    after = sum(files.values())
    changed = [r for r in rows if r["action"] in ("quantized", "pruned") and r.get("relative_error") is not None]
    worst = max(changed, key=lambda r: r["relative_error"], default=None)
    elements = sum(math.prod(r["shape"]) for r in changed)
    mean = sum(r["relative_error"] * math.prod(r["shape"]) for r in changed) / elements if elements else 0.0
    return {
        "tensors": len(rows),
        "actions": {a: n for a in ACTIONS if (n := sum(r["action"] == a for r in rows))},
        "bytes_before": bytes_before,
        "bytes_after": after,
        "tensor_bytes_before": sum(r["bytes_before"] for r in rows),
        "tensor_bytes_after": sum(r["bytes_after"] for r in rows),
        "ratio": round(bytes_before / after, 4) if after else None,
        "relative_error": mean,
        "max_relative_error": worst and {"tensor": worst["name"], "value": worst["relative_error"]},
        "files": files,
    }


def environment(device: torch.device, runs: bool = False) -> dict:
    """The versions that a result depends on, and what computed it with how many threads.

    Args:
        runs: whether the model was run on data, by what is installed of the libraries that have its code.
    """
    packages = ("modelpress", "torch", "numpy", "safetensors", "zstandard", *(p for p in ("transformers", "tokenizers") if runs and importlib.util.find_spec(p)))
    machine = {"machine": platform.machine(), "device": describe(device), "threads": torch.get_num_threads()}
    return {"python": platform.python_version()} | machine | {p: importlib.metadata.version(p) for p in packages}
