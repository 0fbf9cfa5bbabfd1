"""Reads a program as `torch.export.save` of torch 2.11 to 2.13 writes it: a zip of one program and one record per storage. torch.export is not called.

    <root>/models/model.json                            the program: nodes, names, shapes
    <root>/data/weights/model_weights_config.json       name in the state dict -> record, dtype, shape, strides
    <root>/data/weights/weight_N                        a storage's bytes, stored
    <root>/data/constants/model_constants_config.json   the same of constants and of buffers that are not in the state dict
    <root>/data/constants/tensor_N
    <root>/data/sample_inputs/model.pt                  a pickle: never read
    <root>/archive_format, archive_version, byteorder, .data/version, .data/serialization_id
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NoReturn

from app.errors import InputRefused
from app.limits import Limits, check_tensor_name, shown
from worker.checkpoint import Dropped, TensorSpec
from worker.formats.archive import member_chunks
from worker.formats.json_checks import boolean, integer, map_of, maybe, record, refuse, text, union
from worker.formats.pickle_tensors import SIZES, Storage, Tensor
from worker.formats.pt2_program import Program, parse, read_program
from worker.formats.pt2_schema import TENSOR_META, qualified
from worker.formats.views import Record, Views, tied
from worker.formats.zip_walk import STORED, Member, walk_zip

PROGRAM, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = {"data/weights/": "data/weights/model_weights_config.json", "data/constants/": "data/constants/model_constants_config.json"}
MARKS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": None, ".data/serialization_id": None}
"""Small members, and what they must say. The last two are numbers."""

DTYPE_NUMBERS = {
    1: "U8", 2: "I8", 3: "I16", 4: "I32", 5: "I64", 6: "F16", 7: "F32", 8: "F64", 10: "C64", 11: "C128", 12: "BOOL", 13: "BF16", 28: "U16", 29: "F8_E4M3",
    30: "F8_E5M2", 31: "F8_E4M3FNUZ", 32: "F8_E5M2FNUZ", 33: "F8_E8M0", 34: "U32", 35: "U64",
}  # fmt: skip
"""torch.export's numbers of dtypes (schema.py, ScalarType)."""

_PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,7}")
_AGAIN = "export the model again with torch.export.save, of torch 2.11 to 2.13"
_PICKLES = "which is a pickle and can run code when it is loaded; only plain tensors are taken"

_CONFIG = record(
    {
        "config": map_of(
            qualified,
            record(
                {
                    "path_name": text(r"(weight|tensor)_\d{1,7}|(custom|opaque)_obj_\d{1,7}", "the name of a record"),
                    "is_param": boolean,
                    "use_pickle": boolean,
                    "tensor_meta": maybe(TENSOR_META),
                }
            ),
        )
    }
)
_SIZE = union({"as_int": integer(0)}, {"as_expr": "a stored tensor has a symbolic shape"})


def _invalid(why: str) -> NoReturn:
    raise InputRefused("invalid-pt2", f"{why}; {_AGAIN}")


def open_members(path: Path, limits: Limits) -> tuple[str, dict[str, Member]]:
    """The zip's root folder, and its members by their name below it.

    Raises:
        InputRefused: unsafe-archive, invalid-archive, invalid-pt2, unsafe-pt2, format-not-allowed for compiled programs.
    """
    members = [m for m in walk_zip(path, limits, entries=limits.tensors + 32) if not m.is_folder]
    roots = {m.name.split("/", 1)[0] for m in members}
    if len(roots) > 1 or not all("/" in m.name for m in members):
        _invalid("the archive has no single root folder: not one that torch.export.save wrote, or one of an older torch")
    found = {m.name.split("/", 1)[1]: m for m in members}
    for name, m in found.items():
        if name.startswith(("data/aotinductor/", "executorch/", "mtia/")) or name.endswith((".so", ".o", ".cubin")):
            why = "the archive is compiled for a machine (AOTInductor and the like): native code is never loaded here"
            raise InputRefused("format-not-allowed", f"{why}; export the program with torch.export.save instead")
        if re.fullmatch(r"data/constants/(custom|opaque)_obj_\d+|data/(weights|constants)/[^/]*\.pt", name):
            raise InputRefused("unsafe-pt2", f"the archive has {shown(name)}, {_PICKLES}")
        if name not in (PROGRAM, SAMPLES, *CONFIGS.values(), *MARKS) and not name.startswith("extra/") and not _PAYLOAD.fullmatch(name):
            _invalid(f"the archive has a member {shown(name)}, which torch.export.save does not write for one program named model")
        if m.method != STORED:
            _invalid(f"member {shown(name)} is compressed; torch.export.save stores it as it is")
    if missing := {PROGRAM, *CONFIGS.values(), "archive_format", "archive_version"} - found.keys():
        _invalid(f"the archive has no {min(missing)}")
    return next(iter(roots)), found


class Pt2File(Views):
    """One program's tensors by their names in its state dict; `rel` is its path in the checkpoint.

    `program` is what may be loaded of it; `lifted` are the constants that belong to it, which are no tensors of the checkpoint.

    Raises:
        InputRefused: what `open_members` and `read_program` raise; invalid-tensor, limit-header, limit-materialised, bad-tensor-name, no-tensors.
    """

    folder = ""

    def __init__(self, path: Path, rel: str, limits: Limits = Limits()):
        self.path, self.metadata, self.limits = path, {}, limits
        self.root, self.members = open_members(path, limits)
        self._check_bytes()
        for name, said in MARKS.items():
            if name in self.members and not _says(self.small(name, 64), said):
                _invalid(f"the archive's {name} is {shown(self.small(name, 64).decode('latin-1'))}, which is not read")
        self.program: Program = read_program(self.small(PROGRAM, limits.program_bytes), limits)
        self.configs = {folder: _CONFIG(parse(self.small(name, limits.program_bytes), limits, name), ()) for folder, name in CONFIGS.items()}
        every = {name: self._tensor(folder, name, meta) for folder, config in self.configs.items() for name, meta in config["config"].items()}
        self._check_names()
        self._check_size(every)
        weights = self.configs["data/weights/"]["config"]
        self.lifted = {name: t for name, t in every.items() if name not in weights}
        self.tensors, self.aliases = tied({name: t for name, t in every.items() if name in weights})
        self.specs = {n: TensorSpec(n, t.dtype, t.shape, t.nbytes, rel) for n, t in self.tensors.items()}
        self.used = {t.storage.key for t in every.values()}
        self.records = {n: Record(path, m.offset, m.size) for n, m in self.members.items() if _PAYLOAD.fullmatch(n)}
        self.dropped = self._dropped()
        self.notes: list[str] = []

    def small(self, name: str, most: int) -> bytes:
        """The bytes of a member that is no storage."""
        member = self.members[name]
        if member.size > most:
            raise InputRefused("limit-header", f"the archive's {name} has {member.size} bytes; at most {most} are taken")
        with self.path.open("rb") as f:
            f.seek(member.offset)
            return f.read(member.size)

    def _check_bytes(self) -> None:
        with self.path.open("rb") as f:
            for member in self.members.values():
                for _ in member_chunks(f, member):
                    pass

    def _tensor(self, folder: str, name: str, meta: dict) -> Tensor:
        """Raises: InputRefused: unsafe-pt2, invalid-tensor, bad-tensor-name."""
        check_tensor_name(name, self.limits)
        if meta["use_pickle"] or meta["tensor_meta"] is None or not _PAYLOAD.fullmatch(folder + meta["path_name"]):
            raise InputRefused("unsafe-pt2", f"{shown(name)} is stored as an object of a class, {_PICKLES}")
        key, t = folder + meta["path_name"], meta["tensor_meta"]
        shape, stride = (tuple(_SIZE(v, ((), name))["as_int"] for v in t[k]) for k in ("sizes", "strides"))
        offset, dtype = _SIZE(t["storage_offset"], ((), name))["as_int"], DTYPE_NUMBERS.get(t["dtype"])
        if dtype is None:
            raise InputRefused("unsupported-format", f"tensor {shown(name)} has dtype number {t['dtype']}, which is not read; read are {', '.join(DTYPE_NUMBERS.values())}")
        if len(shape) != len(stride) or len(shape) > self.limits.rank or key not in self.members:
            raise InputRefused("invalid-tensor", f"tensor {shown(name)} has {len(shape)} sizes, {len(stride)} strides, and lies in {shown(key)}")
        found = Tensor(Storage(key, None, self.members[key].size), dtype, offset, shape, stride)
        if math.prod(shape) >= 1 << 56 or found.last * SIZES[dtype] > found.storage.nbytes:
            raise InputRefused("invalid-tensor", f"tensor {shown(name)} of {dtype} {list(shape)[:8]} reaches past the {found.storage.nbytes} bytes of {key}")
        return found

    def _check_names(self) -> None:
        """What the program asks for is there, and no name is in both configurations."""
        weights, constants = (config["config"].keys() for config in self.configs.values())
        if not weights and not constants:
            raise InputRefused("no-tensors", "the program has no weights: there is nothing to compress")
        if both := weights & constants:
            refuse(f"{shown(min(both))} is a weight and a constant", ())
        for what, names, where in (("parameter", self.program.parameters, weights), ("buffer", self.program.buffers, weights), ("constant", self.program.constants, constants)):
            if missing := names - where:
                _invalid(f"the program needs {what} {shown(min(missing))}, which is not stored")

    def _check_size(self, every: dict[str, Tensor]) -> None:
        """One storage has one dtype, as torch reads it; what the tensors take stays within bounds."""
        size, dtypes = self.path.stat().st_size, {}
        for name, t in every.items():
            if dtypes.setdefault(t.storage.key, t.dtype) != t.dtype:
                raise InputRefused("invalid-tensor", f"tensor {shown(name)} is {t.dtype}, and another one in {t.storage.key} is {dtypes[t.storage.key]}")
        if (total := sum(t.nbytes for t in set(every.values()))) > self.limits.materialised(size):
            most = self.limits.materialised(size)
            raise InputRefused("limit-materialised", f"the tensors take {total} bytes, from a file of {size}; at most {most} are taken")

    def _dropped(self) -> list[Dropped]:
        """What a result of tensors leaves behind; what another program is written with says so."""
        program = "the program itself: its operators and shapes, which tensors alone do not carry"
        out = [Dropped(PROGRAM, self.members[PROGRAM].size, program, kept_in="pt2")]
        out += [Dropped(f"constant {n}", t.nbytes, "a constant of the program", kept_in="pt2") for n, t in self.lifted.items()]
        out += [Dropped(f"{PROGRAM}: {what}", size, f"{what} of the exporter, which tell about its source") for what, size in self.program.stripped.items()]
        if SAMPLES in self.members and (size := self.members[SAMPLES].size):
            out.append(Dropped(SAMPLES, size, "sample inputs: a pickle, which is never loaded, of the exporter's own data"))
        out += [Dropped(n, m.size, "a file that the exporter put beside the program") for n, m in self.members.items() if n.startswith("extra/")]
        return out + [Dropped(n, m.size, "no tensor uses this storage") for n, m in self.members.items() if _PAYLOAD.fullmatch(n) and n not in self.used]


def _says(found: bytes, wanted: bytes | None) -> bool:
    return bool(re.fullmatch(rb"\d{1,64}\s*", found)) if wanted is None else found == wanted
