"""Checks the index of a packed file whole, before anything is decoded."""

from __future__ import annotations

import math
import unicodedata

from pydantic import ValidationError

from app.errors import InputRefused
from app.limits import Limits, check_path, check_tensor_name, shown
from app.safetensors_header import check_json
from worker.checkpoint import DTYPES
from worker.formats.packed_entries import BUNDLE_VALUES, Index, PackedCodebook, PackedGrid, PackedQuantized


def refuse(why: str) -> InputRefused:
    return InputRefused("invalid-packed", why)


def parse_index(text: bytes, payloads: set[str], size: int, limits: Limits) -> Index:
    """Parse and check an index.

    Args:
        text: JSON.
        payloads: the names of the file's payloads, without the index itself.
        size: of the packed file, bytes.

    Raises:
        InputRefused: invalid-packed.
    """
    try:
        check_json(text, limits, pairs=20 * limits.tensors, containers=6 * limits.tensors)
        index = Index.model_validate_json(text)
        _check_paths(index, limits)
        for name in (*(t.name for t in index.tensors), *index.aliases):
            check_tensor_name(name, limits)
    except ValidationError as e:
        error = e.errors(include_url=False, include_input=False)[0]
        raise refuse(f"the index is wrong at {shown('/'.join(map(str, error['loc'])))}: {error['msg'][:200]}") from None
    except InputRefused as e:
        raise refuse(f"the index is refused: {e.detail}") from None
    _check_files(index)
    _check_tensors(index, limits)
    used = [*(s.payload for f in index.files for s in f.segments), *(t.payload for t in index.tensors if t.payload is not None)]
    used += [name for name in (index.rest, index.bundle) if name is not None]
    if len(set(used)) != len(used) or set(used) != payloads:
        raise refuse("the index does not use every payload exactly once")
    if (total := index.restored_bytes()) > limits.expanded(size):
        raise refuse(f"{size} bytes claim to restore to {total}; at most {limits.expanded(size)} are taken")
    if (beside := index.beside_bytes()) > limits.expanded(size):
        raise refuse(f"{size} bytes claim scales and what else stands beside codes of {beside}; at most {limits.expanded(size)} are taken")
    return index


def _check_paths(index: Index, limits: Limits) -> None:
    """Paths are safe, and no two of them are one file, or a file and a folder, on any system."""
    paths = [*(f.path for f in index.files), *(s.path for s in index.shards), *([index.shard_index] if index.shard_index else ())]
    folded = set()
    for path in paths:
        check_path(path, limits)
        folded.add(unicodedata.normalize("NFC", path).casefold())
    if len(folded) != len(paths):
        raise refuse("two of the index's paths are the same")
    for path in folded:
        parts = path.split("/")
        if any("/".join(parts[:n]) in folded for n in range(1, len(parts))):
            raise refuse(f"path {shown(path)} lies inside another file")


def _check_files(index: Index) -> None:
    for f in index.files:
        if any(begin > end for begin, end in f.gaps()):
            raise refuse(f"the segments of {shown(f.path)} overlap or leave the file")
        for s in f.segments:
            if s.dtype not in DTYPES or math.prod(s.shape) * DTYPES[s.dtype].itemsize != s.nbytes:
                raise refuse(f"segment {shown(s.name)} has {s.nbytes} bytes, not those of {shown(s.dtype)} {list(s.shape)}")
    if (index.rest is not None) != (index.rest_bytes > 0):
        raise refuse("the payload of the bytes between the segments does not belong to them")
    if index.kind == "files" and (index.tensors or index.shards or index.shard_index or index.aliases or index.bundle):
        raise refuse("an index of kind files has tensors")


def _check_tensors(index: Index, limits: Limits) -> None:
    names = {t.name for t in index.tensors}
    if len(names) != len(index.tensors) or names & index.aliases.keys() or not names.issuperset(index.aliases.values()):
        raise refuse("names of tensors occur twice, or an alias stands for no tensor")
    bundled = [t for t in index.tensors if t.payload is None]
    if any((t.payload is None and t.quantized is None) != (t.size is not None) for t in index.tensors):
        raise refuse("a tensor has neither a payload nor a size in the bundle, or both")
    for t in index.tensors:
        if t.dtype not in DTYPES or t.shard >= len(index.shards) or len(t.shape) > limits.rank:
            raise refuse(f"tensor {shown(t.name)} has dtype {shown(t.dtype)}, shard {t.shard}, {len(t.shape)} dimensions")
        if q := t.quantized:
            fits = q.rows * q.columns == math.prod(t.shape) and _shape_fits(q, t.shape)
            fits &= q.step is None or q.step < len(index.steps)
            fits &= _levels_fit(q) if isinstance(q, PackedCodebook) else _grid_fits(q) if isinstance(q, PackedGrid) else _scales_fit(q)
            if not fits or DTYPES[t.dtype].is_complex or not DTYPES[t.dtype].is_floating_point:
                beside = f"levels {list(q.levels_shape)}" if isinstance(q, PackedCodebook) else f"scales {list(q.scale_shape)}"
                raise refuse(f"codes [{q.rows}, {q.columns}] with {beside} do not make tensor {shown(t.name)} of {t.dtype} {list(t.shape)}")
    if sum(t.values for t in bundled) > BUNDLE_VALUES or any(t.bundled for t in bundled) != (index.bundle is not None):
        raise refuse(f"the bundle has more than {BUNDLE_VALUES} values, or is there for no tensor")


def _shape_fits(q: PackedQuantized | PackedGrid | PackedCodebook, shape: tuple[int, ...]) -> bool:
    if q.experts is None:
        return not q.transposed or shape == (q.columns, q.rows)
    each = q.rows // q.experts
    return q.rows % q.experts == 0 and shape == (q.experts, *((q.columns, each) if q.transposed else (each, q.columns)))


def _scales_fit(q: PackedQuantized) -> bool:
    rows, groups = q.scale_shape
    return rows in (q.experts or 1, q.rows) and groups == _groups(q) and (q.type == "int" or (q.num_bits == 8 and len(q.sections) == 2))


def _levels_fit(q: PackedCodebook) -> bool:
    codebooks, levels = q.levels_shape
    return codebooks in (q.experts or 1, q.rows * _groups(q)) and levels <= 1 << q.num_bits


def _grid_fits(q: PackedGrid) -> bool:
    rows, groups = q.scale_shape
    fits = rows in (q.experts or 1, q.rows) and groups == _groups(q) and len(q.sections) == 1 + q.levels + q.factors * (2 if q.scale_bits else 1) + q.inputs
    fits &= q.offset >= q.zero and not (q.offset and q.levels)
    if q.scale_bits is None:
        return fits and q.shared_by is None and not q.exponent
    return fits and q.scale_dtype == "F16" and q.shared_by is not None and q.shared_by % q.group_size == 0


def _groups(q: PackedQuantized | PackedGrid | PackedCodebook) -> int:
    """Groups in a row."""
    return max(1, -(-q.columns // q.group_size))
