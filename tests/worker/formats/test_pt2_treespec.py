"""Trees of inputs and outputs: what torch writes is taken and means the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree

from app.errors import InputRefused
from worker.formats.json_checks import TOP
from worker.formats.pt2_treespec import check_treespec, keys

TREES = st.recursive(st.just(0), lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(st.text("abc_.1", min_size=1), inner, max_size=3)))
LEAF = {"type": None, "context": None, "children_spec": []}


def dumped(tree) -> str:
    return _pytree.treespec_dumps(_pytree.tree_structure(tree))


@settings(deadline=None)
@given(TREES)
def test_what_torch_writes_comes_back(tree):
    clean = check_treespec(dumped(tree), TOP)
    assert _pytree.treespec_loads(clean) == _pytree.tree_structure(tree)
    assert len(keys(clean)) == _pytree.tree_structure(tree).num_leaves


def test_keys_of_leaves():
    assert keys(dumped({"a": 0, "b": (0, [0]), "c": {"d": 0}})) == ["a", "b", "b", "d"]
    assert keys(dumped((0, 0))) == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        None, "", "[]", "[1]", "[2, {}]", "[true, {}]", "[1, []]", "[1, {}]", "{", "[1, {\"type\": null}]",
        json.dumps([1, LEAF | {"type": "os.system"}]),
        json.dumps([1, LEAF | {"type": "collections.namedtuple", "context": "x.Y"}]),
        json.dumps([1, LEAF | {"type": "builtins.tuple", "context": "[]"}]),
        json.dumps([1, LEAF | {"type": "builtins.dict", "context": "null"}]),
        json.dumps([1, {"type": "builtins.dict", "context": '["a"]', "children_spec": []}]),
        json.dumps([1, {"type": "builtins.dict", "context": '["a", "a"]', "children_spec": [LEAF, LEAF]}]),
        json.dumps([1, {"type": "builtins.dict", "context": '["a\'"]', "children_spec": [LEAF]}]),
        json.dumps([1, {"type": "builtins.dict", "context": '[{"__enum__": true, "fqn": "os:x", "name": "y"}]', "children_spec": [LEAF]}]),
        json.dumps([1, LEAF | {"more": 1}]),
        json.dumps([1, LEAF | {"children_spec": [LEAF]}]),
    ],
)  # fmt: skip
def test_refused(text):
    with pytest.raises(InputRefused) as refusal:
        check_treespec(text, TOP)
    assert refusal.value.type in ("invalid-pt2", "unsafe-pt2")
