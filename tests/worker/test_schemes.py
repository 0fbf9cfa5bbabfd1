"""Schemes by columns, as they are asked for by what chooses codes one column after another, and by rows: the same codes and values."""

from __future__ import annotations

import pytest
import torch

from app.recipe import Quantize
from app.strict import validate
from worker.methods.quantize import quantize_matrix
from worker.schemes import Parameters, assembled, joined, scheme_of, single

STEPS = [
    {"num_bits": 4, "group_size": 32}, {"num_bits": 4, "group_size": 48, "symmetric": False, "scale_search": "mse"}, {"num_bits": 3}, {"num_bits": 8, "type": "float"},
    {"num_bits": 4, "scale_bits": 6, "symmetric": False, "scale_search": "mse"}, {"num_bits": 3, "scale_bits": 4, "group_size": 64},
    {"num_bits": 3, "group_size": 40, "symmetric": False, "scale_search": "hqq"}, {"num_bits": 4, "type": "nf", "group_size": 64}, {"num_bits": 3, "type": "nf", "scale_bits": 6, "scale_search": "mse"},
    {"num_bits": 4, "group_size": 50, "symmetric": False, "zero_point": "float", "scale_search": "mse"},
]  # fmt: skip


@pytest.mark.parametrize("fields", STEPS, ids=str)
@pytest.mark.parametrize("zeros", [False, True])
def test_columns_one_after_another_give_what_rows_give(fields, zeros):
    step = validate(Quantize, {"method": "quantize"} | fields)
    w = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    w = torch.where(w.abs() < 0.3, 0, w) if zeros else w
    scheme = scheme_of(step, w)
    x, codes, values, found = single(w, scheme), [], [], []
    for begin in range(0, w.shape[1], scheme.span):
        part = x[:, begin : begin + scheme.span]
        p = scheme.parameters(part)
        found.append(p)
        for j in range(part.shape[1]):
            group = p.group(j // scheme.group_size)
            codes.append(scheme.encode(part[:, j], group))
            values.append(scheme.decode(codes[-1], group))
    by_columns = assembled(scheme, scheme.stored(torch.stack(codes, 1)), joined(found, 1), step)
    by_rows = quantize_matrix(w, step)
    assert torch.equal(by_columns.codes.float(), by_rows.codes.float())
    assert torch.equal(by_columns.dequantize(), by_rows.dequantize()) and torch.equal(torch.stack(values, 1), by_rows.dequantize())
    assert not zeros or (by_rows.dequantize()[w == 0] == 0).all()


def test_some_rows_are_decoded_as_all_are():
    q = quantize_matrix(torch.randn(9, 70), validate(Quantize, {"method": "quantize", "num_bits": 3, "scale_bits": 4, "symmetric": False}))
    assert torch.equal(q.dequantize()[2:5], q.dequantize(slice(2, 5)))


def test_parameters_of_one_group_are_plain_numbers():
    p = Parameters(torch.ones(3, 4), None, torch.zeros(3, 4), torch.ones(3, 4), torch.ones(3, 1))
    assert p.group(2).scale.shape == (3,) and p.group(2).offset.shape == (3,) and p.group(2).scale_codes is None
