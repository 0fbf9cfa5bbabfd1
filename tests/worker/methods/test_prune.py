"""Masks: exact counts, ties, structures and scopes, against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gradients import Gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import checkpoint

from app.recipe import Prune, parse_recipe
from app.strict import validate
from worker.methods import apply, plan, prepare
from worker.methods.prune import keep_mask


def step(**fields) -> Prune:
    return validate(Prune, {"method": "prune"} | fields)


def lowest(scores: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros(scores.size, bool)
    out[np.argsort(scores.reshape(-1), kind="stable")[:k]] = True
    return out.reshape(scores.shape)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 17))


@settings(max_examples=80, deadline=None)
@given(shapes, st.floats(0, 0.99), st.sampled_from(["row", "tensor"]), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.integers(0, 99))
def test_unstructured(shape, sparsity, scope, dtype, seed):
    w = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2).round().div(2).to(dtype)  # many ties
    kept = keep_mask(w, step(sparsity=sparsity, scope=scope)).numpy()
    scores = w.double().abs().numpy()
    if scope == "row":
        expected = np.stack([lowest(row, math.floor(sparsity * shape[1])) for row in scores])
    else:
        expected = lowest(scores, math.floor(sparsity * w.numel()))
    assert (~kept == expected).all()


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 4), st.integers(2, 6), st.integers(0, 99))
def test_n_of_m(shape, n, m, seed):
    n = min(n, m - 1)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    kept = keep_mask(w, step(mask_structure=f"{n}:{m}"))
    whole = shape[1] - shape[1] % m
    assert kept[:, whole:].all()
    grouped = kept[:, :whole].reshape(-1, m)
    assert (grouped.sum(1) == n).all()
    magnitude = w[:, :whole].reshape(-1, m).abs()
    assert all(magnitude[i][grouped[i]].min() >= magnitude[i][~grouped[i]].max() for i in range(len(grouped)))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_blocks_and_channels(norm, scope):
    w = torch.randn(10, 14, generator=torch.Generator().manual_seed(3))
    power = w.double().numpy() ** 2 if norm == "l2" else np.abs(w.double().numpy())
    scores = np.array([[power[i : i + 4, j : j + 3].sum() for j in range(0, 14, 3)] for i in range(0, 10, 4)])
    kept = keep_mask(w, step(mask_structure="block:4x3", norm=norm, scope=scope, sparsity=0.4)).numpy()
    dropped = np.stack([lowest(r, 2) for r in scores]) if scope == "row" else lowest(scores, 6)
    assert (~kept == np.repeat(np.repeat(dropped, 4, 0)[:10], 3, 1)[:, :14]).all()
    kept = keep_mask(w, step(mask_structure="channel", norm=norm, scope=scope, sparsity=0.35)).numpy()
    assert (~kept.any(1) == lowest(power.sum(1), 3)).all() and (kept.all(1) | ~kept.any(1)).all()


def test_norms_differ_where_they_should():
    w = torch.tensor([[3.0, 0.0], [2.0, 2.0]])
    assert not torch.equal(keep_mask(w, step(mask_structure="channel", norm="l1")), keep_mask(w, step(mask_structure="channel", norm="l2")))
    w = torch.randn(6, 8)
    assert torch.equal(keep_mask(w, step(norm="l1")), keep_mask(w, step(norm="l2")))


@pytest.mark.parametrize("structure", ["unstructured", "channel", "block:2x2"])
def test_global_scope_is_one_threshold_over_all_tensors(structure):
    g = torch.Generator().manual_seed(1)
    tensors = {"b.weight": torch.randn(6, 8, generator=g), "a.weight": (torch.randn(4, 10, generator=g) * 3).double(), "c.bias": torch.randn(5)}
    tensors["a.weight"][0, :5] = tensors["b.weight"][0, 0].item()  # ties across tensors go by name
    c = checkpoint(tensors)
    recipe = parse_recipe({"steps": [{"method": "prune", "scope": "global", "sparsity": 0.5, "mask_structure": structure, "norm": "l1"}]})
    plans = plan(c, recipe, "packed")
    prepare(c, recipe, plans)
    masks = {n: apply(plans[n], tensors[n]).mask for n in ("a.weight", "b.weight")}
    if structure == "unstructured":
        order = [tensors[n].double().abs().reshape(-1) for n in ("a.weight", "b.weight")]
        expected = ~lowest(torch.cat(order).numpy(), 44)
        assert (torch.cat([masks[n].reshape(-1) for n in ("a.weight", "b.weight")]).numpy() == expected).all()
    elif structure == "channel":
        scores = torch.cat([tensors[n].double().abs().sum(1) for n in ("a.weight", "b.weight")]).numpy()
        assert (torch.cat([masks[n].any(1) for n in ("a.weight", "b.weight")]).numpy() == ~lowest(scores, 5)).all()
    else:
        assert sum(int((~m[::2, ::2]).sum()) for m in masks.values()) == 11  # of 10 + 12 blocks
    assert apply(plans["c.bias"], tensors["c.bias"]).action == "copied"


def test_pruned_weights_are_zero_and_the_rest_is_untouched():
    w = torch.randn(5, 12, dtype=torch.bfloat16)
    c = checkpoint({"x.weight": w})
    recipe = parse_recipe({"steps": [{"method": "prune"}]})
    encoded = apply(plan(c, recipe, "packed")["x.weight"], w)
    assert encoded.dense.dtype == w.dtype and torch.equal(encoded.dense, torch.where(encoded.mask, w, torch.zeros((), dtype=w.dtype)))
    assert (encoded.mask.sum(1) == 6).all() and not (encoded.dense[~encoded.mask].view(torch.int16) != 0).any()


GRADIENTS = [(kind, norm) for kind in ("gradient", "taylor", "fisher") for norm in ("l1", "l2")]


def by_definition(w: torch.Tensor, gradients: Gradients, kind: str, norm: str) -> np.ndarray:
    a, s, w = (t.double().numpy() for t in (gradients.absolute("x.weight"), gradients.square("x.weight"), w))
    return {"gradient": {"l1": a, "l2": s}, "taylor": {"l1": np.abs(w) * a, "l2": w**2 * s}, "fisher": {"l1": w**2 * s, "l2": (w**2 * s) ** 2}}[kind][norm]


def masked(w: torch.Tensor, statistics: Gradients | None, output: str = "packed", config: dict | None = None, **fields):
    c = checkpoint({"x.weight": w}, config)
    recipe = parse_recipe({"steps": [{"method": "prune"} | fields]})
    plans = plan(c, recipe, output)
    prepare(c, recipe, plans, statistics=statistics)
    return apply(plans["x.weight"], w)


@settings(max_examples=80, deadline=None)
@given(
    shapes,
    st.floats(0, 0.99),
    st.sampled_from(["unstructured", "2:4", "3:5", "block:2x3", "channel"]),
    st.sampled_from(["row", "tensor", "global"]),
    st.sampled_from(GRADIENTS),
    st.integers(0, 99),
)
def test_by_gradients(shape, sparsity, structure, scope, kind, seed):
    g = torch.Generator().manual_seed(seed)
    w = (torch.randn(shape, generator=g) * 2).round() / 2  # many ties, and zeros
    statistics = Gradients({"x.weight": (torch.randn(3, *shape, generator=g) * 2).round()})
    if not statistics.square("x.weight").any():
        return
    fixed = {} if ":" in structure and structure[0] != "b" else {"sparsity": sparsity}
    dropped = ~masked(w, statistics, saliency=kind[0], norm=kind[1], mask_structure=structure, scope=scope, **fixed).mask.numpy()
    scores = by_definition(w, statistics, *kind)
    if not fixed:
        n, m = map(int, structure.split(":"))
        whole = shape[1] - shape[1] % m
        expected = np.zeros(shape, bool)
        expected[:, :whole] = np.stack([lowest(c, m - n) for c in scores[:, :whole].reshape(-1, m)]).reshape(-1, whole) if whole else 0
    elif structure == "unstructured":
        expected = np.stack([lowest(r, math.floor(sparsity * r.size)) for r in scores]) if scope == "row" else lowest(scores, math.floor(sparsity * scores.size))
    elif structure == "channel":
        expected = np.broadcast_to(lowest(scores.sum(1), math.floor(sparsity * len(scores)))[:, None], shape)
    else:
        blocks = np.array([[scores[i : i + 2, j : j + 3].sum() for j in range(0, shape[1], 3)] for i in range(0, shape[0], 2)])
        low = np.stack([lowest(r, math.floor(sparsity * r.size)) for r in blocks]) if scope == "row" else lowest(blocks, math.floor(sparsity * blocks.size))
        expected = np.repeat(np.repeat(low, 2, 0)[: shape[0]], 3, 1)[:, : shape[1]]
    assert (dropped == expected).all()


@pytest.mark.parametrize("structure", ["unstructured", "2:4", "block:2x3", "channel"])
@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
def test_taylor_with_l2_is_fisher_with_l1(structure, scope):
    g = torch.Generator().manual_seed(5)
    w, statistics = torch.randn(9, 14, generator=g), Gradients({"x.weight": torch.randn(6, 9, 14, generator=g)})
    one, other, third = (
        masked(w, statistics, saliency=kind, norm=norm, mask_structure=structure, scope=scope).mask for kind, norm in (("taylor", "l2"), ("fisher", "l1"), ("fisher", "l2"))
    )
    assert torch.equal(one, other)
    if structure in ("unstructured", "2:4"):
        assert torch.equal(other, third)  # squares rank single weights as they rank themselves
        assert not torch.equal(one, masked(w, statistics, saliency="taylor", norm="l1", mask_structure=structure, scope=scope).mask)


def test_global_gradients_are_one_threshold_over_all_tensors():
    g = torch.Generator().manual_seed(1)
    tensors = {"b.weight": torch.randn(6, 8, generator=g), "a.weight": torch.randn(4, 10, generator=g).bfloat16()}
    statistics = Gradients({n: torch.randn(3, *t.shape, generator=g) * (1 if n[0] == "a" else 3) for n, t in tensors.items()})
    c = checkpoint(tensors)
    recipe = parse_recipe({"steps": [{"method": "prune", "scope": "global", "sparsity": 0.6, "saliency": "taylor", "norm": "l1"}]})
    plans = plan(c, recipe, "packed")
    prepare(c, recipe, plans, statistics=statistics)
    scores = np.concatenate([(tensors[n].double().abs() * statistics.absolute(n).double()).reshape(-1).numpy() for n in ("a.weight", "b.weight")])
    dropped = np.concatenate([~apply(plans[n], tensors[n]).mask.reshape(-1).numpy() for n in ("a.weight", "b.weight")])
    assert (dropped == lowest(scores, math.floor(0.6 * scores.size))).all()


def test_a_transposed_tensor_is_ranked_by_its_own_gradients():
    g = torch.Generator().manual_seed(2)
    w, gradients = torch.randn(6, 10, generator=g), torch.randn(3, 6, 10, generator=g)
    name = "h.0.mlp.c_fc.weight"
    c = checkpoint({name: w}, {"model_type": "gpt2"})
    recipe = parse_recipe({"steps": [{"method": "prune", "saliency": "fisher", "sparsity": 0.4}]})
    plans = plan(c, recipe, "packed")
    prepare(c, recipe, plans, statistics=Gradients({name: gradients}))
    scores = (w.double().square() * gradients.square().sum(0).double()).numpy()
    assert (~apply(plans[name], w).mask.numpy() == np.stack([lowest(r, 2) for r in scores.T]).T).all()


@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_where_no_gradient_reaches_magnitude_decides(scope):
    w, nothing = torch.randn(5, 12), Gradients({"x.weight": torch.zeros(1, 5, 12)})
    encoded = masked(w, nothing, saliency="taylor", scope=scope)
    assert torch.equal(encoded.mask, masked(w, None, scope=scope).mask) and encoded.notes == ("no gradient reaches it: pruned by magnitude, not by taylor",)
