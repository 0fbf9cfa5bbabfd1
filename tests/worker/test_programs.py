"""Programs that run: what they take and give, batches of any size, gradients, and what cannot be run."""

from __future__ import annotations

import io

import pytest
import torch
from programs import MODULES, edited, exported, nodes

from app.errors import InputRefused
from worker.formats.pt2_file import Pt2File
from worker.programs import describe, load, zeros

CPU = torch.device("cpu")


@pytest.fixture
def loaded(tmp_path):
    def of(data: bytes):
        (tmp_path / "m.pt2").write_bytes(data)
        return load(Pt2File(tmp_path / "m.pt2", "m.pt2"), CPU)

    return of


def saved(module: torch.nn.Module, *example, **options) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(module.eval(), example, **options), buffer)
    return buffer.getvalue()


def test_what_they_take_and_give(loaded):
    assert describe(loaded(exported("mlp"))) == {"x": {"dtype": "float32", "shape": [None, 6]}}
    conv = loaded(exported("convolution"))
    assert (conv.least, conv.most, conv.output, conv.output_shape) == (2, 2, 1, (2, 10))
    tokens = loaded(exported("tokens"))
    assert describe(tokens) == {"ids": {"dtype": "int64", "shape": [None, 7]}} and tokens.arguments[0].below == 11
    assert (tokens.least, tokens.most) == (1, 64) and tokens.leaves[1] == 2.0


@pytest.mark.parametrize("name", ["mlp", *MODULES])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_samples(loaded, name, count):
    """One call, several, or one that is filled up: each sample gives what it gives alone."""
    program = loaded(exported(name))
    torch.manual_seed(count)
    inputs = {a.name: torch.randint(0, 11, (count, *a.hint[1:])) if a.below else torch.randn(count, *a.hint[1:]).abs() for a in program.arguments}
    together = program(inputs)
    assert len(together) == count
    for i in range(count):
        assert torch.allclose(together[i], program({k: v[i : i + 1] for k, v in inputs.items()})[0], atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", *MODULES])
def test_gradients_flow(loaded, name):
    program = loaded(exported(name))
    assert not any(p.requires_grad for p in program.parameters.values())
    program.module.train().eval()
    for p in program.parameters.values():
        p.requires_grad_(True)
    inputs = zeros(program, 3)
    program({k: v + 1 for k, v in inputs.items()}).square().sum().backward()
    got = {n for n, p in program.parameters.items() if p.grad is not None and bool(p.grad.any())}
    assert got >= {
        "mlp": {"fc1.weight", "fc2.weight", "fc2.bias"},
        "convolution": {"l.weight", "tied.weight", "l.bias"},
        "tokens": {"emb.weight", "l.weight", "g.weight_ih_l0", "attention.in_proj_weight", "o.weight"},
        "branch": {"a.weight", "a.bias"},
    }[name]


def test_the_gradient_is_autograds_own(loaded):
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.l = torch.nn.Linear(4, 3)

        def forward(self, x):
            return torch.tanh(self.l(x))

    module = Small()
    program = loaded(saved(module, torch.randn(2, 4)))
    x = torch.randn(5, 4)
    (expected,) = torch.autograd.grad(module(x).square().sum(), module.l.weight)
    weight = program.parameters["l.weight"].requires_grad_(True)
    (got,) = torch.autograd.grad(program({"x": x}).square().sum(), weight)
    assert torch.allclose(got, expected, atol=1e-5)


def test_the_file_stays_as_it_is(loaded, tmp_path):
    program = loaded(exported("mlp"))
    with torch.no_grad():
        program.parameters["fc1.weight"].zero_()
    assert (tmp_path / "m.pt2").read_bytes() == exported("mlp")


def test_from_another_device(loaded):
    """A program of a GPU, as its file says, runs on a CPU."""

    def moved(document: dict) -> None:
        def walk(value):
            for v in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                if isinstance(v, dict) and v.keys() == {"type", "index"}:
                    v |= {"type": "cuda", "index": 0}
                else:
                    walk(v)

        walk(document)

    data = edited(edited(exported("tokens"), moved), moved, "data/weights/model_weights_config.json")
    assert loaded(data)({"ids": torch.zeros(2, 7, dtype=torch.int64)}).shape == (2, 7, 4)


class Whole(torch.nn.Module):
    """Its output has no row per sample."""

    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.l(x).sum()


class Uneven(Whole):
    def forward(self, x, y):
        return self.l(x), y


def test_what_cannot_be_run(loaded):
    for data, why in ((saved(Whole(), torch.randn(2, 4)), "row for each sample"), (saved(Uneven(), torch.randn(2, 4), torch.randn(3)), "other numbers of samples")):
        with pytest.raises(InputRefused, match=why) as refusal:
            loaded(data)
        assert refusal.value.type == "not-runnable"


def test_what_torch_does_not_load_is_a_refusal(loaded):
    with pytest.raises(InputRefused, match="does not load it") as refusal:
        loaded(edited(exported("mlp"), lambda d: nodes(d)[0].update(target="torch.ops.aten.bmm.default")))
    assert refusal.value.type == "not-runnable" and len(refusal.value.detail) < 600
