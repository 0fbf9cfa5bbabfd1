from __future__ import annotations

import pytest
import torch
from torch import nn

from app.recipe import Quantize
from app.strict import validate
from worker.checkpoint import TensorSpec
from worker.plan import TensorPlan
from worker.reconstruction.descent import Learned, Passage, alone, descend
from worker.reconstruction.offsets import Offsets
from worker.schemes import scheme_of


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(13, 21), nn.Linear(21, 13)
        self.requires_grad_(False)

    def forward(self, x, scale=1.0):
        return (x + self.b(torch.tanh(self.a(x))) * scale, "what else a block hands on")


def offsets_of(w: torch.Tensor, **fields) -> Offsets:
    scheme = scheme_of(validate(Quantize, {"method": "quantize", "num_bits": 2, "group_size": 8, "scale_search": "mse"} | fields), w)
    return Offsets(w, scheme.parameters(w), scheme, None)


def learned(block: Block, name: str, **fields) -> Learned:
    w = block.get_parameter(name)
    plan = TensorPlan(TensorSpec(name, "F32", tuple(w.shape), 4 * w.numel(), "f"), [], None, False, True, ())
    return Learned(name, plan, offsets_of(w.clone(), **fields))


@pytest.fixture
def block() -> Block:
    return Block()


def passages_of(block: Block, count: int = 6) -> list[Passage]:
    g = torch.Generator().manual_seed(2)
    inputs = [torch.randn(4, 9, 13, generator=g) for _ in range(count)]
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[:, 6:] = False
    return [Passage((x,), {"scale": 0.7}, block(x, 0.7)[0], mask) for x in inputs]


def error(block: Block, weights: list[Learned], passages: list[Passage]) -> float:
    """Of the block's output in float64, relative, with the values in place."""
    changed = Block().double()
    for w in weights:
        changed.get_parameter(w.name).copy_(w.value())
    sums = torch.zeros(2, dtype=torch.float64)
    for p in passages:
        target = p.target.double()[p.mask]
        sums += torch.stack([(changed(p.args[0].double(), 0.7)[0][p.mask] - target).square().sum(), target.square().sum()])
    return float(sums[0] / sums[1])


@pytest.mark.parametrize("fields", [{}, {"symmetric": False}, {"scale_bits": 6}], ids=str)
def test_the_output_comes_nearer_and_what_is_told_is_so(block, fields):
    weights, passages, told = [learned(block, n, **fields) for n in ("a.weight", "b.weight")], passages_of(block), []
    before = error(block, weights, passages)
    gain = descend(block, weights, {}, passages, 60, 0, lambda: told.append(1))
    assert gain.before == pytest.approx(before, rel=1e-4) and gain.after == pytest.approx(error(block, weights, passages), rel=1e-4)
    assert gain.after < 0.9 * gain.before and len(told) == 60


def test_a_seed_gives_the_same_and_others_are_in_their_places(block):
    passages, states = passages_of(block), []
    coarse = {"b.weight": (block.b.weight * 8).round() / 8}
    for seed in (5, 5, 6):
        weights = [learned(block, "a.weight")]
        descend(block, weights, coarse, passages, 20, seed)
        states.append(weights[0].offsets.state)
    assert all(torch.equal(a, b) for a, b in zip(*states[:2])) and not torch.equal(states[0][0], states[2][0])


def test_what_makes_nothing_better_is_not_kept(block):
    """Values that are on their grid already, and the output that they make."""
    weights = [learned(block, "a.weight")]
    value = weights[0].value()
    block.a.weight.copy_(value)
    passages = passages_of(block)
    gain = descend(block, weights, {}, passages, 8, 0)
    assert gain.after <= gain.before < 1e-9 and torch.equal(weights[0].value(), value)


@pytest.mark.parametrize("rows, inputs", [(1, 1), (5, 17), (8, 24)])
def test_a_layer_alone_goes_by_the_moments_of_its_inputs(rows, inputs):
    g = torch.Generator().manual_seed(rows)
    w, x = torch.randn(rows, inputs, generator=g), torch.randn(100, inputs, generator=g) @ torch.randn(inputs, inputs, generator=g)
    offsets = offsets_of(w)
    of = lambda: float(((offsets.values() - w).double() @ x.double().T).square().sum() / (w.double() @ x.double().T).square().sum())  # noqa: E731
    before = of()
    gain = alone(offsets, w, x.T @ x, 50)
    assert gain.before == pytest.approx(before, rel=1e-3) and gain.after == pytest.approx(of(), rel=1e-3)
    assert gain.after <= gain.before and (rows == 1 or gain.after < 0.9 * gain.before)
