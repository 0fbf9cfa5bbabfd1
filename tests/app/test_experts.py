"""Which tensors hold all experts of a layer, and which of their axes are inputs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.experts import stacks
from app.outline import TensorSpec

sizes = st.integers(1, 40)


def specs(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {n: TensorSpec(n, "F32", s, 0, "f") for n, s in shapes.items()}


def found(shapes: dict[str, tuple[int, ...]], config: dict | None = None) -> dict[str, tuple]:
    return {n.rsplit(".", 1)[-1]: tuple(s) for n, s in stacks(specs(shapes), config).items()}


@given(sizes, sizes, sizes, st.booleans())
def test_a_gate_tells_which_way_experts_are_stored(count, hidden, inner, turned):
    up, down = (2 * inner, hidden), (hidden, inner)
    shapes = {"m.experts.gate_up_proj": (count, *up[:: -1 if turned else 1]), "m.experts.down_proj": (count, *down[:: -1 if turned else 1])}
    both_ways = hidden == 2 * inner  # up is square: [out, in] and [in, out] are one shape
    got = found(shapes)
    assert both_ways or all(s == (count, turned, True, True) for s in got.values())


def test_gpt_oss_whose_last_matrices_are_square():
    got = found({"model.layers.0.mlp.experts.gate_up_proj": (4, 2880, 5760), "model.layers.0.mlp.experts.down_proj": (4, 2880, 2880)})
    assert got == {"gate_up_proj": (4, True, True, True), "down_proj": (4, True, True, True)}


@pytest.mark.parametrize("turned", [False, True])
def test_without_a_gate_the_hidden_size_tells(turned):
    up, down = ((3, 10, 6), (3, 6, 10)) if turned else ((3, 6, 10), (3, 10, 6))
    shapes = {"l.experts.up_proj": up, "l.experts.down_proj": down}
    assert all(not told for *_, told in found(shapes).values())
    for config in ({"hidden_size": 10}, {"hidden_size": 6, "text_config": {"num_experts": 3, "hidden_size": 10}}):
        assert all(s == (3, turned, True, True) for s in found(shapes, config).values())
    assert all(s == (3, False, True, False) for s in found(shapes, {"hidden_size": 99}).values())


def test_what_is_a_stack_of_experts():
    yes = {"a.experts.w13_weight": (2, 8, 4), "a.block_sparse_moe.input_linear.weight": (2, 8, 4), "a.shared_experts.gate_proj": (2, 4, 4), "a.experts.fc1.weight": (2, 8, 4), "conv_moe.experts.fc2.weight": (2, 4, 8)}
    other = {"a.experts.odd": (2, 8, 4)}
    no = {"a.experts.gate_up_proj_bias": (2, 8), "a.experts.0.w1.weight": (8, 4), "conv.weight": (8, 4, 3), "a.gate_up_proj": (2, 8, 4)}
    no |= {"vision_moe.conv1.weight": (8, 4, 3), "a.experts.0.conv1d.weight": (8, 4, 3), "moe.convs.2.weight": (8, 4, 3), "a.moe.dwconv.weight": (8, 1, 3)}
    got = stacks(specs(yes | other | no), None)
    assert got.keys() == yes.keys() | other.keys() and all(got[n].known for n in yes) and not got["a.experts.odd"].known
