"""Other tokens in a text: which stay, which may come, and that nothing but the generator decides."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker import samples
from worker.formats import open_checkpoint
from worker.runnable import Input, open_runnable
from worker.samples import Data, Samples, Vocabulary, perturbed


def model(below: int | None = 50, special=frozenset({3}), pad: int = 0):
    return SimpleNamespace(task="encoder", inputs={"input_ids": Input(torch.int64, (None,), below)}, special=special, pad=pad)


def texts(count: int = 12, first: int = 1) -> Data:
    drawn = np.random.default_rng(3)
    return Data(tokens=[np.concatenate([[first], drawn.integers(4, 50, size=4 + i % 7), [2]]) for i in range(count)])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tokens_that_are_no_text_stay_and_never_come():
    """Special by the tokenizer (3), padding (0), and what all samples begin (1) and end (2) with."""
    vocabulary = Vocabulary.of(model(), texts())
    assert vocabulary.kept.tolist() == [0, 1, 2, 3] and vocabulary.drawn.tolist() == list(range(4, 50))
    other = Vocabulary.of(model(), Data(tokens=[np.array([5, 6, 7]), np.array([6, 7, 5])]))
    assert other.kept.tolist() == [0, 3]


@given(st.integers(0, 1 << 30), st.integers(1, 12), st.data())
def test_only_the_tokens_of_the_rows_that_are_asked_for_change(seed, count, drawn):
    data = texts()
    batch, vocabulary = data.batch(range(count)), Vocabulary.of(model(), data)
    rows = drawn.draw(st.lists(st.integers(0, count - 1), unique=True))
    after = perturbed(batch, vocabulary, rows, generator(seed))
    ids, was = after.inputs["input_ids"], batch.inputs["input_ids"]
    fixed = torch.isin(was, vocabulary.kept) | ~batch.mask
    assert torch.equal(ids[fixed], was[fixed]) and bool(torch.isin(ids[~fixed], vocabulary.drawn).all())
    for row in range(count):
        assert row in rows or torch.equal(ids[row], was[row])
    assert after.positions == tuple(-1 if row in rows else row for row in range(count))
    assert after.mask is batch.mask and after.inputs["attention_mask"] is batch.inputs["attention_mask"] and after.labels is None
    assert torch.equal(ids, perturbed(batch, vocabulary, rows, generator(seed)).inputs["input_ids"])


def test_about_half_of_the_tokens_change_some_texts_much_and_some_little():
    data = Data(tokens=[np.full(202, 7) for _ in range(200)], pad=0)
    vocabulary, batch = Vocabulary(torch.arange(10, 1000), torch.tensor([0])), data.batch(range(200))
    after = perturbed(batch, vocabulary, list(range(200)), generator())
    share = (after.inputs["input_ids"] != 7).float().mean(1)
    assert 0.4 < share.mean() < 0.6 and share.min() < 0.05 and share.max() > 0.95
    assert len(after.inputs["input_ids"].unique()) > 990


def test_what_is_no_text_is_left_alone():
    images = SimpleNamespace(task="classifier", inputs={"pixel_values": Input(torch.float32)}, special=frozenset(), pad=0)
    assert Vocabulary.of(images, Data(arrays={"pixel_values": np.zeros((9, 3), "f4")})) is None
    assert Vocabulary.of(model(below=None), texts()) is None
    assert Vocabulary.of(model(below=5), texts()) is None  # one id would be left to draw
    assert Vocabulary.of(model(), Data(arrays={"x": np.zeros((9, 3), "f4")})) is None


def test_arrays_of_ids_are_texts_too():
    data = Data(arrays={"input_ids": np.random.default_rng(0).integers(1, 50, size=(20, 9)), "attention_mask": np.tile([1] * 6 + [0] * 3, (20, 1))})
    after = perturbed(data.batch(range(20)), Vocabulary.of(model(), data), list(range(20)), generator())
    changed = after.inputs["input_ids"] != torch.from_numpy(data.arrays["input_ids"])
    assert changed[:, :6].any() and not changed[:, 6:].any()


@pytest.mark.parametrize("name", ["bert", "classifier"])
def test_a_models_own_tokenizer_says_what_is_special(tmp_path, name):
    tiny_models.build(name, tmp_path / "m")
    runnable = open_runnable(tmp_path / "m", open_checkpoint(tmp_path / "m", tmp_path))
    data = samples.fit(Samples(tiny_models.texts(12), [], {}), runnable)
    vocabulary = Vocabulary.of(runnable, data)
    assert runnable.special.issubset(vocabulary.kept.tolist())
    batch = perturbed(data.batch([0, 1, 2]), vocabulary, [0, 1, 2], generator())
    assert bool(torch.isfinite(runnable.forward(batch)).all())


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_language_models_read_their_own_texts_alone(tmp_path, name):
    tiny_models.build(name, tmp_path / "m")
    runnable = open_runnable(tmp_path / "m", open_checkpoint(tmp_path / "m", tmp_path))
    assert Vocabulary.of(runnable, samples.fit(Samples(tiny_models.texts(12), [], {}), runnable)) is None
