from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import lookup
from worker.kernels.lookup import look_up


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_value_is_the_level_of_its_code_in_its_codebook(data):
    rows, columns, size = (data.draw(st.integers(low, 9)) for low in (0, 0, 1))
    group_size = data.draw(st.integers(1, 10))
    groups = max(1, -(-columns // group_size))
    count = data.draw(st.sampled_from([1, rows * groups]))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    codes = torch.randint(0, size, (rows, columns), generator=g, dtype=torch.uint8)
    levels = torch.randn(count, size, generator=g).to(data.draw(st.sampled_from([torch.float16, torch.float32])))
    found = look_up(codes, levels, group_size)
    assert found.dtype == torch.float32 and found.shape == codes.shape
    for r in range(rows):
        for c in range(columns):
            k = 0 if count == 1 else r * groups + c // group_size
            assert found[r, c] == levels[k, int(codes[r, c])].float()


def test_wide_matrices_are_looked_up_in_parts(monkeypatch):
    codes, levels = torch.randint(0, 4, (3, 100), dtype=torch.uint8), torch.randn(3 * 15, 4)
    whole = look_up(codes, levels, 7)
    monkeypatch.setattr(lookup, "_PART", 30)
    assert torch.equal(look_up(codes, levels, 7), whole)
