"""Bits where the loss feels them, and no more of them than a step has."""

from __future__ import annotations

import pytest
import torch
from gradients import Gradients
from tensors import checkpoint

from app.errors import InputRefused
from app.recipe import parse_recipe
from worker.encoded import Encoded
from worker.formats.packed_reader import PackedReader
from worker.formats.packed_writer import PackedWriter
from worker.methods import apply, plan, prepare

SHAPES = {"a.query.weight": (96, 128), "a.key.weight": (96, 128), "a.value.weight": (96, 128), "b.weight": (64, 300), "c.weight": (301, 77)}


def model(seed: int = 0) -> tuple[dict[str, torch.Tensor], Gradients]:
    """Weights of one scale whose gradients differ from tensor to tensor by orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(s, generator=g) * 0.05 for n, s in SHAPES.items()}
    return tensors, Gradients({n: torch.randn(4, *t.shape, generator=g) * 4.0**i for i, (n, t) in enumerate(tensors.items())})


def worked(tensors: dict[str, torch.Tensor], gradients: Gradients, *steps: dict) -> dict[str, Encoded]:
    c = checkpoint(tensors)
    recipe = parse_recipe({"steps": list(steps)})
    plans = plan(c, recipe, "packed")
    prepare(c, recipe, plans, statistics=gradients)
    return {n: apply(plans[n], t) for n, t in tensors.items()}


def stored_bits(encoded: dict[str, Encoded], tensors: dict[str, torch.Tensor], tmp_path) -> float:
    """A weight's share of what the packed file really holds."""
    path = tmp_path / "x.packed.safetensors"
    writer = PackedWriter(path, checkpoint(tensors))
    for e in encoded.values():
        writer.write(e)
    writer.finish()
    with PackedReader(path) as reader:
        assert all(torch.equal(reader.read(n), e.dense) for n, e in encoded.items())
        return 8 * sum(reader.stored_bytes(n) for n in tensors) / sum(t.numel() for t in tensors.values())


def loss(encoded: dict[str, Encoded], tensors: dict[str, torch.Tensor], gradients: Gradients) -> float:
    return sum(float((gradients.square(n).double() * (tensors[n] - e.dense).double() ** 2).sum()) for n, e in encoded.items())


GRADIENT = {"method": "quantize", "mapping": "gradient"}


@pytest.mark.parametrize("strategy, avg_bits", [("tensor", 1.5), ("tensor", 2.5), ("tensor", 5.0), ("channel", 3.7), ("channel", 5.0), ("group", 4.4)])
def test_all_stored_bits_together_are_those_asked_for(avg_bits, strategy, tmp_path):
    tensors, gradients = model()
    encoded = worked(tensors, gradients, GRADIENT | {"avg_bits": avg_bits, "strategy": strategy})
    bits = stored_bits(encoded, tensors, tmp_path)
    assert bits <= avg_bits and (bits > 0.96 * avg_bits or strategy != "tensor")
    assert len({encoded[f"a.{part}.weight"].quantized.num_bits for part in ("query", "key", "value")}) == 1
    assert all(e.quantized.params.num_bits == e.quantized.num_bits for e in encoded.values())
    said = sum(float(e.notes[0].split()[1]) * e.dense.numel() for e in encoded.values()) / sum(t.numel() for t in tensors.values())
    assert bits - 0.1 <= said <= avg_bits + 0.001


def test_bits_go_where_the_loss_is(tmp_path):
    tensors, gradients = model()
    even = worked(tensors, gradients, GRADIENT | {"num_bits": 3, "strategy": "tensor"})
    bits = stored_bits(even, tensors, tmp_path)
    allotted = worked(tensors, gradients, GRADIENT | {"avg_bits": bits})
    assert stored_bits(allotted, tensors, tmp_path) <= bits
    assert loss(allotted, tensors, gradients) < 0.1 * loss(even, tensors, gradients)
    errors = {n: float((tensors[n] - e.dense).norm() / tensors[n].norm()) for n, e in allotted.items()}
    assert errors["c.weight"] < errors["b.weight"] < errors["a.query.weight"]


@pytest.mark.slow
def test_pruned_weights_cost_little_and_stay_zero(tmp_path):
    tensors, gradients = model()
    encoded = worked(tensors, gradients, {"method": "prune", "sparsity": 0.7, "saliency": "fisher"}, GRADIENT | {"avg_bits": 2.5})
    assert stored_bits(encoded, tensors, tmp_path) <= 2.5
    dense = worked(tensors, gradients, GRADIENT | {"avg_bits": 2.5})
    for n, e in encoded.items():
        assert (e.dense[~e.mask] == 0).all()
    kept = {n: e.mask for n, e in encoded.items()}
    error = {name: sum(float(((tensors[n] - e[n].dense)[kept[n]] ** 2 * gradients.square(n)[kept[n]]).sum()) for n in tensors) for name, e in (("pruned", encoded), ("dense", dense))}
    assert error["pruned"] < 0.5 * error["dense"]  # what is kept has the bits to itself


def test_too_few_bits_are_refused():
    tensors, gradients = model()
    with pytest.raises(InputRefused, match="avg_bits 1 is too little.* per group take [3-9]"):
        worked(tensors, gradients, GRADIENT | {"avg_bits": 1, "group_size": 16})


def test_tensors_without_gradients_or_differences():
    g = torch.Generator().manual_seed(0)
    tensors = {"a.weight": torch.randn(40, 50, generator=g), "b.weight": torch.randn(40, 50, generator=g), "c.weight": torch.zeros(40, 50)}
    gradients = Gradients({"a.weight": torch.randn(2, 40, 50, generator=g), "b.weight": torch.zeros(1, 40, 50), "c.weight": torch.ones(1, 40, 50)})
    encoded = worked(tensors, gradients, GRADIENT | {"avg_bits": 4})
    assert torch.equal(encoded["c.weight"].dense, tensors["c.weight"])
    assert all((tensors[n] - encoded[n].dense).norm() < 0.2 * tensors[n].norm() for n in ("a.weight", "b.weight"))
