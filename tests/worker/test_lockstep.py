"""Two small models side by side: what counts of a padded batch, by task, and however the data are cut into batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from app import gates
from worker.lockstep import compare
from worker.samples.data import Batch, Data

WORDS = 11


@dataclass
class Model:
    module: nn.Module
    task: str
    of: str = "input_ids"

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.module(batch.inputs[self.of])


def language(seed: int, task: str = "causal-lm") -> Model:
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Embedding(WORDS, 6), nn.Linear(6, WORDS)), task)


def layer(seed: int, task: str, outputs: int = 4) -> Model:
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs)), task, "x")


def sentences(*lengths: int) -> Data:
    rng = np.random.default_rng(0)
    return Data(tokens=[rng.integers(0, WORDS, n) for n in lengths], pad=3)


def vectors(n: int, labels: bool = False) -> Data:
    rng = np.random.default_rng(1)
    return Data(arrays={"x": rng.standard_normal((n, 5), dtype="f4")}, labels=rng.integers(0, 4, n) if labels else None)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_padding_counts_for_nothing_in_a_language_model(size):
    before, after, data = language(0), language(1), sentences(5, 1, 9, 2, 9, 3, 7, 4, 2)
    told = []
    got = compare(before, after, data.batches("test", size), False, told.append)
    kl, nll, followed, same = [], 0.0, 0, 0
    for ids in map(torch.from_numpy, data.tokens):
        p, q = (m.module(ids).detach().double().log_softmax(-1) for m in (before, after))
        kl += [sum(math.exp(a) * (a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(p.tolist(), q.tolist(), strict=True)]
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        nll, followed = nll - sum(q[t, ids[t + 1]].item() for t in range(len(ids) - 1)), followed + len(ids) - 1
    assert set(got) == {*gates.FIGURES["causal-lm"], "positions"} and got["positions"] == len(kl) == 42
    assert got["kl"] == pytest.approx(sum(kl) / len(kl)) and got["kl_max"] == pytest.approx(max(kl)) and got["kl_p99"] == pytest.approx(np.quantile(kl, 0.99))
    assert got["top1_agreement"] == same / len(kl) and got["perplexity_after"] == pytest.approx(math.exp(nll / followed))
    assert sum(told) == 9 and len(told) == -(-9 // size)


def test_a_sequence_to_sequence_model_has_no_perplexity():
    got = compare(language(0, "seq2seq"), language(1, "seq2seq"), sentences(4, 2, 6).batches("test", 2), False)
    assert set(got) == {*gates.FIGURES["seq2seq"], "positions"} and got["positions"] == 12


@pytest.mark.parametrize("size", [1, 4, 30])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_classifier(size, labelled):
    before, after, data = layer(0, "classifier"), layer(1, "classifier"), vectors(15, labels=True)
    got = compare(before, after, data.batches("test", size), labelled)
    x, y = (m.module(torch.from_numpy(data.arrays["x"])).detach().double() for m in (before, after))
    assert set(got) == {*gates.figures("classifier", labelled)}
    assert got["kl"] == pytest.approx(nn.functional.kl_div(y.log_softmax(-1), x.log_softmax(-1), log_target=True, reduction="sum").item() / 15)
    assert got["relative_output_error"] == pytest.approx(((x - y).norm() / x.norm()).item())
    assert got["cosine_min"] == pytest.approx(nn.functional.cosine_similarity(x, y).min().item())
    if labelled:
        assert [got["accuracy_before"], got["accuracy"]] == [float((t.argmax(-1).numpy() == data.labels).mean()) for t in (x, y)]


@pytest.mark.parametrize("task, names", [("encoder", {"cosine", "cosine_min"}), ("regressor", set(gates.FIGURES["regressor"])), ("odd", set(gates.FIGURES["regressor"]))])
def test_vectors(task, names):
    before, after = layer(0, task, 1 if task == "regressor" else 4), layer(0, task, 1 if task == "regressor" else 4)
    got = compare(before, after, vectors(15).batches("test", 4), False)
    assert set(got) == names and got["cosine_min"] == pytest.approx(1.0)
