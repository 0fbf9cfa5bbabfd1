"""Experts that are stacked in one tensor are treated as if each were a tensor of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from app.errors import InputRefused, NoTensorMatched
from app.recipe import parse_recipe
from tensors import checkpoint
from worker import report
from worker.formats import open_checkpoint
from worker.formats.packed import PackedWriter
from worker.formats.packed_restore import restore_packed
from worker.gradient_mapping import coded
from worker.methods import apply, plan, prepare

UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"
FISHER = {"method": "prune", "saliency": "fisher"}
PRUNE = [
    {"method": "prune"}, {"method": "prune", "scope": "tensor", "sparsity": 0.7}, {"method": "prune", "mask_structure": "2:4"}, {"method": "prune", "mask_structure": "channel"},
    {"method": "prune", "mask_structure": "block:2x3"}, FISHER, FISHER | {"scope": "tensor"},
]  # fmt: skip
QUANTIZE = [
    {"num_bits": 8}, {"num_bits": 4, "group_size": 3, "scale_search": "mse"}, {"num_bits": 4, "strategy": "tensor"}, {"num_bits": 3, "strategy": "tensor", "symmetric": False, "scale_search": "mse"},
    {"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "nf", "group_size": 4}, {"num_bits": 3, "symmetric": False, "scale_search": "hqq", "group_size": 4},
    {"num_bits": 2, "mapping": "gradient"}, {"num_bits": 2, "mapping": "gradient", "strategy": "tensor"}, {"num_bits": 3, "mapping": "gradient", "group_size": 4},
]  # fmt: skip
STEPS = [[s] for s in PRUNE] + [[{"method": "quantize"} | s] for s in QUANTIZE] + [[PRUNE[1], {"method": "quantize", "mapping": "gradient", "num_bits": 3, "strategy": "tensor"}]]


class Felt:
    """Gradients of tensors at hand."""

    def __init__(self, squares: dict[str, torch.Tensor]):
        self.squares, self.names = squares, frozenset(squares)

    def square(self, name: str) -> torch.Tensor:
        return self.squares[name]


def through(tensors: dict[str, torch.Tensor], squares: dict[str, torch.Tensor], steps: list[dict]) -> tuple[dict, dict]:
    model, recipe = checkpoint(tensors), parse_recipe({"steps": steps})
    plans = plan(model, recipe, "packed")
    prepare(model, recipe, plans, statistics=Felt(squares))
    return plans, {n: apply(p, tensors[n]) for n, p in plans.items()}


def stacked(count: int, hidden: int, inner: int, turned: bool, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    shapes = {UP: (count, 2 * inner, hidden), DOWN: (count, hidden, inner)}
    return {n: torch.randn(s, generator=drawn).to(dtype).transpose(1, 2 if turned else 1).contiguous() for n, s in shapes.items()}


def alone(tensors: dict[str, torch.Tensor], turned: bool) -> dict[str, torch.Tensor]:
    """Every expert as a layer's weight [out, in]."""
    return {f"{n}.{e}.weight": (w.T if turned else w).contiguous() for n, t in tensors.items() for e, w in enumerate(t)}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_an_expert_becomes_what_it_would_as_a_tensor_of_its_own(steps, turned):
    tensors = stacked(3, 11, 7, turned)
    squares = {n: torch.rand(t.shape, generator=torch.Generator().manual_seed(1)) for n, t in tensors.items()}
    squares[UP][1] = 0  # no gradient reaches one of them
    squares = {n: s / s.mean() for n, s in squares.items()}
    plans, got = through(tensors, squares, steps)
    _, expected = through(alone(tensors, turned), alone(squares, turned), steps)
    for n, e in got.items():
        assert plans[n].experts == 3 and plans[n].transposed == turned and e.dense.shape == tensors[n].shape
        assert any("3 experts, each" in note for note in e.notes)
        for i, one in enumerate(e.dense):
            own = expected[f"{n}.{i}.weight"].dense
            close = torch.equal if "gradient" not in str(steps) else torch.allclose  # F has a floor, of the mean over all experts
            if close is torch.equal or n == UP and i == 1:
                assert torch.equal(one.T if turned else one, own), (n, i)
        if e.quantized is not None:
            assert torch.equal(plans[n].shaped(e.quantized.dequantize()), e.dense)


def test_a_global_scope_counts_every_expert_with_its_gradients_and_ties():
    tensors = {n: t.round() for n, t in stacked(3, 11, 7, True).items()}
    for step in ({"method": "prune", "scope": "global", "sparsity": 0.3}, {"method": "prune", "scope": "global", "sparsity": 0.5, "mask_structure": "block:2x3"}):
        got = through(tensors, {}, [step])[1]
        expected = through(alone(tensors, True), {}, [step])[1]
        assert all(torch.equal(one.T, expected[f"{n}.{i}.weight"].dense) for n, e in got.items() for i, one in enumerate(e.dense))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 999), st.sampled_from(STEPS),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_odd_shapes_come_back_from_packed(tmp_path_factory, count, hidden, inner, turned, seed, steps, dtype):
    folder = tmp_path_factory.mktemp("m")
    tensors = stacked(count, hidden, inner, turned, seed, dtype)
    save_file(tensors, folder / "model.safetensors")
    model, recipe = open_checkpoint(folder, folder), parse_recipe({"steps": steps})
    plans = plan(model, recipe, "packed")
    prepare(model, recipe, plans, statistics=Felt({n: t.float().square() for n, t in tensors.items()}))
    writer = PackedWriter(folder / "packed", model)
    encoded = {n: apply(p, model.read(n)) for n, p in plans.items()}
    for e in encoded.values():
        writer.write(e)
    writer.finish()
    model.close()
    restore_packed(folder / "packed", folder / "out", lambda n: None)
    restored = load_file(folder / "out" / "model.safetensors")
    assert all(torch.equal(restored[n], e.dense) and restored[n].dtype == dtype for n, e in encoded.items())


def test_allotted_bits_are_kept_by_all_experts_together():
    tensors = stacked(4, 48, 32, False)
    steps = [{"method": "quantize", "mapping": "gradient", "avg_bits": 3.0}]
    plans, got = through(tensors, {n: torch.rand_like(t) for n, t in tensors.items()}, steps)
    assert all(len(q.levels) == 4 and 8 * coded(q.codes, q.levels, q.num_bits) <= plans[n].allotment.bits for n, e in got.items() for q in [e.quantized])
    assert sum(p.allotment.bits for p in plans.values()) <= 3 * sum(t.numel() for t in tensors.values())
    assert all(report.errors(tensors[n], e.dense)["relative_error"] < 0.5 for n, e in got.items())


def test_what_is_taken_and_what_is_said_of_the_others():
    tensors = stacked(2, 16, 8, True) | {"model.layers.0.mlp.experts.down_proj_bias": torch.randn(2, 16), "model.layers.0.mlp.router.weight": torch.randn(2, 16)}
    tensors |= {"model.layers.0.self_attn.q_proj.weight": torch.randn(16, 16), "model.layers.0.mlp.shared_expert.up_proj.weight": torch.randn(16, 16)}
    plans = plan(checkpoint(tensors, {}), parse_recipe({"steps": [{"method": "quantize", "num_bits": 4}]}), "packed")
    assert {n for n, p in plans.items() if p.steps} == {UP, DOWN, "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.shared_expert.up_proj.weight"}
    plans = plan(checkpoint(tensors, {}), parse_recipe({"steps": [{"method": "quantize", "num_bits": 4}]}), "compressed-tensors")
    assert "does not carry 2 experts in one tensor; packed does" in plans[UP].reason and not plans[UP].steps
    with pytest.raises(InputRefused, match="llama4_text model .* packed"):
        plan(checkpoint(tensors, {"model_type": "llama4_text"}), parse_recipe({"steps": [{"method": "quantize", "num_bits": 4}]}), "compressed-tensors")
    with pytest.raises(NoTensorMatched, match="2 experts in one tensor"):
        plan(checkpoint(tensors, {}), parse_recipe({"steps": [{"method": "quantize", "num_bits": 4, "targets": ["*experts.gate*"]}]}), "compressed-tensors")
    alone_ = plan(checkpoint({"x.experts.up_proj": torch.randn(2, 6, 10)}), parse_recipe({"steps": [{"method": "quantize", "num_bits": 4, "targets": ["*experts*"]}]}), "packed")
    assert any("neither shapes nor config.json tell" in note for note in alone_["x.experts.up_proj"].notes)


def test_the_report_names_the_worst_expert():
    tensors = stacked(3, 8, 8, False)
    tensors[UP][2] *= torch.linspace(1, 100, 8)
    plans, got = through(tensors, {}, [{"method": "quantize", "num_bits": 3, "strategy": "tensor"}])
    row = report.encoded_row(tensors[UP], got[UP], 9, plans[UP].experts)
    each = [report.errors(a, b)["relative_error"] for a, b in zip(tensors[UP], got[UP].dense, strict=True)]
    assert row["experts"] == {"count": 3, "worst": max(range(3), key=each.__getitem__), "relative_error": max(each)}
    assert row["relative_error"] == pytest.approx(report.errors(tensors[UP], got[UP].dense)["relative_error"])
    assert {f.name for f in dataclasses.fields(got[UP].quantized)} >= {"experts"} and got[UP].quantized.scale.shape == (3, 1)
