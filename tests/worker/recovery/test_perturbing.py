"""Training on texts that are none of the samples': where it does, that it goes on where it was, and that it teaches what the samples alone do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_models
import torch

from app.recipe import parse_recipe
from app.steps import Recover
from worker import samples
from worker.formats import open_checkpoint
from worker.methods import plan, prepare
from worker.recovering import asked, course, trained
from worker.recovery import training
from worker.recovery.objective import Objective
from worker.recovery.teacher import Teacher
from worker.recovery.training import Training, perturbs
from worker.runnable import open_runnable
from worker.samples import Samples, Vocabulary, split

RECOVER = {"steps": 24, "batch_size": 8, "learning_rate": 0.03}


@pytest.fixture(scope="module")
def folder(one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    tiny_models.build("bert", folder)
    return folder


def narrow_texts(count: int) -> list[str]:
    """Of a fifth of the words."""
    return [" ".join(f"w{(7 * i + 3 * j) % 11}" for j in range(3 + i % 6)) for i in range(count)]


def recover(folder, recover: dict, file=None, resume=None, advance=lambda: None, seed: int = 0):
    """The student and the teacher, trained on `narrow_texts`."""
    checkpoint = open_checkpoint(folder, folder.parent)
    recipe = parse_recipe({"steps": [{"method": "prune", "sparsity": 0.6, "recover": RECOVER | recover}]})
    plans = plan(checkpoint, recipe, "packed")
    prepare(checkpoint, recipe, plans)
    student, teacher = open_runnable(folder, checkpoint), open_runnable(folder, checkpoint)
    data = samples.fit(Samples(narrow_texts(60), [], {}), student)
    weights = trained(student, plans)
    vocabulary, said = Vocabulary.of(student, data), Teacher(teacher, data, 8)
    pairs = [(phase, Objective(student, said, ("distill",))) for phase in course(recipe, plans, weights, 1)]
    said.keep(asked(pairs, data, vocabulary))
    Training(data, weights, torch.device("cpu"), seed, file, resume, advance, vocabulary).run(pairs)
    return student, teacher, said


def test_labels_say_nothing_of_other_texts():
    for terms, perturb, does in ((("distill",), "auto", True), (("distill",), "none", False), (("distill", "labels"), "auto", False), (("labels",), "auto", False)):
        phase, objective = SimpleNamespace(recover=Recover(steps=1, perturb=perturb)), SimpleNamespace(terms=terms)
        assert perturbs(phase, objective, SimpleNamespace(keeps_labels=False)) == does
        assert perturbs(phase, objective, SimpleNamespace(keeps_labels=True)) == (perturb == "auto") and not perturbs(phase, objective, None)


def test_other_words_are_learnt_of_too(folder):
    distances = {}
    for perturb in ("none", "auto"):
        student, teacher, said = recover(folder, {"perturb": perturb})
        others = samples.fit(Samples([" ".join(f"w{11 + (5 * i + 13 * j) % 45}" for j in range(6)) for i in range(40)], [], {}), teacher)
        batch = others.batch(range(len(others)))
        with torch.no_grad():
            distances[perturb] = float((1 - (student.forward(batch) * teacher.forward(batch)).sum(1)).mean())
        assert len(said.kept) == (len(split(60, "stop")) if perturb == "auto" else 54)
    assert distances["auto"] < 0.9 * distances["none"]


class Killed(Exception):
    pass


def test_it_goes_on_where_it_was_and_comes_to_the_same(folder, tmp_path, monkeypatch):
    for name in ("FIRST", "LONGEST", "SHARE"):
        monkeypatch.setattr(training, name, 0)
    file, done = tmp_path / "snapshot.safetensors", 0

    def advance():
        nonlocal done
        done += 1
        if done == 13:
            raise Killed

    with pytest.raises(Killed):
        recover(folder, {}, file, advance=advance)
    values = [{n: p.detach().clone() for n, p in recover(folder, {}, **how)[0].parameters.items()} for how in ({"resume": file}, {}, {"seed": 1})]
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    assert any(not torch.equal(values[0][name], values[2][name]) for name in values[0])
