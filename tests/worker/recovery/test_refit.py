"""Least squares on real layers: what is lost is made up for, what is not lost stays, whatever way round a layer has its weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import torch

from app.recipe import parse_recipe
from tests.training import data as numbers
from tests.training import learnt, recover
from worker import samples
from worker.formats import open_checkpoint
from worker.kernels import least_squares
from worker.methods import plan, prepare
from worker.recovering import trained
from worker.recovery import refit
from worker.recovery.phases import masks
from worker.recovery.refit import Refit
from worker.runnable import open_runnable
from worker.samples import Samples, Vocabulary


def pruned(name: str, tmp_path, **step):
    """Student, original, data and weights, once masked."""
    tiny_models.build(name, tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m", tmp_path)
    recipe = parse_recipe({"steps": [{"method": "prune", "sparsity": 0.5} | step | {"recover": {"steps": 1}}]})
    plans = plan(checkpoint, recipe, "packed")
    prepare(checkpoint, recipe, plans)
    student, original = open_runnable(tmp_path / "m", checkpoint), open_runnable(tmp_path / "m", checkpoint)
    data = samples.fit(Samples(tiny_models.texts(60), [], {}), original)
    weights = trained(student, plans)
    masks(recipe.steps[0], {n: p for n, p in plans.items() if n in weights and p.steps}, weights)
    return student, original, data, weights


@torch.no_grad()
def error(student, original, data, name: str) -> float:
    """Of what a layer gives, on the inputs that the original's has."""
    layer = next(m for m in original.module.modules() if getattr(m, "weight", None) is original.parameters[name])
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    original.forward(data.batch(range(len(data))))
    handle.remove()
    lost = student.parameters[name] - original.parameters[name]
    return float((seen[0] @ (lost if refit.is_turned(layer) else lost.T)).square().sum())


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "albert"])
def test_layers_give_more_of_what_they_gave(name, tmp_path):
    student, original, data, weights = pruned(name, tmp_path)
    lost = [n for n, w in weights.items() if w.mask is not None]
    before = {n: error(student, original, data, n) for n in lost}
    kept = {n: w.parameter.data.clone() for n, w in weights.items() if w.mask is None}
    Refit(original, data, 0)(weights)
    after = {n: error(student, original, data, n) for n in lost}
    assert lost and all(after[n] <= before[n] for n in lost), {n: (before[n], after[n]) for n in lost}
    assert sum(after[n] < 0.8 * before[n] for n in lost) > len(lost) / 2
    assert all(not weights[n].parameter.data[~weights[n].mask].any() for n in lost)
    assert all(torch.equal(weights[n].parameter.data, v) for n, v in kept.items())


def test_sums_are_of_tokens_and_not_of_padding(tmp_path):
    _, original, data, weights = pruned("bert", tmp_path)
    name = next(n for n in weights if n.endswith("query.weight"))
    layer = next(m for m in original.module.modules() if getattr(m, "weight", None) is original.parameters[name])
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    with torch.no_grad():
        for i in samples.split(len(data), "fit"):
            original.forward(data.batch([i]))
    handle.remove()
    x = torch.cat(seen)
    gram = Refit(original, data, 0)._grams([layer])[layer.weight]
    torch.testing.assert_close(gram, x.T @ x, rtol=1e-4, atol=1e-3)


def test_groups_of_layers_come_to_the_same(tmp_path, monkeypatch):
    student, original, data, weights = pruned("bert", tmp_path)
    start = {n: w.parameter.data.clone() for n, w in weights.items()}
    vocabulary = Vocabulary.of(original, data)
    Refit(original, data, 0, vocabulary)(weights)
    together = {n: w.parameter.data.clone() for n, w in weights.items()}
    for bound, fits in ((4 * 24 * 24, True), (4 * 16 * 16, False)):
        monkeypatch.setattr(refit, "FOLLOWED", bound)
        for n, w in weights.items():
            w.parameter.data.copy_(start[n])
        Refit(original, data, 0, vocabulary)(weights)
        for n, w in weights.items():
            wide = n.endswith("output.dense.weight") and "attention" not in n  # 24 inputs, whose sums are too large for the lower bound
            torch.testing.assert_close(w.parameter.data, together[n] if fits or not wide else start[n])


def test_lost_inputs_are_made_up_for_by_those_that_are_left(tmp_path):
    """As `ffn-width` leaves a layer: some of its inputs, and no mask."""
    _, original, data, weights = pruned("bert", tmp_path)
    name = next(n for n in weights if n.endswith("output.dense.weight") and "attention" not in n)
    whole, places = original.parameters[name].detach(), torch.arange(0, 24, 2)
    weight = weights[name]
    weight.parameter.data, weight.mask = whole[:, places].clone(), None
    layer = next(m for m in original.module.modules() if getattr(m, "weight", None) is original.parameters[name])
    fitting = Refit(original, data, 0, places={name: places})
    gram = fitting._grams([layer])[layer.weight]
    fitting({name: weight})
    expected = least_squares.solve(whole[:, places], torch.ones(16, 12, dtype=torch.bool), gram[places][:, places], (whole @ gram)[:, places])
    torch.testing.assert_close(weight.parameter.data, expected)
    assert not torch.allclose(expected, whole[:, places])


ONCE = {"method": "prune", "sparsity": 0.3, "recover": {"steps": 1, "learning_rate": 1e-9, "loss": "distill"}}


def paired(sign: float):
    """Every other input is the one before it, with a sign of its own where they are held out."""
    found = numbers()
    x = found.arrays["x"]
    x[:, 1::2] = x[:, ::2]
    x[samples.split(300, "stop"), 1::2] *= sign
    return found


def test_training_begins_with_it_where_pruning_is_done_at_once(tmp_path):
    folder, alike = learnt(tmp_path / "model"), paired(1.0)
    (plain,), (fitted,) = recover(folder, [ONCE], samples=alike).told, recover(folder, [ONCE], samples=alike, fitted=True).told
    assert plain.fitted is None and fitted.before == plain.before
    assert fitted.after <= fitted.fitted < 0.9 * fitted.before
    gradual = ONCE | {"schedule": {"kind": "cubic", "steps": 2}, "recover": {"steps": 20}}
    assert recover(folder, [gradual], samples=alike, fitted=True).told[0].fitted is None


def test_least_squares_that_do_no_good_are_taken_back(tmp_path):
    folder, odd = learnt(tmp_path / "model"), paired(-1.0)
    (plain,), (fitted,) = recover(folder, [ONCE], samples=odd).told, recover(folder, [ONCE], samples=odd, fitted=True).told
    assert replace(fitted, seconds=0) == replace(plain, seconds=0)
