"""What some rows tell of a matrix is near what the whole of it comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from app.recipe import parse_recipe
from worker.devices import CPU
from worker.formats import open_checkpoint
from worker.moments import Sum
from worker.reconstruction.solving import solve
from worker.search.encoding import encode, stored
from worker.search.groups import groups
from worker.search.options import Option, options
from worker.search.sampling import Look
from worker.statistics import Statistics


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """A matrix of 256 rows with gradients: the checkpoint, and its plan."""
    folder, g = tmp_path_factory.mktemp("m"), torch.Generator().manual_seed(0)
    rows = torch.randn(256, 1, generator=g).mul(0.3).exp()
    save_file({"a.weight": torch.randn(256, 192, generator=g) * rows}, folder / "m.safetensors")
    (folder / "g").mkdir()
    save_file({"a.weight": torch.randn(256, 192, generator=g)}, folder / "g" / "g.safetensors")
    (folder / "in").mkdir()
    (folder / "m.safetensors").rename(folder / "in" / "m.safetensors")
    checkpoint = open_checkpoint(folder / "in", folder)
    statistics = Statistics.open(folder / "g")
    ((group,), notes) = groups(checkpoint, parse_recipe({"steps": [{"method": "auto"}]}), "packed", statistics, lambda n: None)
    assert notes == [] and group.felt and group.names == ["a.weight"]
    yield checkpoint, group.plans[0]
    checkpoint.close()


@pytest.mark.parametrize("option", options("packed", True)[::3])
def test_bytes_and_errors_are_foretold(lone, option):
    checkpoint, plan = lone
    told = Look(plan, checkpoint, CPU, felt=True).told(option, "packed")
    tensor = checkpoint.read("a.weight")
    whole = encode(plan, option, tensor, "packed")
    assert told.bytes == pytest.approx(stored(whole, "packed"), rel=0.06)
    assert told.error == pytest.approx(float((whole.dense - tensor).norm() / tensor.norm()), rel=0.15)
    f = plan.statistic("square") + 0.1 * plan.statistic("square").mean()
    assert told.loss == pytest.approx(float(((whole.dense - tensor).double().square() * f).sum()), rel=0.3)


def test_so_are_codebooks_under_a_price(lone):
    checkpoint, plan = lone
    look = Look(plan, checkpoint, CPU, felt=True)
    prices = [2.0 ** (look.octave() - 2 * bits) for bits in (2, 3, 4)]
    told = look.priced(prices)
    sizes = [stored(encode(plan, Option((), price), checkpoint.read("a.weight"), "packed"), "packed") for price in prices]
    assert [t.bytes for t in told] == pytest.approx(sizes, rel=0.1) and sizes == sorted(sizes)


@pytest.fixture(scope="module")
def seen(lone) -> Sum:
    """Inputs that go with one another."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(400, 24, generator=g) @ torch.randn(24, 192, generator=g) + torch.randn(400, 192, generator=g)
    return Sum(x.T @ x, 400)


def curvature(plan, seen: Sum, gone: torch.Tensor) -> float:
    """Row by row, as a float64 loop."""
    f = (plan.statistic("square") + 0.1 * plan.statistic("square").mean()).double()
    h = seen.gram.double() / seen.tokens
    return sum(float(f[r].sum() / h.trace() * (e @ h @ e)) for r, e in enumerate(gone.double()))


@pytest.mark.parametrize("strategy", [{"strategy": "channel"}, {"strategy": "tensor", "scale_search": "absmax"}, {"group_size": 64}], ids=str)
def test_what_errors_do_together_counts_where_inputs_are_known_and_what_gptq_leaves_of_it_is_foretold(lone, seen, strategy):
    checkpoint, plan = lone
    (step,) = parse_recipe({"steps": [{"method": "quantize", "num_bits": 3, "scale_search": "mse"} | strategy]}).steps
    look, option, tensor = Look(plan, checkpoint, CPU, True, seen), Option((step,)), checkpoint.read("a.weight")
    told = look.told(option, "packed")
    assert told.loss == pytest.approx(curvature(plan, seen, tensor - encode(plan, option, tensor, "packed").dense), rel=0.3)
    after, solved = look.compensated(option, told, "packed"), solve(replace(plan, steps=list(option.twin.steps)), tensor, seen)
    assert after.loss == pytest.approx(curvature(plan, seen, tensor - solved.dense), rel=0.35) and after.loss < 0.7 * told.loss
    assert after.error > told.error and after.bytes == pytest.approx(told.bytes, rel=0.1)


def test_without_gradients_the_size_of_the_error_counts(lone):
    checkpoint, plan = lone
    told = Look(plan, checkpoint, CPU, felt=False).told(options("packed", False)[3], "packed")
    assert told.loss == pytest.approx(256 * 192 * told.error**2)
