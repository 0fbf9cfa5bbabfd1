"""The task that a config.json tells, and nothing where it does not."""

from __future__ import annotations

import pytest

from app.task import task_of


@pytest.mark.parametrize(
    "name, task",
    [
        ("LlamaForCausalLM", "causal-lm"), ("GPT2LMHeadModel", "causal-lm"), ("BertModel", "encoder"), ("T5EncoderModel", "encoder"),
        ("BertForSequenceClassification", "classifier"), ("ViTForImageClassification", "classifier"), ("BertForMaskedLM", None),
        ("T5ForConditionalGeneration", None), ("GPT2DoubleHeadsModel", None), ("", None),
    ],
)  # fmt: skip
def test_by_the_name_of_its_class(name, task):
    assert task_of({"architectures": [name]}) == task


@pytest.mark.parametrize("more", [{"problem_type": "regression"}, {"id2label": {"0": "score"}}, {"num_labels": 1}])
def test_a_classifier_of_one_class_is_a_regressor(more):
    assert task_of({"architectures": ["BertForSequenceClassification"]} | more) == "regressor"


@pytest.mark.parametrize("config", [None, {}, {"architectures": None}, {"architectures": []}, {"architectures": ["BertModel", "LlamaForCausalLM"]}, {"architectures": [{}]}, {"architectures": "BertModel"}])
def test_what_tells_nothing(config):
    assert task_of(config) is None
