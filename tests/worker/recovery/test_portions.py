"""A batch in parts teaches what the whole teaches."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from worker import samples
from worker.formats import open_checkpoint
from worker.recovery import portions
from worker.recovery.objective import Objective
from worker.recovery.teacher import Teacher
from worker.runnable import open_runnable
from worker.samples import Samples


def opened(name: str, folder):
    tiny_models.build(name, folder / "m")
    student, original = (open_runnable(folder / "m", open_checkpoint(folder / "m", folder)) for _ in range(2))
    data = samples.fit(Samples(tiny_models.texts(30), [], {}), original)
    weight = next(p for n, p in student.parameters.items() if p.ndim == 2 and ("mlp" in n or "DenseReluDense" in n or "intermediate" in n))
    weight.data = weight.data * 0.5
    weight.requires_grad_(True)
    return student, original, data, weight


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_of_the_parts_add_up_to_those_of_the_whole(tmp_path, monkeypatch, name, rows):
    student, original, data, weight = opened(name, tmp_path)
    batch = data.batch(range(7))
    objective = Objective(student, Teacher(original, data, 7), ("distill",))
    assert portions.portions(student, batch) == [(1.0, batch)]
    (whole,) = torch.autograd.grad(objective(batch), weight)
    monkeypatch.setattr(portions, "LOGITS", rows * student.inputs["input_ids"].below * batch.mask.shape[1])
    parts = portions.portions(student, batch)
    assert [len(p) for _, p in parts] == ([1] * 7 if rows == 1 else [3, 3, 1]) and sum(s for s, _ in parts) == pytest.approx(1)
    summed = sum(torch.autograd.grad(objective(p) * s, weight)[0] for s, p in parts)
    torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_what_is_held_out_and_what_is_kept_come_in_parts_too(tmp_path, monkeypatch):
    student, original, data, _ = opened("gpt2", tmp_path)
    said = Teacher(original, data, 7)
    said.keep(range(7))
    whole = Objective(student, said, ("distill",)).over(data, list(range(7)), 7, torch.device("cpu"))
    monkeypatch.setattr(portions, "LOGITS", 1)
    again, seen = Teacher(original, data, 7), []
    again.keep(range(7), seen.append)
    assert seen == [1] * 7
    assert Objective(student, again, ("distill",)).over(data, list(range(7)), 7, torch.device("cpu")) == pytest.approx(whole, rel=1e-4)


def test_what_puts_out_little_is_never_parted(tmp_path, monkeypatch):
    student, _, data, _ = opened("bert", tmp_path)
    monkeypatch.setattr(portions, "LOGITS", 1)
    batch = data.batch(range(5))
    assert portions.portions(student, batch) == [(1.0, batch)]
