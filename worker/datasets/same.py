"""Whether two arrow arrays hold the same: types, nulls, dictionaries, and the bits of every number (NaN payloads and -0.0 too, which `equals` does not tell)."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_BITS = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}


def same(a: pa.Array, b: pa.Array) -> bool:
    """What lies below a null does not count."""
    if a.type != b.type or len(a) != len(b) or a.null_count != b.null_count or (a.null_count and not a.is_null().equals(b.is_null())):
        return False
    kind = a.type
    if isinstance(a, pa.ExtensionArray):
        return same(a.storage, b.storage)
    if kind in _BITS:
        return a.drop_null().view(_BITS[kind]).equals(b.drop_null().view(_BITS[kind]))
    if pa.types.is_dictionary(kind):
        return a.indices.equals(b.indices) and same(a.dictionary, b.dictionary)
    if pa.types.is_struct(kind):
        return all(same(x, y) for x, y in zip(a.flatten(), b.flatten(), strict=True))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        a, b = a.drop_null(), b.drop_null()
        return pc.list_value_length(a).equals(pc.list_value_length(b)) and same(a.flatten(), b.flatten())
    if pa.types.is_map(kind):
        return same(_as_lists(a), _as_lists(b))
    return a.equals(b) or _raw(a) == _raw(b)  # the one holds no NaN for equal, the other no slice of a union


def _raw(a: pa.Array) -> bytes:
    return pa.RecordBatch.from_arrays([a], ["a"]).serialize().to_pybytes()


def _as_lists(a: pa.MapArray) -> pa.ListArray:
    a = a.drop_null()
    return pa.ListArray.from_arrays(a.offsets, pa.StructArray.from_arrays([a.keys, a.items], ["key", "value"]))
