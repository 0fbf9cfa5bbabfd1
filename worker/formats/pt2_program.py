"""Reads the program of a `.pt2` into one that `torch.export.load` may be given; see `pt2_schema` for what is kept of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from app.limits import Limits, shown
from app.safetensors_header import check_json
from worker.formats.json_checks import refuse
from worker.formats.pt2_schema import MAJOR, PROGRAM


@dataclass(frozen=True)
class Program:
    """A program that was built anew.

    Attributes:
        document: what torch.export reads, as JSON.
        parameters, buffers, constants: the names of the tensors that it needs: of the state dict, and of the constants beside it.
        stripped: what the original said beside (`stack traces`, ...) -> its characters.
    """

    document: dict
    parameters: frozenset[str]
    buffers: frozenset[str]
    constants: frozenset[str]
    stripped: dict[str, int]


def read_program(raw: bytes, limits: Limits) -> Program:
    """Raises: InputRefused: invalid-pt2, unsafe-pt2, limit-depth, limit-entries."""
    found = parse(raw, limits, "the program")
    if type(found) is dict and type(version := found.get("schema_version")) is dict and version.get("major") != MAJOR:
        major = shown(str(version.get("major"))[:20])
        refuse(f"the program has schema version {major}; read is {MAJOR}, of torch 2.11 to 2.13: export it again with one of these", ())
    document = PROGRAM(found, ())
    inputs = document["graph_module"]["signature"]["input_specs"]
    named = {kind: frozenset(i[kind][f"{kind}_name"] for i in inputs if kind in i) for kind in ("parameter", "tensor_constant")}
    buffers = [i["buffer"] for i in inputs if "buffer" in i]
    loose = frozenset(b["buffer_name"] for b in buffers if not b["persistent"])
    kept = frozenset(b["buffer_name"] for b in buffers if b["persistent"])
    return Program(document, named["parameter"], kept, named["tensor_constant"] | loose, _stripped(found))


def parse(raw: bytes, limits: Limits, what: str) -> Any:
    """JSON without a key twice, bounded before it is parsed."""

    def unique(pairs):
        if len(out := dict(pairs)) != len(pairs):
            refuse(f"{what} has a key twice, and readers disagree on which one counts", (), "unsafe-pt2")
        return out

    check_json(raw, limits, pairs=2_000_000, containers=2_000_000)
    try:
        return json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=lambda name: refuse(f"{what} has the number {name}", ()))
    except (ValueError, RecursionError) as e:
        refuse(f"{what} is not JSON: {str(e)[:100]}", ())


_BESIDE = {
    "stack_trace": "stack traces",
    "nn_module_stack": "names of modules and classes",
    "source_fn_stack": "names of functions",
    "torch_fn": "names of functions",
    "from_node": "names of nodes before passes",
    "custom": "notes of the exporter",
}


def _stripped(document: dict) -> dict[str, int]:
    """What the program said beside its arithmetic, and how much of it."""
    found: dict[str, int] = {}
    graphs = [document["graph_module"]["graph"]]
    while graphs:
        for node in graphs.pop()["nodes"]:
            for key, value in node["metadata"].items() if type(node["metadata"]) is dict else ():
                what = _BESIDE.get(key, "notes of the exporter")
                found[what] = found.get(what, 0) + len(str(value))
            graphs += [i["arg"]["as_graph"]["graph"] for i in node["inputs"] if "as_graph" in i["arg"]]
    if metadata := document["graph_module"].get("metadata"):
        found["notes of the exporter"] = found.get("notes of the exporter", 0) + len(str(metadata))
    if guards := document.get("guards_code"):
        found["guards (Python source that checks inputs)"] = len(str(guards))
    return found


def on_device(value: Any, kind: str = "cpu") -> Any:
    """The same document with every device turned into this one, so that a program that was exported from another runs here."""
    if type(value) is dict:
        return {k: {"type": kind, "index": None} if k in ("device", "as_device") else on_device(v, kind) for k, v in value.items()}
    return [on_device(v, kind) for v in value] if type(value) is list else value

