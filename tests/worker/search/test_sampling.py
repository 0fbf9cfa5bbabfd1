"""What some rows tell of a matrix is near what the whole of it comes to."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from app.recipe import parse_recipe
from worker.devices import CPU
from worker.formats import open_checkpoint
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


@pytest.mark.parametrize("option", options("packed", True)[::3], ids=lambda o: o.label)
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


def test_without_gradients_the_size_of_the_error_counts(lone):
    checkpoint, plan = lone
    told = Look(plan, checkpoint, CPU, felt=False).told(options("packed", False)[3], "packed")
    assert told.loss == pytest.approx(256 * 192 * told.error**2)
