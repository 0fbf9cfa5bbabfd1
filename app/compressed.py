"""What a checkpoint of compressed-tensors 0.20 consists of: the parts of every weight, and a config that says how to read them.

    pack-quantized    weight_packed i32 [O, ceil(I*b/32)]   weight_scale [O, G]   weight_shape i64 [2]   (weight_zero_point i32 [ceil(O*b/32), G])
    int-quantized     weight i8 [O, I]                      weight_scale [O, 1]                           8 bits with dynamic activations
    float-quantized   weight f8e4m3fn [O, I]                weight_scale [O, 1]                           fp8
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from app.layout import Entry
from app.outline import Model
from app.recipe import Quantize
from app.targets import Treatment

VERSION = "0.20.0"
_TIED_HEADS = ("lm_head", "proj_out", "embed_out", "cls.predictions.decoder")
"""Linear modules that have no tensor of their own when they are tied to the embeddings: a loader would invent scales for them."""


def words(inputs: int, num_bits: int) -> int:
    """int32 words of a packed row."""
    return -(-inputs * num_bits // 32)


def format_of(step: Quantize) -> str:
    if step.type == "float":
        return "float-quantized"
    return "int-quantized" if step.activations == "dynamic" else "pack-quantized"


def parts(model: Model, treatments: dict[str, Treatment]) -> dict[str, list[Entry]]:
    """Tensor name -> the entries that it becomes: quantized ones their parts, others themselves under each of their names."""
    out = {}
    for name, t in treatments.items():
        if t.quantize is not None:
            out[name] = entries(name, t.spec.shape, t.quantize, t.spec.dtype)
        else:
            tied = [a for a, target in model.aliases.items() if target == name]
            out[name] = [Entry(n, t.spec.dtype, t.spec.shape) for n in (name, *tied)]
    return out


def entries(name: str, shape: tuple[int, ...], step: Quantize, dtype: str) -> list[Entry]:
    """The parts of one quantized weight; scales have its own dtype."""
    outputs, inputs = shape
    groups = inputs // step.group_size if step.strategy == "group" else 1
    scales = (1,) if step.strategy == "tensor" else (outputs, groups)
    if format_of(step) != "pack-quantized":
        return [Entry(name, "F8_E4M3" if step.type == "float" else "I8", shape), Entry(f"{name}_scale", dtype, scales)]
    out = [
        Entry(f"{name}_packed", "I32", (outputs, words(inputs, step.num_bits))),
        Entry(f"{name}_scale", dtype, scales),
        Entry(f"{name}_shape", "I64", (2,)),
    ]
    if not step.symmetric:
        zeros = (1,) if step.strategy == "tensor" else (words(outputs, step.num_bits), groups)
        out.append(Entry(f"{name}_zero_point", "I32" if step.strategy != "tensor" else "I8", zeros))
    return out


def config_path(model: Model) -> str:
    """The config.json nearest to the root."""
    return min((f for f in model.files if PurePosixPath(f).name == "config.json"), key=lambda f: (f.count("/"), f))


def config_text(model: Model, treatments: dict[str, Treatment]) -> bytes:
    """config.json with its `quantization_config`."""
    return (json.dumps(dict(model.config) | {"quantization_config": quantization_config(model, treatments)}, indent=2) + "\n").encode()


def quantization_config(model: Model, treatments: dict[str, Treatment]) -> dict:
    """One group per scheme: the commonest is everybody's (`Linear`), the others name their modules."""
    schemes: dict[str, list[str]] = {}
    for name, t in treatments.items():
        if t.quantize is not None:
            schemes.setdefault(json.dumps(_scheme(t.quantize), sort_keys=True), []).append(name.removesuffix(".weight"))
    ordered = sorted(schemes.items(), key=lambda item: -len(item[1]))
    groups = {f"group_{i}": {"targets": ["Linear"] if i == 0 else modules} | json.loads(scheme) for i, (scheme, modules) in enumerate(ordered)}
    formats = {g["format"] for g in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": _ignored(model, treatments),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "config_groups": groups,
    }


def _ignored(model: Model, treatments: dict[str, Treatment]) -> list[str]:
    """Modules that may be Linear and stay as they are, by every name that they have."""
    names = {n: n for n in treatments} | model.aliases
    heads = set(_TIED_HEADS) if model.config.get("tie_word_embeddings", True) else set()
    return sorted({n.removesuffix(".weight") for n, t in names.items() if treatments[t].linear and treatments[t].quantize is None} | heads)


def _scheme(step: Quantize) -> dict:
    weights = {k: getattr(step, k) for k in ("num_bits", "type", "symmetric", "group_size", "strategy")} | {"dynamic": False}
    dynamic = {"num_bits": 8, "type": step.type, "symmetric": True, "group_size": None, "strategy": "token", "dynamic": True}
    return {"format": format_of(step), "weights": weights, "input_activations": dynamic if step.activations == "dynamic" else None, "output_activations": None}
