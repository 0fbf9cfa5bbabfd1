"""The one parser of safetensors headers, used by the API before a file is stored and by the worker before it is read.

    0        8                8 + n                       size
    ├────────┼────────────────┼───────────────────────────┤
    │ n: u64 │ JSON, ' ' * k  │ tensor bytes, no holes     │
    └────────┴────────────────┴───────────────────────────┘

It is stricter than the public readers: those take duplicate names, unknown fields, NUL and `../` in names, and absurd ranks
(https://github.com/huggingface/safetensors#format). Torch-free, standard library only.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from app.errors import InputRefused
from app.limits import Limits, check_tensor_name, shown

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip
"""Bits of an element, by safetensors' dtype name."""

PACKED = "modelpress.packed"
"""`__metadata__["format"]` of a `packed` file."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # an unterminated one matches too, which keeps this linear
_MAX = 1 << 63


class Entry(NamedTuple):
    """A tensor; `begin` and `end` count bytes from `SafetensorsHeader.data_start`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsHeader(NamedTuple):
    """`entries` in the order of the header."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


def _refuse(why: str) -> InputRefused:
    return InputRefused("invalid-safetensors", why)


def check_json(raw: bytes, limits: Limits, pairs: int, containers: int) -> None:
    """Bound depth and size of a JSON text by its brackets alone, so that no parser meets a text that would exhaust it.

    Raises:
        InputRefused: limit-depth or limit-entries.
    """
    structure = _STRING.sub(b"", raw)
    if (n := structure.count(b":")) > pairs:
        raise InputRefused("limit-entries", f"the JSON has {n} members; at most {pairs} are taken")
    if (n := structure.count(b"{") + structure.count(b"[")) > containers:
        raise InputRefused("limit-entries", f"the JSON has {n} objects and arrays; at most {containers} are taken")
    depth = 0
    for c in re.sub(rb"[^\[\]{}]+", b"", structure):
        depth += 1 if c in b"[{" else -1
        if depth > limits.json_depth:
            raise InputRefused("limit-depth", f"the JSON is nested more than {limits.json_depth} levels deep")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise _refuse(f"the header has {shown(twice)} twice, and readers disagree on which one counts")
    return out


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise _refuse(f"the header has an integer of {len(digits)} digits")
    return int(digits)


def _no_number(text: str):
    raise _refuse(f"the header has the number {shown(text)} where only integers stand")


def parse_safetensors_header(head: bytes, size: int, limits: Limits = Limits()) -> SafetensorsHeader:
    """Parse and check a header.

    Args:
        head: the file's first bytes; `header_bytes_needed(head[:8])` of them, or all of a shorter file.
        size: of the file, bytes.

    Raises:
        InputRefused: invalid-safetensors, limit-header, limit-depth, limit-entries, limit-metadata, limit-name, bad-tensor-name.
    """
    if size < 8 or len(head) < 8:
        raise _refuse("the file is empty" if size == 0 else f"the file has {size} bytes; a safetensors file starts with 8 bytes of header length")
    length = int.from_bytes(head[:8], "little")
    start = 8 + length
    if start > size:
        raise _refuse(f"the header claims {length} bytes and the file has {size}: it is truncated, or not a safetensors file")
    if length > limits.safetensors_header_bytes:
        raise InputRefused("limit-header", f"the header has {length} bytes; at most {limits.safetensors_header_bytes} are taken")
    raw = head[8:start]
    if len(raw) < length:
        raise ValueError(f"{start} bytes of the file are needed, {len(head)} given")
    if raw[:1] != b"{":
        raise _refuse("the header does not begin with '{'")
    if raw.rstrip(b" ")[-1:] != b"}":
        raise _refuse("the header does not end with '}' and spaces")
    check_json(raw, limits, pairs=5 * limits.tensors, containers=3 * limits.tensors + 2)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique, parse_int=_integer, parse_float=_no_number, parse_constant=_no_number)
    except UnicodeDecodeError as e:
        raise _refuse(f"the header is not UTF-8 at byte {e.start}") from None
    except json.JSONDecodeError as e:
        raise _refuse(f"the header is not JSON: {e.msg} at character {e.pos}") from None
    metadata = _metadata(header.pop("__metadata__", {}), limits)
    if len(header) > limits.tensors:
        raise InputRefused("limit-entries", f"the file has {len(header)} tensors; at most {limits.tensors} are taken")
    entries = {name: _entry(name, value, limits) for name, value in header.items()}
    _tile(entries, size - start)
    return SafetensorsHeader(entries, metadata, start)


def _metadata(metadata: object, limits: Limits) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _refuse("__metadata__ must map strings to strings")
    try:
        size = sum(len(k.encode()) + len(v.encode()) for k, v in metadata.items())
    except UnicodeEncodeError:
        raise _refuse("__metadata__ holds half a surrogate pair") from None
    if size > limits.metadata_bytes and metadata.get("format") != PACKED:  # a packed file keeps its index there, under the header's own limit
        raise InputRefused("limit-metadata", f"__metadata__ has {size} bytes; at most {limits.metadata_bytes} are taken")
    return metadata


def _entry(name: str, value: object, limits: Limits) -> Entry:
    check_tensor_name(name, limits)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refuse(f"tensor {shown(name)} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _refuse(f"tensor {shown(name)} has dtype {shown(str(dtype))}; known are {', '.join(BITS)}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < _MAX for n in shape):
        raise _refuse(f"tensor {shown(name)} has a shape that is not a list of non-negative integers below 2^63")
    if len(shape) > limits.rank:
        raise _refuse(f"tensor {shown(name)} has {len(shape)} dimensions; at most {limits.rank} are taken")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and 0 <= n < _MAX for n in offsets):
        raise _refuse(f"tensor {shown(name)} has data_offsets that are not two non-negative integers")
    begin, end = offsets
    bits, extent = BITS[dtype], BITS[dtype]
    for n in shape:
        bits *= n
        extent *= n or 1  # an empty tensor's other dimensions must fit as well: strides are made of them
    if extent >= 8 * _MAX:
        raise _refuse(f"tensor {shown(name)} of shape {shape} has more than 2^63 bytes")
    if bits % 8 or bits // 8 != end - begin:
        raise _refuse(f"tensor {shown(name)} of dtype {dtype} and shape {shape} takes {bits} bits, its data_offsets hold {end - begin} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _tile(entries: dict[str, Entry], size: int) -> None:
    """The tensors' bytes follow one another without a hole or an overlap, and fill the file."""
    at = 0
    for name, e in sorted(entries.items(), key=lambda item: item[1][2:]):
        if e.begin != at:
            what = "a hole" if e.begin > at else "an overlap"
            raise _refuse(f"tensor {shown(name)} begins at byte {e.begin}; the one before it ends at {at}: {what}")
        at = e.end
    if at != size:
        what = "is truncated" if at > size else "has bytes that belong to no tensor"
        raise _refuse(f"the tensors take {at} bytes and {size} follow the header: the file {what}")
