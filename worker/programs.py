"""A program of torch.export, loaded and called by the names of its inputs. For jailed children only; what is loaded was built anew (`pt2_schema`).

The weights are given to torch's deserializer as mapped tensors, so that nothing is copied and no file is written.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from app.errors import InputRefused
from worker.checkpoint import DTYPES
from worker.formats.pt2_file import DTYPE_NUMBERS, Pt2File
from worker.formats.pt2_program import on_device
from worker.formats.pt2_treespec import keys
from worker.program_layers import with_layers

_BATCH = 256
"""Samples of a call where the program does not bound them."""
_TOGETHER = 64
"""Samples of a batch whose gradients are taken together (`worker.calibration`)."""


@dataclass(frozen=True)
class Argument:
    """A tensor that the program takes.

    Args:
        shape: with the batch's dimension; None for a size that is free.
        hint: the sizes with which it was exported.
        below: bound on integers, where they look something up in a table.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    hint: tuple[int, ...]
    below: int | None = None


@dataclass
class Loaded:
    """A program that can be called.

    Args:
        module: its modes are those with which it was exported; `train` and `eval` change nothing.
        parameters: by the names of its state dict, tied ones under each.
        arguments: the tensors that it takes; `leaves` has them by position and constants as they are.
        least, most: samples of one call.
        output: the position of the output that is compared among all.
        output_shape: with the batch's dimension; None for free sizes.
    """

    module: nn.Module
    parameters: dict[str, nn.Parameter]
    arguments: list[Argument]
    leaves: list[Any]
    least: int
    most: int
    output: int
    output_shape: tuple[int | None, ...]
    in_spec: Any

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The compared output for n samples, [n, ...]: in as many calls as the program's batch size asks for, the last filled up with its last sample.

        Args:
            inputs: [n, ...] by name.
        """
        given = [inputs[a.name].to(a.dtype) for a in self.arguments]
        count = len(given[0])
        return torch.cat([self._one([g[at : at + self.most] for g in given]) for at in range(0, count, self.most)])

    def _one(self, given: list[torch.Tensor]) -> torch.Tensor:
        count = len(given[0])
        if count < self.least:
            given = [torch.cat([g, g[-1:].expand(self.least - count, *g.shape[1:])]) for g in given]
        values = iter(given)
        args, kwargs = _pytree.tree_unflatten([next(values) if isinstance(leaf, Argument) else leaf for leaf in self.leaves], self.in_spec)
        return _pytree.tree_leaves(self.module(*args, **kwargs), is_leaf=lambda x: x is None)[self.output][:count]


def load(source: Pt2File, device: torch.device) -> Loaded:
    """Raises: InputRefused: not-runnable, where torch does not load it, or it does not compute one output per sample from named tensors."""
    program = exported(source, device)
    module = program.module()
    for mode in ("train", "eval"):
        setattr(module, mode, types.MethodType(lambda self, *_: self, module))
    module.requires_grad_(False)
    parameters = {n: p for n, p in module.named_parameters(remove_duplicate=False)}
    arguments, leaves = _arguments(source)
    least, most = _batch(source, arguments)
    output, shape = _output(source, arguments)
    if least == 1 and most >= _TOGETHER:  # else samples are filled up or spread over calls, and hooks would take them for others
        with_layers(module)
    return Loaded(module, parameters, arguments, leaves, least, most, output, shape, program.call_spec.in_spec)


def exported(source: Pt2File, device: torch.device):
    """The ExportedProgram, with its weights mapped (on a CPU), every device of it turned into `device`."""
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

    weights = source.configs["data/weights/"]["config"]
    state = {name: source.load(name).to(device) for name in source.tensors}
    state |= {alias: state[name] for alias, name in source.aliases.items()}
    own = {n: nn.Parameter(t, requires_grad=t.is_floating_point()) for n, t in state.items() if weights[n]["is_param"] and n not in source.aliases}
    state = {n: own.get(source.aliases.get(n, n), state[n]) if weights[n]["is_param"] else state[n].detach() for n in weights}
    lifted = {name: source.values(view).to(device) for name, view in source.lifted.items()}
    document = on_device(source.program.document, device.type)
    try:
        parsed = _dict_to_dataclass(schema.ExportedProgram, document)
        return ExportedProgramDeserializer().deserialize(parsed, state, lifted, b"")
    except MemoryError:
        raise
    except Exception as e:  # whatever torch says of a stranger's program is a refusal
        if "memory" in str(e) or "bad_alloc" in str(e):
            raise
        raise refused(f"torch {torch.__version__} does not load it ({type(e).__name__}: {_last(e)})") from e


def _last(e: Exception) -> str:
    return (str(e).strip().splitlines() or [""])[-1][:300]


def refused(why: str) -> InputRefused:
    return InputRefused("not-runnable", f"the program cannot be run: {why}; export it again from a module that takes tensors and returns one row per sample")


def _sizes(meta: dict) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """The sizes, None for those that are free, and the sizes of the example."""
    fixed = tuple(s.get("as_int") for s in meta["sizes"])
    hints = (s if s is not None else ((e["as_expr"].get("hint") or {}).get("as_int") or 2) for s, e in zip(fixed, meta["sizes"], strict=True))
    return fixed, tuple(hints)


def _arguments(source: Pt2File) -> tuple[list[Argument], list[Any]]:
    """What the program takes, in its order: tensors, and constants with which it was exported."""
    graph, signature = (source.program.document["graph_module"][k] for k in ("graph", "signature"))
    call = source.program.document["graph_module"]["module_call_graph"][0]["signature"]
    specs = [i for i in signature["input_specs"] if "user_input" in i or "constant_input" in i]
    names = call.get("forward_arg_names") or []
    tables = _tables(graph)
    arguments, leaves = [], []
    for at, spec in enumerate(specs):
        if "constant_input" in spec:
            ((kind, value),) = spec["constant_input"]["value"].items()
            leaves.append(None if kind == "as_none" else float(value) if kind == "as_float" else value)
            continue
        ((kind, value),) = spec["user_input"]["arg"].items()
        if kind != "as_tensor":
            raise refused(f"its input {at} is no tensor ({kind.removeprefix('as_')})")
        meta = graph["tensor_values"].get(value["name"])
        dtype = DTYPE_NUMBERS.get(meta["dtype"]) if meta else None
        if dtype is None:
            raise refused(f"its input {value['name']} has no known dtype")
        shape, hint = _sizes(meta)
        if not shape:
            raise refused(f"its input {value['name']} has no dimension for samples")
        name = names[at] if len(names) == len(specs) else value["name"]
        arguments.append(Argument(name, DTYPES[dtype], shape, hint, tables.get(value["name"])))
        leaves.append(arguments[-1])
    if not arguments:
        raise refused("it takes no tensor")
    return arguments, leaves


def _tables(graph: dict) -> dict[str, int]:
    """Inputs that are looked up in a table, and how many rows it has."""
    found: dict[str, int] = {}
    for node in graph["nodes"]:
        if node["target"] == "torch.ops.aten.embedding.default":
            given = {i["name"]: i["arg"].get("as_tensor", {}).get("name") for i in node["inputs"]}
            if meta := graph["tensor_values"].get(given.get("weight")):
                if rows := meta["sizes"][0].get("as_int") if meta["sizes"] else None:
                    found[given.get("indices")] = min(rows, found.get(given.get("indices"), rows))
    return found


def _batch(source: Pt2File, arguments: list[Argument]) -> tuple[int, int]:
    """The fewest and the most samples of a call: the first size of every input, fixed or within a symbol's range."""
    first = {a.shape[0] for a in arguments}
    if len(first) > 1:
        raise refused(f"its inputs have other numbers of samples: {', '.join(f'{a.name} {list(a.hint)}' for a in arguments)}")
    (fixed,) = first
    if fixed is not None:
        if fixed < 1:
            raise refused("it was exported with no sample")
        return fixed, fixed
    metas = source.program.document["graph_module"]["graph"]["tensor_values"]
    sizes = [metas[name]["sizes"][0]["as_expr"] for name in _inputs(source)]
    symbols = [next((s for s in source.program.document["range_constraints"] if e["expr_str"].startswith(f"Symbol('{s}'")), None) for e in sizes]
    if None in symbols or len(set(symbols)) > 1:  # a multiple of something: as many as it was exported with
        return arguments[0].hint[0], arguments[0].hint[0]
    bounds = source.program.document["range_constraints"][symbols[0]]
    least = max(1, bounds["min_val"] or 1)
    return least, max(least, min(_BATCH, bounds["max_val"] or _BATCH))


def _inputs(source: Pt2File) -> set[str]:
    specs = source.program.document["graph_module"]["signature"]["input_specs"]
    return {i["user_input"]["arg"]["as_tensor"]["name"] for i in specs if "as_tensor" in i.get("user_input", {}).get("arg", {})}


def _output(source: Pt2File, arguments: list[Argument]) -> tuple[int, tuple[int | None, ...]]:
    """Of the floating outputs with a row for each sample, `logits` where one is called so, else the first: its position and its shape."""
    document = source.program.document["graph_module"]
    specs = [o for o in document["signature"]["output_specs"] if "user_output" in o or "loss_output" in o]
    names = keys(document["module_call_graph"][0]["signature"]["out_spec"])
    found: dict[int, tuple[int | None, ...]] = {}
    for at, spec in enumerate(specs):
        meta = document["graph"]["tensor_values"].get(spec.get("user_output", {}).get("arg", {}).get("as_tensor", {}).get("name"))
        if meta and DTYPES[DTYPE_NUMBERS.get(meta["dtype"], "I64")].is_floating_point:
            shape, hint = _sizes(meta)
            if shape and hint[0] == arguments[0].hint[0]:
                found[at] = shape
    if not found:
        raise refused("none of its outputs is a tensor of floats with a row for each sample")
    at = next((i for i in found if i < len(names) and names[i] == "logits"), next(iter(found)))
    return at, found[at]


def describe(loaded: Loaded) -> dict:
    """For a report: what it takes."""
    return {a.name: {"dtype": str(a.dtype).removeprefix("torch."), "shape": list(a.shape)} for a in loaded.arguments}


def zeros(loaded: Loaded, samples: int) -> dict[str, torch.Tensor]:
    """Inputs of nothing, in the sizes with which it was exported."""
    device = next((p.device for p in loaded.module.parameters()), torch.device("cpu"))
    return {a.name: torch.zeros(samples, *a.hint[1:], dtype=a.dtype, device=device) for a in loaded.arguments}

