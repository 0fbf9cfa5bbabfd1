"""The load proof: open a result with the library that its users will use, in a jail of its own.

    inp/files/       the result, read-only
    inp/report.json  as the pipeline wrote it
    out/report.json  the same, with what transformers or torch.export said

Of folders only those with a config.json of a known architecture are tried; `trust_remote_code` is never on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from app.errors import LoadProofFailed
from app.memory import PROOF_LIMIT


def run(inp: Path, out: Path, spec: dict, emit: Callable[[dict], None]) -> None:
    """Load `inp/files` and add the outcome to the report.

    Raises:
        LoadProofFailed: the library refuses the result, or finds tensors missing, left over or of another shape.
    """
    report = json.loads((inp / "report.json").read_text())
    size = sum(t["bytes_before"] for t in report["tensors"])
    emit({"event": "progress", "stage": "prove", "fraction": 0.0, "bytes_done": 0, "bytes_total": size})
    library = "torch.export" if report["output"]["format"] == "pt2" else "transformers"
    if size > PROOF_LIMIT:
        proof = {"loaded": False, "reason": f"{size} bytes of weights, the proof stops at {PROOF_LIMIT}"}
    elif library == "torch.export":
        from worker.program_proof import prove

        proof = prove(next((inp / "files").glob("*.pt2")))
    else:
        folder = min((inp / "files").rglob("config.json"), key=lambda p: len(p.parts)).parent
        proof = load(folder, {t["name"] for t in report["tensors"]})
    report["load_proof"][library] = proof
    (out / "report.json").write_text(json.dumps(report, allow_nan=False))


def load(folder: Path, names: set[str]) -> dict:
    """`from_pretrained` by the architecture that config.json names.

    Args:
        names: the tensors that the original model had: a missing one is an error, one that the original lacked as well is not.

    Returns:
        `{loaded, library, version, class}`, or `{loaded: False, reason}` for an architecture that transformers does not know.

    Raises:
        LoadProofFailed: see `run`.
    """
    import torch

    try:
        import transformers
    except ModuleNotFoundError:
        return {"loaded": False, "reason": "transformers is not installed here (the extra `proof`)"}
    config = json.loads((folder / "config.json").read_text())
    cls = _model_class(transformers, config)
    if cls is None:
        return {"loaded": False, "reason": f"transformers {transformers.__version__} knows neither {config.get('architectures')} nor {config.get('model_type')!r}"}
    transformers.logging.set_verbosity_error()
    try:
        model, info = cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True)
    except Exception as e:  # whatever the library raises is its verdict on the folder
        raise LoadProofFailed(f"{cls.__name__} does not load the result: {type(e).__name__}: {str(e)[:500]}") from e
    missing = sorted(k for k in info["missing_keys"] if k in names or f"{model.base_model_prefix}.{k}" in names or k.removeprefix(f"{model.base_model_prefix}.") in names)
    for what, keys in (("missing", missing), ("mismatched", info["mismatched_keys"])):
        if keys:
            raise LoadProofFailed(f"{cls.__name__} finds {len(keys)} tensors {what}: {', '.join(map(str, list(keys)[:3]))}")
    bad = [n for n, p in model.named_parameters() if p.is_floating_point() and not torch.isfinite(p.sum(dtype=torch.float64))]
    if scales := [n for n in bad if n.endswith("_scale")]:
        raise LoadProofFailed(f"{cls.__name__} has scales that are not finite: {', '.join(scales[:3])}")
    return {
        "loaded": True,
        "library": "transformers",
        "version": transformers.__version__,
        "class": cls.__name__,
        "unexpected_keys": sorted(info["unexpected_keys"])[:20],
        "non_finite": bad[:20],
    }


def _model_class(transformers, config: dict):
    """The first architecture named, else AutoModel where it knows the model type."""
    for name in config.get("architectures") or []:
        if isinstance(name, str) and name.isidentifier() and issubclass(getattr(transformers, name, type(None)), transformers.PreTrainedModel):
            return getattr(transformers, name)
    return transformers.AutoModel if config.get("model_type") in transformers.CONFIG_MAPPING else None


def prove(inp: Path, out: Path, spec: dict, emit: Callable[[dict], None]) -> None:
    """The child's entry: `run`, ended by one final event."""
    from worker.__main__ import run as child

    child(inp, out, spec, emit, work=run)
