"""Codes in training, of the experts of one tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.recipe import Quantize
from app.outline import TensorSpec
from worker.plan import TensorPlan
from worker.recovery.coded import Coded

STEP = Quantize(method="quantize", mapping="gradient", num_bits=2, strategy="tensor", recover={"steps": 4})


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_every_expert_has_levels_of_its_own(turned, masked):
    torch.manual_seed(0)
    shape = (3, 6, 10) if turned else (3, 10, 6)
    plan = TensorPlan(TensorSpec("experts.up_proj", "F32", shape, 720, "f"), [STEP], transposed=turned, experts=3)
    parameter, mask = nn.Parameter(torch.randn(shape), requires_grad=False), torch.rand(shape) < 0.6 if masked else None
    if masked:
        mask[2] = False  # nothing is left of one
        parameter.data *= mask
    target = parameter.data.clone()
    coded = Coded(parameter, plan, STEP, torch.rand(shape), mask, 0.0, 8, 1.0)
    for _ in range(3):
        coded.update(parameter.data - target, 0.01)
        coded.assign()
    book, kept = coded.codebook()
    assert len(book.levels) == 3 and book.experts == 3 and torch.equal(plan.shaped(book.dequantize()), parameter.data)
    assert all(len(one.unique()) <= 4 for one in parameter.data) and len(parameter.data.unique()) > 4
    assert not masked or not parameter.data[~mask].any()
    assert torch.equal(kept, plan.matrix(parameter.data) != 0)
