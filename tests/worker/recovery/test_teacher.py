"""What is kept of the original is what it says, padding aside, and no more than was agreed."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from worker import samples
from worker.formats import open_checkpoint
from worker.recovery import teacher
from worker.recovery.objective import Objective
from worker.recovery.teacher import Teacher
from worker.runnable import open_runnable
from worker.samples import Samples


def opened(folder, tmp_path):
    return open_runnable(folder, open_checkpoint(folder, tmp_path))


@pytest.mark.parametrize("name", ["bert", "gpt2", "classifier", "t5"])
def test_what_is_kept_is_what_is_said(tmp_path, name):
    tiny_models.build(name, tmp_path / "m")
    runnable = opened(tmp_path / "m", tmp_path)
    data = samples.fit(Samples(tiny_models.texts(12), [], {}), runnable)
    asked, kept = Teacher(runnable, data, 5), Teacher(runnable, data, 5)
    assert kept.keep(range(12)) and kept.kept.keys() == set(range(12))
    batch = data.batch([7, 2, 11])
    said, again = asked.says(batch), kept.says(batch)
    assert said.hidden and len(said.hidden) == len(again.hidden)
    for a, b in zip((said.output, *said.hidden), (again.output, *again.hidden), strict=True):
        assert a.shape == b.shape
        if a.ndim == 3:
            a, b = a[batch.mask], b[batch.mask]
        assert torch.allclose(a, b, atol=1e-5)
    assert not kept.says(batch, hidden=False).hidden and torch.equal(kept.says(batch, hidden=False).output, again.output)


def test_more_than_was_agreed_is_not_kept(tmp_path, monkeypatch):
    tiny_models.build("bert", tmp_path / "m")
    runnable = opened(tmp_path / "m", tmp_path)
    data = samples.fit(Samples(tiny_models.texts(12), [], {}), runnable)
    whole = Teacher(runnable, data, 12)
    whole.keep(range(12))
    size = sum(t.nbytes for said in whole.kept.values() for t in said)
    for bound, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr(teacher, "FOLLOWED", bound)
        said = Teacher(runnable, data, 5)
        assert said.keep(range(12)) == fits and bool(said.kept) == fits
        assert torch.allclose(said.says(data.batch([3])).output, whole.says(data.batch([3])).output, atol=1e-5)


def test_a_network_that_is_the_original_has_nothing_to_learn_and_one_that_is_not_has(tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    student, original = opened(tmp_path / "m", tmp_path), opened(tmp_path / "m", tmp_path)
    data = samples.fit(Samples(tiny_models.texts(12), [], {}), original)
    said = Teacher(original, data, 12)
    said.keep(range(12))
    objective = Objective(student, said, ("distill",))
    batch = data.batch([1, 5, 9])
    with torch.no_grad():
        assert abs(float(objective(batch))) < 1e-5
        weight = next(p for name, p in student.parameters.items() if name.endswith("query.weight"))
        weight.data = weight.data * 0
        assert float(objective(batch)) > objective.over(data, [1, 5, 9], 3, torch.device("cpu")) > 1e-6
