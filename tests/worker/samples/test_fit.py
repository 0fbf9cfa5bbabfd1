"""Samples against models: what fits is run once, what does not is refused with what would."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch

from app.errors import InputRefused
from worker.formats import open_checkpoint
from worker.runnable import open_runnable
from worker.samples import Samples, fit

TEXTS = tiny_models.texts(12)
IDS = np.tile([1, 5, 6, 2], (9, 1))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def model(name: str, **options):
        if (key := (name, *options.items())) not in made:
            folder = tmp_path_factory.mktemp("m")
            tiny_models.build(name, folder / "m", **options)
            made[key] = open_runnable(folder / "m", open_checkpoint(folder / "m", folder))
        return made[key]

    return model


def test_text_is_tokenized_as_the_file_says(models):
    data = fit(Samples(TEXTS, [], {}), models("bert"))
    assert [ids.tolist() for ids in data.tokens] == [[1, *(4 + tiny_models.WORDS.index(w) for w in t.split()), 2] for t in TEXTS]


def test_long_samples_are_cut_and_short_ones_passed_over(models):
    data = fit(Samples([], [np.full(40, 5)] * 9 + [np.array([5])], {}), models("gpt2"))
    assert len(data) == 9 and {len(t) for t in data.tokens} == {32}
    assert data.notes == ("9 samples are cut to 32 tokens", "1 samples of fewer than 2 tokens are passed over")


def test_arrays_are_taken_by_name(models):
    data = fit(Samples([], [], {"input_ids": IDS.astype("u1"), "attention_mask": np.ones_like(IDS)}), models("bert"))
    assert data.arrays["input_ids"].dtype == np.int64 and len(data) == 9


@pytest.mark.parametrize(
    "name, given, kind, says",
    [
        ("vit", {"texts": TEXTS}, "calibration-mismatch", "takes no text, it takes .*pixel_values float"),
        ("bert", {"tokens": [np.array([3, 60])] * 9}, "calibration-mismatch", "sample 0 holds token 60, and the model's vocabulary ends at 59"),
        ("gpt2", {"tokens": [np.array([3])] * 9}, "too-few-samples", "0 of 9 samples have the 2 tokens"),
        ("bert", {"arrays": {"ids": IDS}}, "calibration-mismatch", "no input 'ids'; it takes input_ids int"),
        ("bert", {"arrays": {"attention_mask": IDS * 0}}, "calibration-mismatch", "no array 'input_ids'"),
        ("bert", {"arrays": {"input_ids": IDS.astype("f4")}}, "calibration-mismatch", "'input_ids' holds float32, the model takes integers"),
        ("bert", {"arrays": {"input_ids": IDS[:, 0]}}, "calibration-mismatch", r"samples of shape \[\], the model takes \[any\]"),
        ("bert", {"arrays": {"input_ids": IDS + 60}}, "calibration-mismatch", "from 61 to 66; the model takes 0 to 59"),
        ("bert", {"arrays": {"input_ids": np.ones((9, 50), "i8")}}, "calibration-mismatch", "samples of 50 tokens; at most 32"),
        ("bert", {"arrays": {"input_ids": IDS, "attention_mask": np.ones((9, IDS.shape[1] + 3), "i8")}}, "calibration-mismatch", "one value for each token"),
        ("vit", {"arrays": {"pixel_values": np.zeros((9, 3, 8, 8), "u1")}}, "calibration-mismatch", "floats, scaled as in training"),
        ("vit", {"arrays": {"pixel_values": np.zeros((9, 3, 7, 7), "f4")}}, "calibration-mismatch", "does not run on sample"),
        ("bert", {"texts": TEXTS, "labels": np.zeros(12, "i8")}, "labels-mismatch", "is an encoder and has no classes"),
        ("gpt2", {"texts": TEXTS, "labels": np.zeros(12, "i8")}, "labels-mismatch", "its text is its own label"),
        ("classifier", {"texts": TEXTS, "labels": np.full(12, 3)}, "labels-mismatch", "from 3 to 3; the model has the classes 0 to 2"),
        ("classifier", {"texts": TEXTS, "labels": np.zeros(12, "f4")}, "labels-mismatch", "labels are float32"),
        ("regressor", {"texts": TEXTS, "labels": np.zeros((12, 2), "f4")}, "labels-mismatch", "the model gives 1 values"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(models, name, given, kind, says):
    samples = Samples(given.get("texts", []), given.get("tokens", []), given.get("arrays", {}), given.get("labels"))
    with pytest.raises(InputRefused, match=says) as e:
        fit(samples, models(name))
    assert e.value.type == kind


def test_text_without_a_tokenizer_is_refused(models):
    with pytest.raises(InputRefused, match="no tokenizer.json") as e:
        fit(Samples(TEXTS, [], {}), models("bert", tokenizer=False))
    assert e.value.type == "calibration-mismatch"


def test_a_model_whose_output_is_nan_is_refused(tmp_path):
    tiny_models.build("bert", tmp_path / "m")
    runnable = open_runnable(tmp_path / "m", open_checkpoint(tmp_path / "m", tmp_path))
    with torch.no_grad():
        runnable.parameters["embeddings.word_embeddings.weight"].fill_(float("nan"))
    with pytest.raises(InputRefused, match="NaN") as e:
        fit(Samples(TEXTS, [], {}), runnable)
    assert e.value.type == "non-finite"
