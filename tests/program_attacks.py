"""Programs that run code when torch loads or calls them, or that do harm in another way. Each payload would make the file `canary`."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from programs import GOLDEN, edited, members, nodes, with_members, zipped

WEIGHTS = "data/weights/model_weights_config.json"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def _pickled(canary: str) -> bytes:
    out = io.BytesIO()
    torch.save(Touch(canary), out)
    return out.getvalue()


def _renamed(document, old: str, new: str):
    """`old` -> `new` wherever a value has that name, keys too."""
    if isinstance(document, dict):
        return {new if k == old else k: _renamed(v, old, new) for k, v in document.items()}
    if isinstance(document, list):
        return [_renamed(v, old, new) for v in document]
    return new if document == old else document


def _rename(old: str, new: str) -> Callable[[dict], None]:
    def edit(document: dict) -> None:
        document |= _renamed(dict(document), old, new)

    return edit


def _first_expression(text: str) -> Callable[[dict], None]:
    def edit(document: dict) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        next(s for v in values.values() for s in v["sizes"] if "as_expr" in s)["as_expr"]["expr_str"] = text

    return edit


def _node(**fields) -> Callable[[dict], None]:
    return lambda document: nodes(document)[1].update(fields)


def _argument(kind: str, value) -> Callable[[dict], None]:
    return lambda document: nodes(document)[0]["inputs"].append({"name": "alpha", "arg": {kind: value}, "kind": 2})


def _spec(change: Callable[[dict], None], which: str = "in_spec") -> Callable[[dict], None]:
    def edit(document: dict) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        protocol, tree = json.loads(signature[which])
        change(tree)
        signature[which] = json.dumps([protocol, tree])

    return edit


def _enum(tree: dict) -> None:
    tree["children_spec"][1] |= {"context": json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "x"}])}
    tree["children_spec"][1]["children_spec"] = [{"type": None, "context": None, "children_spec": []}]


def _keyword(canary: str) -> Callable[[dict], None]:
    """A keyword argument in the place of the positional one, whose key ends the string that torch.fx writes it into."""

    def change(tree: dict) -> None:
        arguments, keywords = tree["children_spec"]
        keywords["children_spec"], arguments["children_spec"] = arguments["children_spec"], []
        keywords["context"] = json.dumps([f"x':__import__('pathlib').Path({canary!r}).touch(), 'x"])

    return _spec(change)


def attacks(canary: str) -> dict[str, bytes]:
    """Name -> a `.pt2` made of the golden one."""
    data = GOLDEN.read_bytes()
    root, found = members(data)
    run = f"__import__('pathlib').Path({canary!r}).touch()"

    def program(edit: Callable[[dict], None]) -> bytes:
        return edited(data, edit)

    def config(**fields) -> bytes:
        return edited(data, lambda d: d["config"]["fc1.weight"].update(fields), WEIGHTS)

    def without(name: str) -> dict[str, bytes]:
        return {n: c for n, c in found.items() if n != name}

    twice = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "w") as z:
        warnings.simplefilter("ignore")  # that a name is there twice is the point
        for name, content in (*found.items(), ("models/model.json", found["models/model.json"])):
            z.writestr(f"{root}/{name}", content)
    subgraph = {"as_graph": {"name": f"x; {run} #", "graph": json.loads(found["models/model.json"])["graph_module"]["graph"]}}
    return {
        "expression": program(_first_expression(f"({run}, Symbol('s77'))[1]")),
        "expression by attribute": program(_first_expression("Symbol('s77').func.__subclasses__()")),
        "expression of a keyword": program(_first_expression(f"Symbol('s77', integer={run})")),
        "expression in a format string": program(_first_expression(f"Symbol(f'{{{run}}}')")),
        "expression that never ends": program(_first_expression("Pow(Integer(9), Pow(Integer(9), Integer(9)))")),
        "expression of nested powers": program(_first_expression("Pow(" * 8 + "Integer(9)" + ", Integer(64))" * 8)),
        "expression of nested operators": program(_first_expression("9**9**9**9")),
        "expression of a shift": program(_first_expression("LShift(Integer(1), Integer(10000000000))")),
        "expression that is deep": program(_first_expression("(" * 900 + "s77" + ")" * 900)),
        "expression in a hint": program(lambda d: d["graph_module"]["graph"]["sym_int_values"].update(a={"as_expr": {"expr_str": run, "hint": None}})),
        "name of a node": program(_rename("relu", f"relu = None; {run}; relu")),
        "name of an input": program(_rename("x", f"x={run}")),
        "name of a parameter": edited(program(_rename("fc1.weight", f'fc1", {run}) or getattr(self.fc1, "weight')), _rename("fc1.weight", f'fc1", {run}) or getattr(self.fc1, "weight'), WEIGHTS),
        "name of an attribute of Python": edited(program(_rename("fc1.weight", "__class__.weight")), _rename("fc1.weight", "__class__.weight"), WEIGHTS),
        "name of a subgraph": program(lambda d: nodes(d)[0].update(target="torch.ops.higher_order.cond", inputs=[{"name": "", "arg": subgraph, "kind": 1}])),
        "argument's name": program(lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=[f"x={run}"])),
        "keyword's key": program(_keyword(canary)),
        "tree that imports": program(_spec(_enum)),
        "tree of a class": program(_spec(lambda tree: tree.update(type="transformers.modeling_outputs.BaseModelOutput"), "out_spec")),
        "tree that is deep": program(lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(out_spec="[1, " + '{"type": "builtins.tuple", "context": "null", "children_spec": [' * 900 + "]}" * 900 + "]")),
        "operator of torch": program(_node(target="torch.hub.load")),
        "operator by a module": program(_node(target="torch.os.system")),
        "operator that maps files": program(_node(target="torch.ops.aten.from_file.default")),
        "operator that swaps storages": program(_node(target="torch.ops.aten.set_.source_Storage")),
        "operator that writes out": program(_node(target="torch.ops.aten.add.out")),
        "operator of a library": program(_node(target="torch.ops.mylib.op.default")),
        "operator of Python": program(_node(target="_operator.attrgetter")),
        "operator of an extension": program(_node(target="#aoti:x")),
        "operator that loops": program(_node(target="torch.ops.higher_order.while_loop")),
        "operator as an argument": program(_argument("as_operator", "torch.os.system")),
        "custom object": program(_argument("as_custom_obj", {"name": "o", "class_fqn": "x"})),
        "custom object among the values": program(lambda d: d["graph_module"]["graph"]["custom_obj_values"].update(o={"name": "o", "class_fqn": "x"})),
        "custom object among the inputs": program(lambda d: d["graph_module"]["signature"]["input_specs"].append({"custom_obj": {"arg": {"name": "o", "class_fqn": "x"}, "custom_obj_name": "o"}})),
        "symbol's name": program(lambda d: d.update(range_constraints={run: {"min_val": 0, "max_val": 1}})),
        "verifier": program(lambda d: d.update(verifiers=["x"])),
        "member that is not known": program(lambda d: d.update(plugins=[run])),
        "key that stands twice": zipped(root, found | {"models/model.json": found["models/model.json"].replace(b'"guards_code"', b'"torch_version": "2", "guards_code"')}),
        "schema of another age": program(lambda d: d.update(schema_version={"major": 9, "minor": 0})),
        "pickled weight": zipped(root, edit_config(found, use_pickle=True) | {"data/weights/weight_0": _pickled(canary)}),
        "weight without a description": config(tensor_meta=None),
        "weight elsewhere": config(path_name="../../models/model.json"),
        "weights of old": zipped(root, without(WEIGHTS) | {"data/weights/model.pt": _pickled(canary)}),
        "weights of old beside new": with_members(data, {"data/weights/model.pt": _pickled(canary)}),
        "opaque constant": zipped(root, found | {"data/constants/opaque_obj_0": pickle.dumps(Touch(canary)), "data/constants/model_constants_config.json": json.dumps({"config": {"o": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}}).encode()}),
        "compiled package": with_members(data, {"data/aotinductor/model/a.so": b"\x7fELF"}),
        "second program": with_members(data, {"models/other.json": found["models/model.json"]}),
        "member twice": twice.getvalue(),
        "inflated": zipped(root, found, zipfile.ZIP_DEFLATED),
        "view past its storage": edited(data, lambda d: d["config"]["fc1.weight"]["tensor_meta"].update(sizes=[{"as_int": 1 << 40}, {"as_int": 6}]), WEIGHTS),
        "view of one element": edited(data, lambda d: d["config"]["fc1.weight"]["tensor_meta"].update(sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}]), WEIGHTS),
        "view before its storage": edited(data, lambda d: d["config"]["fc1.weight"]["tensor_meta"].update(storage_offset={"as_int": -4}), WEIGHTS),
        "symbolic weight": edited(data, lambda d: d["config"]["fc1.weight"]["tensor_meta"]["sizes"].insert(0, {"as_expr": {"expr_str": run}}), WEIGHTS),
        "parameter that is missing": edited(data, lambda d: d["config"].pop("fc1.weight"), WEIGHTS),
    }  # fmt: skip


def edit_config(found: dict[str, bytes], **fields) -> dict[str, bytes]:
    document = json.loads(found[WEIGHTS])
    document["config"]["fc1.weight"].update(fields)
    return found | {WEIGHTS: json.dumps(document).encode()}


def silent(canary: str) -> dict[str, bytes]:
    """Attacks on what is left out anyhow: these files are taken, and nothing of them runs."""
    data = GOLDEN.read_bytes()
    run = f"__import__('pathlib').Path({canary!r}).touch()"
    return {
        "samples": with_members(data, {"data/sample_inputs/model.pt": _pickled(canary)}),
        "guard": edited(data, lambda d: d.update(guards_code=[run])),
        "stack of modules": edited(data, lambda d: nodes(d)[0]["metadata"].update(nn_module_stack=run)),
        "source of a node": edited(data, lambda d: nodes(d)[0]["metadata"].update(source_fn_stack=f"a,torch.os.{run}")),
        "notes": edited(data, lambda d: d["graph_module"].update(metadata={"custom": json.dumps({"__enum__": True, "fqn": "antigravity:x"})})),
        "file beside": with_members(data, {"extra/setup.py": run.encode()}),
    }
