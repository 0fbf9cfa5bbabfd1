"""What the pickle of a PyTorch checkpoint may name, and what each name makes here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.errors import InputRefused
from app.limits import Limits, shown
from worker.formats.pickle_tensors import MAX, SIZES, STORAGES, TORCH_DTYPES, Global, Storage, Tensor, bad, bad_tensor


def _ints(value: Any, what: str, limits: Limits) -> tuple[int, ...]:
    if isinstance(value, (tuple, list)) and len(value) > limits.rank:
        raise bad_tensor(f"a tensor has {len(value)} dimensions; at most {limits.rank} are taken")
    if not isinstance(value, (tuple, list)) or not all(type(n) is int and 0 <= n < MAX for n in value):
        raise bad_tensor(f"a tensor's {what} is not a sequence of non-negative integers below 2^63")
    return tuple(value)


_ARGUMENTS = 16
"""No function of torch.save's has more. A pickle names one long tuple as often as it likes, and each call would read all of it."""


class Builders:
    """What REDUCE may do; each method has the arguments of torch's function of that name.

    Whoever copies a container counts its entries, for one that was written once may be copied by every further opcode.
    """

    def __init__(self, limits: Limits):
        self.limits, self.copied = limits, 0

    def _copies(self, items) -> None:
        self.copied += len(items)
        if self.copied > self.limits.dict_keys * 12:
            raise InputRefused("limit-entries", f"the pickle copies containers of more than {self.limits.dict_keys * 12} entries")

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
        if type(offset) is not int or not 0 <= offset < MAX:
            raise bad_tensor("a tensor's storage_offset is not a non-negative integer below 2^63")
        size, stride = _ints(size, "size", self.limits), _ints(stride, "stride", self.limits)
        if len(size) != len(stride):
            raise bad_tensor(f"a tensor has {len(size)} sizes and {len(stride)} strides")
        extent = SIZES[dtype]
        for n in size:
            extent *= n or 1
        if extent >= MAX:
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
        shape = next((p for p in reversed(data[:_ARGUMENTS]) if isinstance(p, tuple)), ()) if isinstance(data, tuple) else ()
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
        self._copies(items)
        return tuple(items)

    def plain(self, *args) -> tuple:
        """A device, layout, complex number, bytes: data that nothing here needs."""
        return ()

    def mapping(self, *args) -> dict:
        """An OrderedDict or a defaultdict, written empty and filled by SETITEMS; a Counter brings its dictionary."""
        if args and type(args[-1]) is dict:
            self._copies(args[-1])
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
        if len(args) > _ARGUMENTS:
            raise bad(f"{func.name} is called with {len(args)} arguments, which it does not take")
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
    {
        f"torch.{n}"
        for n in (
            *STORAGES,
            *TORCH_DTYPES,
            "Tensor",
            "per_tensor_affine",
            "per_channel_affine",
            *(f"Q{t}Storage" for t in ("Int8", "UInt8", "Int32")),
        )
    }
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
