"""How large a `packed` result will be: its payloads one by one, the index, the header. What is entropy-coded is told from samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from app import bundled, codebooks
from app.changed import codes, half_scales, pruned
from app.coded import codes_payload, float_payload, index_bytes, payload_head, plane, raw_payload, text_bytes
from app.codebooks import RECOVERED, WEIGHED
from app.layout import INDEXES
from app.outline import Outline, TensorSpec
from app.recipe import Lossless, Prune, Quantize, Recipe
from app.steps import SUPER
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


class Told(NamedTuple):
    """The bytes of a tensor as a payload of its own, and in the bundle.

    Args:
        sparse: half of it or more is one value, and it is entropy-coded.
        beside: scales, zero points or levels.
    """

    own: Size
    bundled: Size
    sparse: bool
    beside: int = 0


def tensor_size(t: Treatment, look: Look, threshold: int | None = None) -> Told:
    """One tensor of a lossy result."""
    spec, values = t.spec, look(t.spec)
    if isinstance(values, Values) and (step := t.step(Prune)):
        values = pruned(values, step, t.matrix_shape[1], threshold)
        values = replace(values, doubt=_doubt(values, step))
    if t.quantize is None:
        own = dense_size(spec, values)
        if not isinstance(values, Values) or 2 * values.zeros < len(values.tops):
            return Told(own, Size(own.total - payload_head(1), own.margin), False)
        small = float_payload(values, spec.nbytes // WIDTH[spec.dtype], columns=max(1, math.prod(spec.shape[1:]))) - payload_head(1)
        return Told(own, coded(small, max(values.doubt, bundled.DOUBT)), True)
    if t.quantize.mapping == "gradient":
        return _codebook(t, t.quantize, values)
    return _quantized(t, t.quantize, values, entropy=t.step(Prune) is not None or t.step(Lossless) is not None)


def _doubt(values: Values, step: Prune) -> float:
    """What was drawn, moved or chosen by what is not at hand is less certain than what was read."""
    if values.doubt != SAMPLED:
        return DRAWN_CHANGED
    return RECOVERED if step.recover else WEIGHED if step.saliency != "magnitude" else SAMPLED


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


def _quantized(t: Treatment, q: Quantize, values: Values, entropy: bool) -> Told:
    rows, columns = t.matrix_shape
    group = q.group_size if q.strategy == "group" else columns
    count, scales = rows * columns, (t.experts or 1) if q.strategy == "tensor" else rows * max(1, -(-columns // group))
    floats = values.floats()
    kind, width = ("float", 1) if q.type == "float" else ("codes", q.num_bits)
    scale_width = 2 if q.scale_bits or half_scales(floats, q, min(group, columns)) else 4
    parts = _factors(q, scales, rows * max(1, -(-columns // SUPER)), scale_width, (t.experts or 1) * columns)
    beside, heads = sum(n for _, _, n in parts), payload_head(1) * (1 + len(parts))
    if not entropy:
        total = raw_payload(kind, width, count) + sum(raw_payload(*p) for p in parts)
        # every value decides whether float16 is enough for the scales
        margin = 0 if q.scale_bits else 2 * scales * sum(n == scales and kind == "float" for kind, _, n in parts)
        margin += raw_payload(*parts[-1]) if q.scales_inputs else 0  # where scaled inputs are no better there are no factors of theirs
        return Told(Size(total, margin), Size(total - heads, margin), False, beside)
    found, sizes = codes(floats, q, count // scales if q.strategy == "tensor" else group)
    dtype = "F16" if scale_width == 2 else "F32"
    more = sum(raw_payload(*p) for p in parts)
    if q.scale_bits is None:
        more += float_payload(Values(dtype, tops_of(dtype, sizes)), scales) - raw_payload("float", scale_width, scales)
    doubt = values.doubt if values.doubt in (SAMPLED, WEIGHED, RECOVERED) else DRAWN_CHANGED
    return _coded(found, q.num_bits, (rows, columns), more, heads, doubt, beside)


def _factors(q: Quantize, scales: int, shared: int, width: int, inputs: int) -> list[tuple[str, int, int]]:
    """(kind, width, values) of the payloads beside the codes."""
    of_one = [("codes", q.scale_bits, scales), ("float", 2, shared)] if q.scale_bits else [("float", width, scales)]
    levels = [("float", 4, 1 << q.num_bits)] if q.type == "nf" else []
    offsets = [] if q.symmetric else of_one if q.zero_point == "float" else [("int", 1, scales)]
    return levels + of_one + offsets + ([("float", 2, inputs)] if q.scales_inputs else [])


def _codebook(t: Treatment, q: Quantize, values: Values) -> Told:
    rows, columns = t.matrix_shape
    group = q.group_size if q.strategy == "group" else columns
    count, books = rows * columns, (t.experts or 1) if q.strategy == "tensor" else rows * max(1, -(-columns // group))
    doubt = max(RECOVERED if q.recover else WEIGHED, DRAWN_CHANGED if values.doubt not in (SAMPLED, WEIGHED, RECOVERED) else 0)
    if q.num_bits is None:  # allocation keeps to what was asked, scales and levels counted
        size = coded(count * q.avg_bits / 8 + 2 * payload_head(1), doubt)
        return Told(size, size, False, books << round(q.avg_bits))
    found, levels = codebooks.codes(values.floats(), q.num_bits, count // books if q.strategy == "tensor" else group, values.zeros > 0)
    beside = books << q.num_bits
    return _coded(found, q.num_bits, (rows, columns), float_payload(Values("F16", tops_of("F16", levels)), beside), 2 * payload_head(1), doubt, beside)


def _coded(found: list[int], num_bits: int, shape: tuple[int, int], more: float, heads: int, doubt: float, beside: int) -> Told:
    """Entropy-coded codes like those `found`, and `more` bytes beside them."""
    count = math.prod(shape)
    own = codes_payload(found, num_bits, count)
    small = bundled.codes_chunk(found, count, shape[1])
    sparse = 2 * found.count(max(set(found), key=found.count, default=0)) >= len(found)
    in_bundle = coded(small + more - heads + payload_head(1), max(doubt, bundled.DOUBT)) if small < own - payload_head(1) else coded(own + more - heads, doubt)
    return Told(coded(own + more, doubt), in_bundle, sparse, beside)


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
    last = coded(index_bytes(body), _INDEX_DOUBT)
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


def described(t: Treatment, offset: int, whole: bool, in_bundle: bool = False) -> dict:
    """A tensor's entry in the index."""
    spec, name = t.spec, t.spec.name
    if whole:
        return {"payload": name, "name": name, "offset": offset, "nbytes": spec.nbytes, "dtype": spec.dtype, "shape": list(spec.shape)}
    where = {"payload": name} if not in_bundle else {} if t.quantize else {"size": spec.nbytes}
    entry = {"name": name} | where | {"shard": 0, "dtype": spec.dtype, "shape": list(spec.shape)}
    if q := t.quantize:
        rows, columns = t.matrix_shape
        size = q.group_size if q.strategy == "group" else columns
        groups, num_bits = -(-columns // max(1, size)), q.num_bits or round(q.avg_bits)
        entry["quantized"] = {"type": q.type, "num_bits": num_bits, "rows": rows, "columns": columns, "group_size": size} | ({"experts": t.experts} if t.experts else {})
        if q.mapping == "gradient":
            entry["quantized"] |= {"type": "codebook", "levels_dtype": "F16", "levels_shape": [(t.experts or 1) if q.strategy == "tensor" else rows * groups, 1 << num_bits]}
        else:
            entry["quantized"] |= {"scale_dtype": "F16", "scale_shape": [(t.experts or 1) if q.strategy == "tensor" else rows, groups]}
        if q.mapping == "uniform" and not q.plain_scales:
            entry["quantized"] |= {"type": "grid"} | ({"scale_bits": q.scale_bits, "shared_by": SUPER, "exponent": -16} if q.scale_bits else {})
            entry["quantized"] |= ({} if q.symmetric else {"offset": True}) | ({"levels": True} if q.type == "nf" else {}) | ({"inputs": True} if q.scales_inputs else {})
        beside = 1 if q.mapping == "gradient" else len(_factors(q, 1, 1, 2, 1))
        entry["quantized"] |= {"sections": [rows * columns * num_bits // 8 + 36, *[rows * 2 + 36] * beside], "step": 0}
    return entry


def index_of(model: Outline, kept: list[str], tensors: list[dict], whole: bool, recipe: Recipe, bundle: bool = False) -> dict:
    """The index as it will be, but for digests, which no compressor shortens: any will do."""
    files = [{"path": p, "size": model.files[p], "sha256": hashlib.sha256(p.encode()).hexdigest()} for p in kept]
    if whole:
        files += [{"path": p, "size": model.files[p], "sha256": hashlib.sha256(p.encode()).hexdigest(), "segments": tensors} for p in model.weight_files[:1]]
        return {"kind": "files", "files": files, "rest": REST}
    shards = [{"path": p, "metadata": model.metadata.get(p, {})} for p in model.weight_files]
    steps = [s.model_dump(mode="json") for s in recipe.step(Quantize)]
    return {"kind": "tensors", "files": files, "rest": REST, "shards": shards, "tensors": tensors, "steps": steps} | ({"bundle": bundled.BUNDLE} if bundle else {})
