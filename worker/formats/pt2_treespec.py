"""How a program's inputs and outputs are nested: the JSON that `torch.utils._pytree.treespec_loads` reads.

That function imports a module by any name it is given (`{"__enum__": .., "fqn": "module:Class"}`), and the keys of a call's keyword arguments end
up in Python source that torch.fx writes and runs. Only tuples, lists and dicts are taken, with keys that are plain words.
"""

from __future__ import annotations

import json
import re
from typing import Any

from app.limits import shown
from worker.formats.json_checks import Place, refuse

_SEQUENCES = ("builtins.tuple", "builtins.list", "torch.fx.immutable_collections.immutable_list")
_DICTS = ("builtins.dict", "collections.OrderedDict", "torch.fx.immutable_collections.immutable_dict")
_KEY = re.compile(r"[A-Za-z0-9_.\-/ ]{1,200}")
_MAX_CHARS, _MAX_NODES, _MAX_DEPTH = 1 << 20, 20_000, 32


def check_treespec(value: Any, at: Place) -> str:
    """The same tree, written anew.

    Raises:
        InputRefused: invalid-pt2, or unsafe-pt2 for a class of somebody's own.
    """
    if type(value) is not str or len(value) > _MAX_CHARS or value.count("{") > _MAX_NODES:
        refuse(f"a tree of inputs or outputs is no text of at most {_MAX_CHARS} characters and {_MAX_NODES} nodes", at)
    if value.count("[") > 3 * _MAX_NODES:
        refuse("a tree of inputs or outputs has too many lists", at)
    try:
        protocol, root = json.loads(value)
    except (ValueError, TypeError, RecursionError):
        refuse("a tree of inputs or outputs is not [protocol, tree] in JSON", at)
    if type(protocol) is not int or protocol != 1:
        refuse(f"a tree of inputs or outputs has protocol {shown(str(protocol)[:20])}; read is 1", at)
    return json.dumps([1, _node(root, at, 0)])


def keys(treespec: str) -> list[str | None]:
    """Of each leaf of a checked tree, in order, the key by which the nearest dict above it has it."""

    def walk(node: dict, key: str | None):
        if node["type"] is None:
            yield key
        named = json.loads(node["context"]) if node["type"] in _DICTS else [key] * len(node["children_spec"])
        for name, child in zip(named, node["children_spec"], strict=True):
            yield from walk(child, name)

    return list(walk(json.loads(treespec)[1], None))


def _node(node: Any, at: Place, depth: int) -> dict:
    if depth > _MAX_DEPTH:
        refuse(f"inputs or outputs are nested more than {_MAX_DEPTH} levels deep", at)
    if type(node) is not dict or node.keys() != {"type", "context", "children_spec"} or type(node["children_spec"]) is not list:
        refuse("a node of a tree has other members than type, context and children_spec", at)
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is None:
        if context is not None or children:
            refuse("a leaf of a tree has a context or children", at)
    elif kind in _SEQUENCES:
        if context != "null":
            refuse("a list or tuple of a tree has a context", at)
    elif kind in _DICTS:
        context = json.dumps(_keys(context, len(children), at))
    else:
        why = f"inputs or outputs are nested in a {shown(str(kind))}; taken are tuples, lists and dicts"
        refuse(f"{why}: wrap the model in a module that returns one of these, and export that", at, "unsafe-pt2")
    return {"type": kind, "context": context, "children_spec": [_node(c, at, depth + 1) for c in children]}


def _keys(context: Any, children: int, at: Place) -> list:
    try:
        keys = json.loads(context) if type(context) is str else None
    except (ValueError, RecursionError):
        keys = None
    if type(keys) is not list or len(keys) != children:
        refuse("a dict of a tree does not name one key for each child", at)
    for key in keys:
        if type(key) is not int and not (type(key) is str and _KEY.fullmatch(key)):
            refuse(f"a dict of inputs or outputs has the key {shown(str(key)[:200])}; taken are plain words and integers", at, "unsafe-pt2")
    if len(set(keys)) != len(keys):
        refuse("a dict of a tree has a key twice", at)
    return keys
