"""Training under masks and codebooks: what stays, what gets better, and that it goes on where it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.errors import Diverged
from tests.training import data, learnt, recover
from worker.recovering import course
from worker.recovery import training
from worker.recovery.coded import Coded
from worker.recovery.outcome import encode
from worker.recovery.weights import Masked
from worker.samples import Data, Images

RECOVER = {"steps": 60, "learning_rate": 0.1, "batch_size": 32}
CUBIC = {"method": "prune", "saliency": "fisher", "scope": "global", "sparsity": 0.8, "schedule": {"kind": "cubic", "steps": 10}, "recover": RECOVER}
CODES = {"method": "quantize", "mapping": "gradient", "num_bits": 2, "strategy": "tensor", "recover": RECOVER | {"bit_price": 1e-5}}
BOTH = [CUBIC, CODES, {"method": "lossless"}]


@pytest.fixture(scope="module")
def folder(one_thread, tmp_path_factory):
    return learnt(tmp_path_factory.mktemp("network") / "model")


def values(recovered) -> dict[str, torch.Tensor]:
    return {name: weight.parameter.data.clone() for name, weight in recovered.weights.items()}


@pytest.mark.parametrize("structure", [{}, {"scope": "row"}, {"scope": "tensor"}, {"saliency": "magnitude"}, {"saliency": "taylor", "norm": "l1"}, {"mask_structure": "block:2x2"}])
def test_a_schedule_ends_at_exactly_the_sparsity(folder, structure):
    step = CUBIC | structure
    recovered = recover(folder, [step])
    masks = {name: w.mask for name, w in recovered.weights.items() if w.plan is not None}
    if "mask_structure" in structure:
        blocks = masks["first.weight"].reshape(12, 2, 6, 2).transpose(1, 2).flatten(2)
        assert bool((blocks == blocks[..., :1]).all()) and 0 < blocks.float().mean() < 0.5
    elif step["scope"] == "global":
        assert sum(int((~m).sum()) for m in masks.values()) == int(0.8 * sum(m.numel() for m in masks.values()))
    elif step["scope"] == "row":
        assert all(((~m).sum(1) == int(0.8 * m.shape[1])).all() for m in masks.values())
    else:
        assert all(int((~m).sum()) == int(0.8 * m.numel()) for m in masks.values())
    for name, mask in masks.items():
        assert not recovered.weights[name].parameter.data[~mask].any()


def test_recovery_gives_back_what_one_pruning_took(folder):
    step = {"method": "prune", "sparsity": 0.7, "recover": RECOVER}
    (told,) = recover(folder, [step]).told
    assert told.after < 0.5 * told.before
    assert told.best_step > 0 and told.done <= told.steps and told.stopped


def test_a_mask_made_at_once_stays(folder):
    untrained = recover(folder, [{"method": "prune", "sparsity": 0.7, "recover": RECOVER | {"steps": 1, "learning_rate": 1e-9}}])
    trained = recover(folder, [{"method": "prune", "sparsity": 0.7, "recover": RECOVER}])
    for name, weight in trained.weights.items():
        if weight.plan is not None:
            assert torch.equal(weight.mask, untrained.weights[name].mask)
            assert torch.equal(weight.parameter.data != 0, weight.mask)


def test_codes_take_no_more_levels_than_there_are_and_keep_the_mask(folder):
    recovered = recover(folder, BOTH)
    for name, plan in recovered.plans.items():
        encoded = encode(plan, recovered.weights[name], {"prune", "quantize"}, recovered.checkpoint.read(name))
        if not isinstance(recovered.weights[name], Coded):
            assert encoded.action == "encoded" and encoded.quantized is None
            continue
        assert encoded.action == "quantized" and encoded.quantized.levels.shape[1] <= 4
        assert torch.equal(plan.shaped(encoded.quantized.dequantize()), encoded.dense)
        assert bool((encoded.quantized.levels.diff(dim=1) >= 0).all())
        assert not encoded.dense[~encoded.mask].any() and (encoded.dense == 0).float().mean() > 0.5
        assert torch.equal(recovered.weights[name].parameter.data, encoded.dense)


@pytest.mark.parametrize("strategy, books", [({"strategy": "tensor"}, 1), ({"strategy": "channel"}, 24), ({"group_size": 5}, 72)])
def test_levels_are_trained_where_they_are(folder, strategy, books):
    step = {"method": "quantize", "mapping": "gradient", "num_bits": 2, "recover": RECOVER | {"learning_rate": 0.03}} | strategy
    recovered = recover(folder, [CUBIC | {"sparsity": 0.3}, step])
    told = recovered.told[1]
    assert told.after < told.before or books == 72  # two levels for five weights leave little to recover
    found, _ = recovered.weights["first.weight"].codebook()
    assert found.levels.shape == (books, 4) and torch.equal(found.dequantize(), recovered.weights["first.weight"].parameter.data)


def test_a_bit_that_costs_more_leaves_fewer_weights(folder):
    left = []
    for price in (0.0, 1e-3, 1e-2):
        recovered = recover(folder, [CUBIC | {"sparsity": 0.3}, CODES | {"recover": RECOVER | {"bit_price": price}}])
        left.append(sum(int((w.parameter.data != 0).sum()) for w in recovered.weights.values() if isinstance(w, Coded)))
    assert left[0] > left[1] > left[2]


def test_a_penalty_makes_weights_smaller(folder):
    sizes = []
    for penalty in ({}, {"penalty": "l1", "lambda": 0.5}, {"penalty": "l2", "lambda": 0.5}):
        recovered = recover(folder, [CUBIC | {"sparsity": 0.3, "recover": RECOVER | penalty}])
        sizes.append(sum(float(v.abs().sum()) for name, v in values(recovered).items() if name.endswith("weight")))
    assert sizes[1] < sizes[0] and sizes[2] < sizes[0]


def test_the_same_seed_gives_the_same_and_another_does_not(folder):
    first, again, other = (values(recover(folder, BOTH, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class Killed(Exception):
    pass


IMAGES = Images({"x": (3, 4)}, True)


@pytest.mark.parametrize("at, others", [(3, None), (45, None), (60, None), (75, IMAGES), (110, None)])
def test_it_goes_on_where_it_was_and_comes_to_the_same(folder, tmp_path, monkeypatch, at, others):
    for name in ("FIRST", "LONGEST", "SHARE"):
        monkeypatch.setattr(training, name, 0)
    file, done = tmp_path / "snapshot.safetensors", 0

    def advance():
        nonlocal done
        done += 1
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        recover(folder, BOTH, file=file, advance=advance, others=others)
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    resumed = recover(folder, BOTH, resume=file, advance=count, others=others)
    whole = recover(folder, BOTH, others=others)
    assert all(torch.equal(v, values(whole)[name]) for name, v in values(resumed).items())
    assert [(t.done, t.best_step, t.after) for t in resumed.told] == [(t.done, t.best_step, t.after) for t in whole.told]


def test_a_broken_snapshot_is_as_good_as_none(folder, tmp_path):
    broken = tmp_path / "snapshot.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    resumed, whole = values(recover(folder, [CUBIC], resume=broken)), values(recover(folder, [CUBIC]))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_it_stops_when_nothing_gets_better(folder):
    (told,) = recover(folder, [{"method": "prune", "sparsity": 0.1, "recover": RECOVER | {"steps": 400, "learning_rate": 1.0}}]).told
    assert told.done < 400 and "no better held-out loss" in told.stopped
    assert told.after <= told.before


def test_what_goes_out_of_bounds_is_said(folder):
    huge = data()
    huge.arrays["x"] *= 1e37
    with pytest.raises(Diverged, match="learning_rate below 0.1"):
        recover(folder, [CUBIC], samples=huge)


def test_batches_hold_samples_of_about_one_length_and_each_once():
    tokens = [np.zeros(1 + (7 * i) % 50, dtype=np.int64) for i in range(240)]
    run = training.Training(Data(tokens=tokens), {}, torch.device("cpu"), 0)
    drawn = [run._drawn(0, list(range(240)), t, 10) for t in range(48)]
    for epoch in (drawn[:24], drawn[24:]):
        assert sorted(p for batch in epoch for p in batch) == list(range(240))
    assert drawn[:24] != drawn[24:]
    padding = sum(max(len(tokens[p]) for p in batch) * len(batch) for batch in drawn[:24]) / sum(map(len, tokens))
    assert padding < 1.3


@pytest.mark.parametrize("samples", [1, 400])
def test_a_bit_has_its_price_in_the_unit_of_the_loss_where_calibration_tells_what_it_feels(folder, samples):
    """Sums over samples are halved means, so how many were taken changes nothing; gradients of a user's own are one sample's."""
    step = CODES | {"recover": RECOVER}
    recovered = recover(folder, [step])
    square = {name: torch.rand(plan.spec.shape) for name, plan in recovered.plans.items()}
    told = type("Told", (), {"names": frozenset(square), "uploaded": False, "square": lambda self, name: square[name] * samples})()
    plans = {name: replace(plan, statistics=told) for name, plan in recovered.plans.items()}
    weights = {name: Masked(weight.parameter, plans[name]) for name, weight in recovered.weights.items()}
    (phase,) = course(recovered.recipe, plans, weights, samples)
    for name in phase.plans:
        torch.testing.assert_close(phase._fisher(name, weights[name]), square[name] / 2)
