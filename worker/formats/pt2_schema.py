"""The program of a `.pt2` (`models/model.json`), built anew from what torch 2.11 to 2.13 write and this service can vouch for.

torch.export.load trusts that file: it runs symbolic sizes as Python, looks operators up by attribute, imports modules that a tree of inputs names, and
writes the names of values and parameters, unescaped, into Python source that it runs. What is built here has operators of a list (`pt2_operators`), names
that are words, trees and sizes that were parsed (`pt2_treespec`, `pt2_expressions`), and no metadata: no stack traces, no guards (Python source), no
names of the exporter's modules and classes, no custom objects. Members that are not known are refused, for what torch would do with them is not known either.
"""

from __future__ import annotations

import json
import keyword
from typing import Any

from app.limits import shown
from worker.formats.json_checks import Check, Place, boolean, constant, integer, list_of, map_of, maybe, number, record, refuse, text, union
from worker.formats.pt2_expressions import SYMBOL, check_expression
from worker.formats.pt2_operators import allowed
from worker.formats.pt2_treespec import check_treespec

MAJOR = 8
MAX_NODES, MAX_DEPTH = 100_000, 8

_WORD = text(r"[A-Za-z_][A-Za-z0-9_]*", "a name that may stand in a program (letters, digits and _)", "unsafe-pt2")
_TEXT = text(r"[^\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]*", "a text of at most 4096 printable characters", longest=4096)


def word(value: Any, at: Place) -> str:
    if keyword.iskeyword(_WORD(value, at)) or value.startswith("__"):
        refuse(f"{shown(value)} is no name that may stand in a program", at, "unsafe-pt2")
    return value


def qualified(value: Any, at: Place) -> str:
    """A parameter's name: words joined by dots; digits alone and dashes may be a part of it, Python's own attributes may not."""
    parts = value.split(".") if type(value) is str and len(value) <= 512 else [""]
    if not all(p and p.isascii() and p.replace("-", "_").replace("_", "a").isalnum() and not p.startswith("__") for p in parts):
        refuse(f"{shown(str(value)[:200])} is not the name of a parameter", at, "unsafe-pt2")
    return value


def _target(value: Any, at: Place) -> str:
    if type(value) is not str or not allowed(value):
        why = "is no operator that a program may call here; taken are aten's, without those that touch files, memory or processes"
        refuse(f"{shown(str(value)[:200])} {why}", at, "unsafe-pt2")
    return value


_NAMED = record({"name": word})
_INT = integer()
_HINT = maybe(union({"as_int": _INT, "as_bool": boolean, "as_float": number}))
_EXPRESSION = record({"expr_str": check_expression}, {"hint": _HINT})
_SYM_INT = union({"as_expr": _EXPRESSION, "as_int": _INT})
_SYM_FLOAT = union({"as_expr": _EXPRESSION, "as_float": number})
_SYM_BOOL = union({"as_expr": _EXPRESSION, "as_bool": boolean})
_SCALAR_TYPE = integer(0, 64)
_STRIDED = integer(7, 7)
_DEVICE = record({"type": text(r"cpu|cuda|mps|xpu|hpu|mtia|meta", "a device")}, {"index": maybe(integer(0, 1024))})
TENSOR_META = record(
    {
        "dtype": _SCALAR_TYPE, "sizes": list_of(_SYM_INT, 64), "requires_grad": boolean, "device": _DEVICE, "strides": list_of(_SYM_INT, 64),
        "storage_offset": _SYM_INT, "layout": _STRIDED,
    }
)  # fmt: skip
_INT_ARGUMENT = union({"as_name": word, "as_int": _INT})
_FLOAT_ARGUMENT = union({"as_name": word, "as_float": number})
_BOOL_ARGUMENT = union({"as_name": word, "as_bool": boolean})
_OPTIONAL = union({"as_tensor": _NAMED, "as_none": boolean})
_NO_OBJECT = "the program holds an object of a class of its own, which is a pickle; only tensors and numbers are taken"

_VALUES: dict[str, Check] = {
    "as_none": boolean, "as_tensor": _NAMED, "as_tensors": list_of(_NAMED), "as_int": _INT, "as_ints": list_of(_INT), "as_float": number,
    "as_floats": list_of(number), "as_string": _TEXT, "as_strings": list_of(_TEXT, 1024), "as_sym_int": _INT_ARGUMENT,
    "as_sym_ints": list_of(_INT_ARGUMENT), "as_scalar_type": _SCALAR_TYPE, "as_memory_format": integer(0, 16), "as_layout": _STRIDED,
    "as_device": _DEVICE, "as_bool": boolean, "as_bools": list_of(boolean), "as_sym_bool": _BOOL_ARGUMENT, "as_sym_bools": list_of(_BOOL_ARGUMENT),
    "as_optional_tensors": list_of(_OPTIONAL), "as_sym_float": _FLOAT_ARGUMENT, "as_sym_floats": list_of(_FLOAT_ARGUMENT), "as_optional_tensor": _OPTIONAL,
    "as_complex": record({"real": number, "imag": number}), "as_nested_tensors": list_of(list_of(_NAMED)), "as_int_lists": list_of(list_of(_INT)),
    "as_float_lists": list_of(list_of(number)),
}  # fmt: skip
_REFUSED = {
    "as_custom_obj": _NO_OBJECT,
    "as_operator": "the program hands an operator to another one, which is not taken",
    "as_string_to_argument": "the program hands a dict to an operator, which is not taken",
}
_VALUE = union(_VALUES, _REFUSED | {"as_graph": "a graph stands where a value is needed"})


def _graph_argument(value: Any, at: Place) -> dict:
    return record({"name": word, "graph": _graph})(value, at)


_ARGUMENT = union(_VALUES | {"as_graph": _graph_argument}, _REFUSED)
_NODE = record(
    {
        "target": _target,
        "inputs": list_of(record({"name": lambda v, at: v if v == "" else word(v, at), "arg": _ARGUMENT}, {"kind": maybe(integer(0, 2))}), 4096),
        "outputs": list_of(_VALUE, 4096),
        "metadata": constant({}),
    },
    {"is_hop_single_tensor_return": maybe(boolean), "name": maybe(word)},
)
_GRAPH = record(
    {
        "inputs": list_of(_VALUE), "outputs": list_of(_VALUE), "nodes": list_of(_NODE, MAX_NODES), "tensor_values": map_of(word, TENSOR_META),
        "sym_int_values": map_of(word, _SYM_INT), "sym_bool_values": map_of(word, _SYM_BOOL),
    },
    {
        "is_single_tensor_return": boolean, "sym_float_values": map_of(word, _SYM_FLOAT),
        "custom_obj_values": map_of(lambda v, at: refuse(_NO_OBJECT, at, "unsafe-pt2"), constant(None)),
    },
)  # fmt: skip


def _graph(value: Any, at: Place) -> dict:
    depth, place = 0, at
    while place:
        place, key = place
        depth += key == "as_graph"
    if depth > MAX_DEPTH:
        refuse(f"graphs are nested more than {MAX_DEPTH} levels deep", at, "limit-depth")
    return _GRAPH(value, at)


_CONSTANT = union({"as_none": boolean, "as_int": _INT, "as_float": number, "as_string": _TEXT, "as_bool": boolean})
_TOKENS = "the program orders its side effects by tokens; only functions of their inputs are taken"
_INPUT = union(
    {
        "user_input": record({"arg": _VALUE}),
        "parameter": record({"arg": _NAMED, "parameter_name": qualified}),
        "buffer": record({"arg": _NAMED, "buffer_name": qualified, "persistent": boolean}),
        "tensor_constant": record({"arg": _NAMED, "tensor_constant_name": qualified}),
        "constant_input": record({"name": word, "value": _CONSTANT}),
    },
    {"custom_obj": _NO_OBJECT, "token": _TOKENS},
)
_OUTPUT = union(
    {
        "user_output": record({"arg": _VALUE}),
        "loss_output": record({"arg": _NAMED}),
        "buffer_mutation": record({"arg": _NAMED, "buffer_name": qualified}),
        "parameter_mutation": record({"arg": _NAMED, "parameter_name": qualified}),
        "user_input_mutation": record({"arg": _NAMED, "user_input_name": word}),
    },
    {"token": _TOKENS} | dict.fromkeys(("gradient_to_parameter", "gradient_to_user_input"), "the program trains; only programs that predict are taken"),
)
_SIGNATURE = record(
    {"inputs": list_of(_VALUE), "outputs": list_of(_VALUE), "in_spec": check_treespec, "out_spec": check_treespec},
    {"forward_arg_names": maybe(list_of(word, 4096))},
)


def _call(value: Any, at: Place) -> list:
    """Of the modules that the program was made of, only the outermost: how the program itself is called."""
    if type(value) is not list or not value:
        refuse("the program does not say how it is called", at)
    first = record({"fqn": text("", "the empty name of the whole program"), "signature": _SIGNATURE})
    entry = value[0]
    if type(entry) is not dict:
        refuse("an object is needed", at)
    call = first({k: v for k, v in entry.items() if k in ("fqn", "signature")}, (at, 0))
    root = json.loads(call["signature"]["in_spec"])[1]
    if [root["type"], *(c["type"] for c in root["children_spec"])] != ["builtins.tuple", "builtins.tuple", "builtins.dict"]:
        refuse("the program's inputs are not (arguments, keyword arguments)", at)
    for name in json.loads(root["children_spec"][1]["context"]):
        word(name, ((at, 0), "in_spec"))
    return [call]


PROGRAM = record(
    {
        "graph_module": record(
            {
                "graph": _graph,
                "signature": record({"input_specs": list_of(_INPUT), "output_specs": list_of(_OUTPUT)}),
                "module_call_graph": _call,
            },
            {"metadata": constant({}), "treespec_namedtuple_fields": constant({})},
        ),
        "opset_version": map_of(text(r"[a-z_]{1,32}", "the name of a set of operators"), integer(0, 1000)),
        "range_constraints": map_of(text(SYMBOL.pattern, "a symbol", "unsafe-pt2"), record({"min_val": maybe(_INT), "max_val": maybe(_INT)})),
        "schema_version": record({"major": integer(MAJOR, MAJOR), "minor": integer(0, 1000)}),
    },
    {
        "verifiers": list_of(text("TRAINING|ATEN", "a dialect that is taken (TRAINING, ATEN)"), 4),
        "torch_version": text(r"[0-9A-Za-z.+<=\-]{1,64}", "a version"),
        "guards_code": constant([]),
    },
)
