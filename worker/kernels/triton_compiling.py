"""Triton's kernels, compiled before a jail is there: compiling runs programs and writes files, which a jailed child cannot.

    python -m worker.kernels.triton_compiling FOLDER     of the GPU that this process sees

    FOLDER/search_and_round-bf16-128.cubin     of one dtype and one size of a group
    FOLDER/kernels.json                        {"search_and_round-bf16-128": {"warps", "shared", "hidden"}}

`cubins` launches what lies there.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker.kernels import gpu_rounding
from worker.kernels.scale_search import CANDIDATES
from worker.kernels.triton_rounding import search_and_round

_WARPS = 4
_SIGNATURE = {
    "codes": "*i8", "scales": "*fp32", "steps": "*i32", "groups": "i64", "low": "i32", "high": "i32", "shift": "i32", "kind": "i32", "most": "fp32", "eps": "fp32",
    "SIZE": "constexpr", "ROWS": "constexpr", "COUNT": "constexpr",
}  # fmt: skip
_ARGUMENTS = 1 + sum(kind != "constexpr" for kind in _SIGNATURE.values())
_PARAMETER = re.compile(r"^\s*\.param .*_param_\d+,?$", re.MULTILINE)


def compiled(folder: Path, capability: int) -> None:
    """All kernels for a GPU of this compute capability (90 for 9.0), into `folder`. No GPU is needed."""
    told = {}
    for dtype in gpu_rounding.DTYPES.values():
        for size in gpu_rounding.SIZES:
            source = ASTSource(search_and_round, {"x": f"*{dtype}"} | _SIGNATURE, {"SIZE": size, "ROWS": gpu_rounding.rows(size), "COUNT": CANDIDATES}, {(i,): [["tt.divisibility", 16]] for i in range(4)})
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": _WARPS, "enable_fp_fusion": False})
            parameters = len(_PARAMETER.findall(made.asm["ptx"]))
            name = gpu_rounding.name(dtype, size)
            told[name] = {"warps": _WARPS, "shared": made.metadata.shared, "hidden": parameters - _ARGUMENTS}
            (folder / f"{name}.cubin").write_bytes(made.asm["cubin"])
    (folder / "kernels.json").write_text(json.dumps(told))


if __name__ == "__main__":
    major, minor = torch.cuda.get_device_capability()
    compiled(Path(sys.argv[1]), 10 * major + minor)
