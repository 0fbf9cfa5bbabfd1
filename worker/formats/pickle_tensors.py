"""What the pickle of a PyTorch checkpoint says of storages and tensors: descriptions, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from app.errors import InputRefused
from app.limits import shown

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32",
    "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
}  # fmt: skip
"""torch's typed storages and the dtype of their elements; an UntypedStorage counts bytes."""

TORCH_DTYPES = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16", "half": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "complex128": "C128",
}  # fmt: skip

SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "C64": 8,
    "C128": 16,
}
SIZES |= {d: 1 for d in TORCH_DTYPES.values() if d.startswith("F8")}
"""Bytes of an element."""

_LOCATION = re.compile(r"(cpu|cuda|mps|xpu|xla|hpu|npu|mlu|musa|ipu|mtia|hip|privateuseone)(:\d{1,4})?")
_KEY = re.compile(r"[0-9A-Za-z_]{1,64}")
MAX = 1 << 63


@dataclass(frozen=True, slots=True)
class Global:
    """A name in the allow-list; a value like any other until REDUCE meets it."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """`dtype` is None when the storage is untyped; `nbytes` is what the pickle claims."""

    key: str
    dtype: str | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view on a storage; `offset` and `stride` count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def nbytes(self) -> int:
        return self.numel * SIZES[self.dtype]

    @property
    def last(self) -> int:
        """The highest element of the storage that it reads, plus one; its offset when it is empty."""
        return self.offset + (1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) if self.numel else 0)


def bad(why: str) -> InputRefused:
    return InputRefused("invalid-pickle", why)


def bad_tensor(why: str) -> InputRefused:
    return InputRefused("invalid-tensor", why)


def storage(kind: str, key: Any, location: Any, numel: Any) -> Storage:
    """Raises: InputRefused(invalid-tensor)."""
    cls = kind.rpartition(".")[2]
    if kind not in ("torch.storage.UntypedStorage", f"torch.{cls}") or cls not in STORAGES and not cls.startswith(("Untyped", "QInt", "QUInt")):
        raise bad_tensor(f"a storage has type {shown(kind)}")
    if type(key) is not str or not _KEY.fullmatch(key):
        raise bad_tensor(f"a storage has key {shown(str(key)[:200])}, which is no record's name")
    if type(location) is not str or not _LOCATION.fullmatch(location):
        raise bad_tensor(f"a storage has location {shown(str(location)[:200])}; known are cpu, cuda:N and the like")
    dtype = STORAGES.get(cls)
    size = SIZES[dtype] if dtype else 4 if cls == "QInt32Storage" else 1
    if type(numel) is not int or not 0 <= numel or numel * size >= MAX:
        raise bad_tensor("a storage's number of elements is negative, or its bytes exceed 2^63")
    return Storage(key, dtype, numel * size)
