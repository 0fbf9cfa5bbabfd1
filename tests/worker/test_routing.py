"""Tokens that reach each expert, and that what fewer than 16 of them tell is not gone by."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from worker.calibrating import write
from worker.calibration import Sums
from worker.formats import open_checkpoint
from worker.routing import FEWEST, Routing, _counted
from worker.runnable import open_runnable
from worker.samples import Data
from worker.statistics import Statistics


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "llama4"])
def test_tokens_are_counted_without_padding_and_few_are_none(tmp_path, name):
    tiny_models.build(name, tmp_path / "m", tokenizer=False)
    (tmp_path / "s").mkdir()
    checkpoint = open_checkpoint(tmp_path / "m", tmp_path / "s")
    runnable = open_runnable(tmp_path / "m", checkpoint)
    batch = Data(tokens=[torch.arange(4, 30).numpy(), torch.arange(20, 29).numpy()]).batch([0, 1])
    with Routing(runnable.module, lambda: batch.mask) as routing:
        runnable.forward(batch)
    experts = {n: p for n, p in runnable.parameters.items() if ".experts." in n and not n.endswith("bias") and p.ndim > 1}
    by_layer: dict[str, int] = {}
    for n, p in experts.items():
        if n.endswith(("down_proj", "w2.weight")):
            by_layer[n.split(".layers.")[1][0]] = by_layer.get(n.split(".layers.")[1][0], 0) + int(routing.counts.get(p, torch.zeros(1)).sum())
    assert by_layer == dict.fromkeys("01", 35 * (1 if name == "llama4" else 2))
    counts = {p: torch.full_like(routing.counts[p], FEWEST) for p in experts.values()}
    some = next(iter(experts))
    counts[experts[some]][0] = FEWEST - 1
    ones = {p: torch.ones_like(p) for p in runnable.parameters.values()}
    write(tmp_path / "statistics.safetensors", checkpoint, runnable, Sums(ones, dict(ones), {}, counts))
    statistics = Statistics.open(tmp_path / "statistics.safetensors")
    assert not statistics.square(some)[0 if experts[some].ndim == 3 else slice(None)].any()
    assert experts[some].ndim == 2 or statistics.square(some)[1:].all()
    assert all(statistics.square(n).all() for n in experts if n != some)
    checkpoint.close()


def test_rows_that_belong_to_no_expert_are_not_counted():
    assert _counted([torch.zeros(3, 2), torch.tensor([[0, 2], [1, 2], [2, 0]])], 2, None).tolist() == [2, 1]
    assert _counted([torch.zeros(3, 2), torch.rand(3, 2)], 2, None) is None
    assert _counted([torch.zeros(3, 2), torch.tensor([[0, 1], [1, 0], [1, 0]])], 2, torch.tensor([[True, False, True]])).tolist() == [2, 2]
