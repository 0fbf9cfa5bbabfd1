"""How large a `packed` result will be: its payloads one by one, the index, the header. What is entropy-coded is told from samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from app.changed import codes, half_scales, pruned
from app.coded import codes_payload, float_payload, payload_head, plane, raw_payload, text_bytes
from app.layout import INDEXES
from app.outline import Outline, TensorSpec
from app.recipe import Lossless, Prune, Quantize, Recipe
from app.targets import Treatment
from app.values import DRAWN_CHANGED, SAMPLED, WIDTH, Values, tops_of

NAME, REST, INDEX = "model.packed.safetensors", "modelpress.rest", "modelpress.index"
Look = Callable[[TensorSpec], Values | bytes | None]
Text = Callable[[str], bytes | None]
_INDEX_DOUBT = 0.1  # its digests and section sizes are made up
_SMALL = 8 << 20  # below it the container leaves no room behind its header
_TEXT_RATIO, _TEXT_DOUBT = 0.25, 0.6  # of text that is not at hand
_INTEGERS = 0.2  # of integers that are not at hand: positions, counters


class Size(NamedTuple):
    """Bytes, and by how many they may be off because they are entropy-coded; 0 where they are exact."""

    total: float
    margin: float = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.total + other.total, self.margin + other.margin)


def coded(total: float, doubt: float = SAMPLED) -> Size:
    return Size(total, total * doubt)


def tensor_size(t: Treatment, look: Look, threshold: int | None = None) -> Size:
    """The payload of one tensor of a lossy result."""
    spec, values = t.spec, look(t.spec)
    if isinstance(values, Values) and (step := t.step(Prune)):
        values = pruned(values, step, t.matrix_shape[1], threshold)
        values = values if values.doubt == SAMPLED else replace(values, doubt=DRAWN_CHANGED)
    if t.quantize is None:
        return dense_size(spec, values)
    return _quantized(t, t.quantize, values, entropy=t.step(Prune) is not None or t.step(Lossless) is not None)


def dense_size(spec: TensorSpec, values: Values | bytes | None) -> Size:
    """An entropy-coded tensor as it is."""
    width = max(1, spec.nbytes // max(1, math.prod(spec.shape)))
    if not spec.nbytes:
        return Size(raw_payload("int", 1, 0))
    if isinstance(values, Values):
        return coded(float_payload(values, spec.nbytes // WIDTH[spec.dtype]), values.doubt)
    if values is None:
        return coded(payload_head(1) + 12 + spec.nbytes * (_INTEGERS if width > 1 else 0.9), 1)
    planes = [values[i::width] for i in range(width)]
    count = spec.nbytes // width
    return coded(min(payload_head(1) + 12 + 5 * width + sum(plane(p, count, level=True) for p in planes), raw_payload("int", width, count)))


def raw_size(spec: TensorSpec) -> Size:
    """A tensor that no lossless step targets, in whole files: stored raw."""
    width = max(1, spec.nbytes // max(1, math.prod(spec.shape)))
    kind = "int" if spec.dtype[0] in "IUB" and spec.dtype != "BF16" else "float"
    return Size(raw_payload(kind, width, spec.nbytes // width))


def _quantized(t: Treatment, q: Quantize, values: Values | None, entropy: bool) -> Size:
    rows, columns = t.matrix_shape
    group = q.group_size if q.strategy == "group" else columns
    count, scales = rows * columns, 1 if q.strategy == "tensor" else rows * max(1, -(-columns // group))
    floats = values.floats()
    kind, width = ("float", 1) if q.type == "float" else ("codes", q.num_bits)
    scale_width = 2 if half_scales(floats, q, min(group, columns)) else 4
    zeros = 0 if q.symmetric else raw_payload("int", 1, scales)
    if not entropy:
        total = raw_payload(kind, width, count) + raw_payload("float", scale_width, scales) + zeros
        return Size(total, 2 * scales)  # every value decides whether float16 is enough for the scales
    found, sizes = codes(floats, q, group)
    dtype = "F16" if scale_width == 2 else "F32"
    total = codes_payload(found, q.num_bits, count) + float_payload(Values(dtype, tops_of(dtype, sizes)), scales) + zeros
    return coded(total, values.doubt if values.doubt == SAMPLED else DRAWN_CHANGED)


def rest_size(model: Outline, beside: list[str], headers: bool, text: Text) -> Size:
    """The bytes that are no tensor: files beside the weights and, with `headers`, what stands before the tensors in the weight files."""
    total = margin = raw = 0
    for path in beside:
        size, body = model.files[path], text(path)
        raw += size
        packed = text_bytes(body, size) if body else size * _TEXT_RATIO
        total, margin = total + packed, margin + packed * (SAMPLED if body else _TEXT_DOUBT)
    held: dict[str, dict[str, TensorSpec]] = {path: {} for path in model.weight_files if headers}
    for name, spec in model.tensors.items() if headers else ():
        if name in model.offsets:
            held[spec.file][name] = spec
    for path, inside in held.items():
        size = model.files[path] - sum(s.nbytes for s in inside.values())
        described = {n: {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": [model.offsets[n], model.offsets[n] + s.nbytes]} for n, s in inside.items()}
        raw += size
        body = text(path)
        head = body or json.dumps(described, separators=(",", ":")).encode()
        total += min(size, text_bytes(head, size if body else len(head)))
    return Size(payload_head(max(1, -(-raw // (1 << 20)))) + 17 + total, margin + SAMPLED * total) if raw else Size(0)


def container_size(payloads: dict[str, Size], index: dict) -> Size:
    """The whole file: header, payloads, index."""
    body = json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode()
    last = coded(payload_head(1) + 17 + text_bytes(body, len(body)), _INDEX_DOUBT)
    sizes = payloads | {INDEX: last}
    fields, at = {"__metadata__": {"format": "modelpress.packed", "version": "1", "index": INDEX}}, 0
    for name, size in sizes.items():
        n = round(size.total)
        fields[name] = {"dtype": "U8", "shape": [n], "data_offsets": [at, at := at + n]}
    text = len(json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode())
    total = sum(sizes.values(), Size(0))
    if total.total > _SMALL:
        text = 1000 + sum(len(json.dumps(n, ensure_ascii=False).encode()) + 100 for n in payloads if n != REST)
    return total + Size(8 + text + -text % 8)


def beside(model: Outline, whole: bool) -> list[str]:
    """Files that are kept as bytes: of whole files all but the weights, of tensors not the index either."""
    weights = set(model.weight_files)
    return [f for f in model.files if f not in weights and (whole or not f.endswith(INDEXES))]


def described(t: Treatment, offset: int, whole: bool) -> dict:
    """A tensor's entry in the index."""
    spec, name = t.spec, t.spec.name
    if whole:
        return {"payload": name, "name": name, "offset": offset, "nbytes": spec.nbytes, "dtype": spec.dtype, "shape": list(spec.shape)}
    entry = {"name": name, "payload": name, "shard": 0, "dtype": spec.dtype, "shape": list(spec.shape)}
    if q := t.quantize:
        rows, columns = t.matrix_shape
        size = q.group_size if q.strategy == "group" else columns
        entry["quantized"] = {
            "type": q.type, "num_bits": q.num_bits, "rows": rows, "columns": columns, "group_size": size, "scale_dtype": "F16",
            "scale_shape": [rows, -(-columns // max(1, size))], "sections": [rows * columns * q.num_bits // 8 + 36, rows * 2 + 36], "step": 0,
        }  # fmt: skip
    return entry


def index_of(model: Outline, kept: list[str], tensors: list[dict], whole: bool, recipe: Recipe) -> dict:
    """The index as it will be, but for digests, which no compressor shortens: any will do."""
    files = [{"path": p, "size": model.files[p], "sha256": hashlib.sha256(p.encode()).hexdigest()} for p in kept]
    if whole:
        files += [{"path": p, "size": model.files[p], "sha256": hashlib.sha256(p.encode()).hexdigest(), "segments": tensors} for p in model.weight_files[:1]]
        return {"kind": "files", "files": files, "rest": REST}
    shards = [{"path": p, "metadata": model.metadata.get(p, {})} for p in model.weight_files]
    steps = [s.model_dump(mode="json") for s in recipe.step(Quantize)]
    return {"kind": "tensors", "files": files, "rest": REST, "shards": shards, "tensors": tensors, "steps": steps}
