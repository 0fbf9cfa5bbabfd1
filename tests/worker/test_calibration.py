"""Statistics from data, against one backward pass for each sample."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from app.errors import InputRefused
from worker import calibration, samples
from worker.calibration import _separable, chosen, collect, squared, weights
from worker.formats import open_checkpoint
from worker.losses import losses
from worker.runnable import Input, Runnable, open_runnable
from worker.samples import Data, Samples

SEED = 5


def opened(name: str, tmp_path, labels=None) -> tuple[Runnable, Data]:
    tiny_models.build(name, tmp_path / "m", tokenizer=name != "vit")
    runnable = open_runnable(tmp_path / "m", open_checkpoint(tmp_path / "m", tmp_path))
    images = np.random.default_rng(0).random((30, 3, 8, 8), dtype=np.float32)
    given = Samples([], [], {"pixel_values": images}, labels) if name == "vit" else Samples(tiny_models.texts(30), [], {}, labels)
    return runnable, samples.fit(given, runnable)


def slowly(runnable: Runnable, data: Data) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """name -> sum |g| and sum g^2, by autograd, a sample at a time."""
    wanted = weights(runnable)
    for p in wanted.values():
        p.requires_grad_(True)
    sums = {n: (torch.zeros_like(p, dtype=torch.float64), torch.zeros_like(p, dtype=torch.float64)) for n, p in wanted.items()}
    for i in chosen(data):
        batch = data.batch([i])
        (loss,) = losses(runnable.task, runnable.forward(batch), batch, SEED)
        for name, g in zip(wanted, torch.autograd.grad(loss, list(wanted.values()), allow_unused=True), strict=True):
            if g is not None:
                sums[name][0].add_(g.double().abs())
                sums[name][1].add_(g.double().square())
    for p in wanted.values():
        p.requires_grad_(False)
    return sums


def same(runnable: Runnable, data: Data) -> None:
    told = []
    sums, expected = collect(runnable, data, SEED, told.append), slowly(runnable, data)
    assert sum(told) == sums.samples == len(chosen(data))
    for name, p in weights(runnable).items():
        for got, true in zip((sums.absolute[p], sums.square[p]), expected[name], strict=True):
            assert got.dtype == torch.float32 and torch.allclose(got.double(), true, rtol=2e-3, atol=1e-5 * float(true.max())), name
    assert any(float(s.max()) > 0 for s in sums.square.values())


@pytest.mark.parametrize("name", [n if n in ("bert", "llama") else pytest.param(n, marks=pytest.mark.slow) for n in tiny_models.MODELS])
def test_it_is_what_one_backward_pass_for_each_sample_gives(tmp_path, name):
    same(*opened(name, tmp_path))


@pytest.mark.parametrize("name", ["classifier", "regressor", "vit"])
def test_with_labels(tmp_path, name):
    labels = np.arange(30) % 3
    same(*opened(name, tmp_path, labels.astype(np.float32) if name == "regressor" else labels))


@pytest.mark.parametrize("name, together", [("bert", True), ("gpt2", True), ("llama", True), ("albert", True), ("t5", False), ("vit", False), ("llama-classifier", False)])
def test_batches_are_run_together_where_they_can_be(tmp_path, name, together):
    runnable, data = opened(name, tmp_path)
    ready, unseen = _separable(runnable, data, list(calibration._batches(runnable, data)), set(weights(runnable).values()), SEED)
    assert ready == together and {n for n, p in runnable.parameters.items() if p in unseen} == ({"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} if name == "vit" else set())


class Odd(nn.Module):
    """What hooks do not see (a weight used outside its layer), what mixes samples (a layer that sees time first), and layers that are used twice."""

    def __init__(self, mixed: bool):
        super().__init__()
        torch.manual_seed(0)
        self.mixed = mixed
        self.first, self.again, self.hidden = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.convolution, self.unused = nn.Conv1d(4, 6, 2, stride=2, padding=1, groups=2), nn.Linear(2, 2)
        self.free = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):  # [n, 4, 3]
        y = self.first(x.transpose(0, 1)).transpose(0, 1) if self.mixed else self.first(x)
        y = self.again(torch.relu(self.again(torch.tanh(y))))
        y = torch.nn.functional.linear(y, self.hidden.weight) + y
        return torch.cat([self.convolution(y).flatten(1), (y @ self.free).flatten(1)], dim=1)


@pytest.mark.parametrize("mixed", [True, False])
def test_whatever_hooks_get_wrong_is_left_to_autograd(mixed):
    module = Odd(mixed).eval().requires_grad_(False)
    runnable = Runnable(module, dict(module.named_parameters()), "any", lambda batch: module(**batch.inputs), {"x": Input(torch.float32, (4, 3))})
    data = Data(arrays={"x": np.random.default_rng(1).standard_normal((30, 4, 3)).astype(np.float32)})
    ready, unseen = _separable(runnable, data, list(calibration._batches(runnable, data)), set(weights(runnable).values()), SEED)
    assert not ready and unseen == {module.free, module.hidden.weight}
    same(runnable, data)


def test_convolutions_and_single_rows_are_exact():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2, dilation=2), nn.Flatten(), nn.Linear(64, 5))
    module = module.eval().requires_grad_(False)
    runnable = Runnable(module, dict(module.named_parameters()), "classifier", lambda batch: module(batch.inputs["x"]), {"x": Input(torch.float32)}, classes=5)
    x = np.random.default_rng(1).standard_normal((40, 1, 16, 16)).astype(np.float32)
    for labels in (None, np.arange(40) % 5):
        same(runnable, Data(arrays={"x": x}, labels=labels))


def test_inputs_are_summed_over_unpadded_tokens(tmp_path):
    runnable, data = opened("bert", tmp_path)
    sums, seen = collect(runnable, data, SEED), {}
    layers = {n: m for n, m in runnable.module.named_modules() if isinstance(m, nn.Linear) and "encoder" in n}
    handles = [m.register_forward_hook(lambda m, a, _, n=n: seen.__setitem__(n, seen.get(n, 0) + a[0].double().square().sum((0, 1)))) for n, m in layers.items()]
    with torch.no_grad():
        for i in chosen(data):
            runnable.forward(data.batch([i]))
    for handle in handles:
        handle.remove()
    assert len(seen) == 12 and all(torch.allclose(sums.inputs[layers[n].weight], s, rtol=1e-4) for n, s in seen.items())
    assert squared(torch.ones(6, 2), torch.tensor([[True, False, False], [True, True, False]])).tolist() == [3, 3]


def test_it_depends_on_the_seed_and_on_nothing_else(tmp_path):
    runnable, data = opened("llama", tmp_path)
    p = runnable.parameters["model.layers.0.mlp.up_proj.weight"]
    one, two, other = (collect(runnable, data, seed).square[p] for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.allclose(one, other)


def test_only_so_many_samples_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MOST_SAMPLES", 7)
    runnable, data = opened("bert", tmp_path)
    assert len(chosen(data)) == 7 == len(set(chosen(data))) and collect(runnable, data, SEED).samples == 7


def test_signed_sums_are_not_what_is_collected(tmp_path):
    """The mean of signed gradients of random projections goes to zero; theirs does not."""
    runnable, data = opened("bert", tmp_path)
    p = runnable.parameters["encoder.layer.0.output.dense.weight"]
    sums = collect(runnable, data, SEED)
    assert bool((sums.absolute[p].square() <= sums.samples * sums.square[p] * 1.001).all())  # Cauchy-Schwarz, with equality for one sample only
    assert float(sums.absolute[p].square().sum()) > 2 * float(sums.square[p].sum())


def test_a_sample_whose_output_is_nan_is_named():
    module = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    runnable = Runnable(module, dict(module.named_parameters()), "any", lambda batch: module(batch.inputs["x"]).log(), {"x": Input(torch.float32, (2,))})
    with pytest.raises(InputRefused, match="sample ") as e:
        collect(runnable, Data(arrays={"x": np.random.default_rng(0).standard_normal((30, 2)).astype(np.float32)}), 0)
    assert e.value.type == "non-finite"
