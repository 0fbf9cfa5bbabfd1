"""Calls turned back into layers compute the same, with the same parameters."""

from __future__ import annotations

import io

import pytest
import torch
from programs import exported
from torch import nn

from worker.formats.pt2_file import Pt2File
from worker.program_layers import with_layers
from worker.programs import load

CPU = torch.device("cpu")


class Mixed(nn.Module):
    """Layers that are known, one without bias, one that is used twice, and a matrix product that is none."""

    def __init__(self):
        super().__init__()
        self.e, self.c = nn.Embedding(9, 8), nn.Conv1d(8, 6, 3, stride=2, padding=1, dilation=2, groups=2)
        self.l, self.k, self.m = nn.Linear(6, 6, bias=False), nn.Linear(6, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, ids):
        x = self.c(self.e(ids).transpose(1, 2)).mean(-1)
        return self.k(self.l(torch.tanh(self.l(x)))) @ self.m


@pytest.fixture
def program(tmp_path):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Mixed(), (torch.zeros(2, 10, dtype=torch.int64),), dynamic_shapes={"ids": {0: torch.export.Dim("n", min=1, max=500)}}), buffer)
    (tmp_path / "m.pt2").write_bytes(buffer.getvalue())
    return tmp_path / "m.pt2"


def test_the_same_numbers_and_gradients(program):
    loaded, ids = load(Pt2File(program, "m.pt2"), CPU), torch.randint(0, 9, (5, 10))
    kinds = sorted(type(m).__name__ for m in loaded.module.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Embedding)))
    assert kinds == ["Conv1d", "Embedding", "Linear", "Linear", "Linear"]
    plain = torch.export.load(program).module()
    assert torch.allclose(loaded({"ids": ids}), plain(ids), atol=1e-6)
    weights = [loaded.parameters[n].requires_grad_(True) for n in ("e.weight", "c.weight", "l.weight", "k.bias", "m")]
    got = torch.autograd.grad(loaded({"ids": ids}).square().sum(), weights)
    expected = torch.autograd.grad(plain(ids).square().sum(), [dict(plain.named_parameters())[n] for n in ("e.weight", "c.weight", "l.weight", "k.bias", "m")])
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(got, expected, strict=True))


def test_parameters_are_shared_not_copied(program):
    loaded = load(Pt2File(program, "m.pt2"), CPU)
    layers = [m for m in loaded.module.modules() if isinstance(m, nn.Linear) and m.bias is None]
    assert len(layers) == 2 and all(m.weight is loaded.parameters["l.weight"] for m in layers)
    assert set(loaded.parameters) == {"e.weight", "c.weight", "c.bias", "l.weight", "k.weight", "k.bias", "m"}


def test_a_fixed_batch_stays_as_it_is(tmp_path):
    (tmp_path / "m.pt2").write_bytes(exported("convolution"))
    module = load(Pt2File(tmp_path / "m.pt2", "m.pt2"), CPU).module
    assert not any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in module.modules())
    assert any(isinstance(m, nn.Conv2d) for m in with_layers(module).modules())
    assert module(torch.zeros(2, 1, 8, 8))["logits"].shape == (2, 10)
