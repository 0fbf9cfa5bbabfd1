"""What the pickle of a PyTorch checkpoint may name, and what each name makes here: descriptions, never objects of torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.errors import InputRefused
from app.limits import Limits, shown

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32",
    "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128",
}  # fmt: skip
"""torch's typed storages and the dtype of their elements; an UntypedStorage counts bytes."""

TORCH_DTYPES = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16", "half": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "complex128": "C128",
}  # fmt: skip

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8, "C128": 16}
SIZES |= {d: 1 for d in TORCH_DTYPES.values() if d.startswith("F8")}
"""Bytes of an element."""

_LOCATION = re.compile(r"(cpu|cuda|mps|xpu|xla|hpu|npu|mlu|musa|ipu|mtia|hip|privateuseone)(:\d{1,4})?")
_KEY = re.compile(r"[0-9A-Za-z_]{1,64}")
_MAX = 1 << 63


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


def _ints(value: Any, what: str, limits: Limits) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(type(n) is int and 0 <= n < _MAX for n in value):
        raise bad_tensor(f"a tensor's {what} is not a sequence of non-negative integers below 2^63")
    if len(value) > limits.rank:
        raise bad_tensor(f"a tensor has {len(value)} dimensions; at most {limits.rank} are taken")
    return tuple(value)


class Builders:
    """What REDUCE may do; each method has the arguments of torch's function of that name."""

    def __init__(self, limits: Limits):
        self.limits = limits

    def tensor_v2(self, storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> Tensor:
        if not isinstance(storage, Storage):
            raise bad_tensor("a tensor is built on something that is not a storage")
        if storage.dtype is None:
            raise bad_tensor("a tensor on an untyped storage names no dtype")
        return self._view(storage, storage.dtype, offset, size, stride, metadata)

    def tensor_v3(self, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None) -> Tensor:
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
        if not isinstance(storage, Storage) or name not in TORCH_DTYPES:
            raise bad_tensor("a tensor needs a storage and a dtype")
        return self._view(storage, TORCH_DTYPES[name], offset, size, stride, metadata)

    def _view(self, storage: Storage, dtype: str, offset, size, stride, metadata) -> Tensor:
        if metadata:
            raise bad_tensor("a tensor is lazily conjugated or negated; call resolve_conj() and resolve_neg() before saving")
        if type(offset) is not int or not 0 <= offset < _MAX:
            raise bad_tensor("a tensor's storage_offset is not a non-negative integer below 2^63")
        size, stride = _ints(size, "size", self.limits), _ints(stride, "stride", self.limits)
        if len(size) != len(stride):
            raise bad_tensor(f"a tensor has {len(size)} sizes and {len(stride)} strides")
        extent = SIZES[dtype]
        for n in size:
            extent *= n or 1
        if extent >= _MAX:
            raise bad_tensor(f"a tensor of shape {list(size)} has more than 2^63 bytes")
        tensor = Tensor(storage, dtype, offset, size, stride)
        if tensor.last * SIZES[dtype] > storage.nbytes:
            what = f"shape {list(size)}, strides {list(stride)} and offset {offset}"
            raise bad_tensor(f"a tensor of {what} reaches past its storage of {storage.nbytes} bytes")
        return tensor

    def parameter(self, data, requires_grad=True, hooks=None, state=None) -> Tensor:
        if not isinstance(data, Tensor):
            raise bad_tensor("a parameter is built on something that is not a tensor")
        return data

    def from_type(self, func, kind, args, state=None) -> Tensor:
        if not isinstance(func, Global) or not func.name.startswith("torch._utils._rebuild_") or not isinstance(args, tuple):
            raise bad("a tensor subclass is rebuilt by something that is not a tensor's rebuild function")
        return self.call(func, args)

    def sparse(self, layout, data) -> Tensor:
        """Never read; but a dense form that would not fit is told apart from one that might."""
        shape = next((p for p in reversed(data) if isinstance(p, tuple)), ()) if isinstance(data, tuple) else ()
        elements = 1
        for n in _ints(shape, "size", self.limits):
            elements *= n
        if elements * 4 > self.limits.materialised_bytes:
            raise InputRefused("limit-materialised", f"a sparse tensor of shape {list(shape)} takes {elements * 4} bytes or more once dense")
        raise bad_tensor("a tensor is sparse; call to_dense() before saving")

    def meta(self, *args) -> Tensor:
        raise bad_tensor("a tensor is on the meta device: it has a shape and no values")

    def quantized(self, *args) -> Tensor:
        raise bad_tensor("a tensor is quantized by torch; call dequantize() before saving")

    def sequence(self, items=()) -> tuple:
        if not isinstance(items, (tuple, list)):
            raise bad("torch.Size or a set is built on something that is not a sequence")
        return tuple(items)

    def plain(self, *args) -> tuple:
        """A device, layout, complex number, bytes: data that nothing here needs."""
        return ()

    def mapping(self, *args) -> dict:
        """An OrderedDict or a defaultdict, written empty and filled by SETITEMS; a Counter brings its dictionary."""
        if args and type(args[-1]) is dict:
            return dict(args[-1])
        if any(not isinstance(a, Global) for a in args):
            raise bad("a dictionary is built from something that is not a dictionary")
        return {}

    def call(self, func: Any, args: Any) -> Any:
        """Raises: InputRefused(unsafe-pickle) unless `func` is one of CALLS; invalid-pickle for arguments that do not fit."""
        if not isinstance(func, Global) or func.name not in CALLS:
            what = shown(func.name) if isinstance(func, Global) else "a value"
            raise InputRefused("unsafe-pickle", f"the pickle calls {what}, which is not a function of torch.save's own")
        if not isinstance(args, tuple):
            raise bad(f"the arguments of {func.name} are not a tuple")
        try:
            return CALLS[func.name](self, *args)
        except TypeError:
            raise bad(f"{func.name} is called with {len(args)} arguments, which it does not take") from None


CALLS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": Builders.tensor_v2,
    "torch._utils._rebuild_tensor_v2": Builders.tensor_v2,
    "torch._utils._rebuild_tensor_v3": Builders.tensor_v3,
    "torch._utils._rebuild_parameter": Builders.parameter,
    "torch._utils._rebuild_parameter_with_state": Builders.parameter,
    "torch._tensor._rebuild_from_type_v2": Builders.from_type,
    "torch._utils._rebuild_sparse_tensor": Builders.sparse,
    "torch._utils._rebuild_sparse_csr_tensor": Builders.sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": Builders.meta,
    "torch._utils._rebuild_qtensor": Builders.quantized,
    "torch.serialization._get_layout": Builders.plain,
    "torch.Size": Builders.sequence,
    "torch.device": Builders.plain,
    "_codecs.encode": Builders.plain,
    "collections.OrderedDict": Builders.mapping,
    "collections.defaultdict": Builders.mapping,
    "collections.Counter": Builders.mapping,
}
for _name, _call in (("set", Builders.sequence), ("frozenset", Builders.sequence), ("complex", Builders.plain), ("bytearray", Builders.plain)):
    CALLS |= {f"builtins.{_name}": _call, f"__builtin__.{_name}": _call}  # protocol 2 spells them as Python 2 did

VALUES = (
    {f"torch.{n}" for n in (*STORAGES, *TORCH_DTYPES, "Tensor", "per_tensor_affine", "per_channel_affine", *(f"Q{t}Storage" for t in ("Int8", "UInt8", "Int32")))}
    | {"torch.storage.UntypedStorage", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
    | {f"{b}.{n}" for b in ("builtins", "__builtin__") for n in ("int", "float", "list", "dict", "str", "bool", "tuple")}
)
"""Globals that stand for themselves: they are arguments, and REDUCE does not call them."""

ALLOWED = frozenset(CALLS) | VALUES


def check_global(module: str, name: str, allowed=ALLOWED) -> Global:
    """Raises: InputRefused(unsafe-pickle) unless `module.name` is allowed. A dotted `name` is an attribute path, and never is."""
    if "." in name or f"{module}.{name}" not in allowed:
        hint = "; save model.state_dict() instead of the model, and plain numbers instead of objects"
        raise InputRefused("unsafe-pickle", f"the pickle names {shown(f'{module}.{name}')}, which is code and not data{hint}")
    return Global(f"{module}.{name}")


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
    if type(numel) is not int or not 0 <= numel or numel * size >= _MAX:
        raise bad_tensor("a storage's number of elements is negative, or its bytes exceed 2^63")
    return Storage(key, dtype, numel * size)
