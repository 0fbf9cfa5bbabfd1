from __future__ import annotations

import pytest

from app.recipe import parse_recipe
from app.remarks import remarks


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, ["norms l1 and l2 give one mask"]),
        ({"mask_structure": "2:4", "norm": "l1"}, ["norms l1 and l2 give one mask"]),
        ({"mask_structure": "channel"}, []),
        ({"saliency": "gradient"}, []),
        ({"saliency": "gradient", "scope": "global", "sparsity": 0.9}, ["global"]),
        ({"saliency": "gradient", "scope": "global", "mask_structure": "2:4"}, []),
        ({"saliency": "taylor", "norm": "l1"}, []),
        ({"saliency": "taylor", "norm": "l1", "schedule": {"kind": "cubic", "steps": 3}, "recover": {"steps": 9}}, ["under a schedule"]),
        ({"saliency": "taylor", "norm": "l2"}, ["fisher with l1"]),
        ({"saliency": "fisher", "norm": "l1", "mask_structure": "block:2x2"}, ["taylor with l2"]),
        ({"saliency": "fisher", "norm": "l2", "mask_structure": "block:2x2"}, []),
        ({"saliency": "fisher", "norm": "l2"}, ["norms l1 and l2", "taylor with l2"]),
    ],
)
def test_what_is_said_of_a_step(fields, words):
    said = remarks(parse_recipe({"steps": [{"method": "prune"} | fields, {"method": "lossless"}]}))
    assert len(said) == len(words) and all(word in text and text.startswith("step 0 (prune): ") for word, text in zip(words, said, strict=True))
