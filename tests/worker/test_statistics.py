"""Statistics as methods read them, and uploaded gradients against the model that they are to be of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from app.errors import InputRefused
from worker.formats import open_checkpoint
from worker.statistics import Statistics, check

SHAPES = {"a.weight": (3, 4), "b.weight": (2, 3), "b.bias": (2,)}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model").mkdir()
    save_file({n: torch.ones(s) for n, s in SHAPES.items()}, tmp_path / "model" / "model.safetensors")
    return open_checkpoint(tmp_path / "model", tmp_path)


def uploaded(tmp_path, change=None, dtype=torch.float32) -> Statistics:
    """Gradients of that model, `change`d."""
    torch.manual_seed(0)
    g = {n: torch.randn(s).to(dtype) for n, s in SHAPES.items()} | (change or {})
    save_file({n: t for n, t in g.items() if t is not None}, tmp_path / "g.safetensors")
    return Statistics.open(tmp_path / "g.safetensors")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_uploaded_gradients_are_taken_as_one_sample(tmp_path, checkpoint, dtype):
    s = uploaded(tmp_path, dtype=dtype)
    assert s.uploaded and s.names == set(SHAPES) and check(s, checkpoint, SHAPES) == frozenset()
    torch.manual_seed(0)
    g = torch.randn(SHAPES["a.weight"]).to(dtype).float()
    assert torch.equal(s.absolute("a.weight"), g.abs()) and torch.equal(s.square("a.weight"), g * g)
    assert s.inputs("a.weight") is None and s.absolute("a.weight").dtype == torch.float32


def test_collected_statistics_are_read_as_they_are(tmp_path, checkpoint):
    torch.manual_seed(1)
    made = {f"{p}:{n}": torch.rand(s) for p in ("absolute", "square") for n, s in SHAPES.items()} | {"inputs:a.weight": torch.rand(4)}
    save_file(made, tmp_path / "statistics.safetensors")
    s = Statistics.open(tmp_path / "statistics.safetensors")
    assert not s.uploaded and s.names == set(SHAPES) and check(s, checkpoint, SHAPES) == frozenset()
    assert torch.equal(s.square("b.weight"), made["square:b.weight"]) and torch.equal(s.absolute("b.bias"), made["absolute:b.bias"])
    assert torch.equal(s.inputs("a.weight"), made["inputs:a.weight"]) and s.inputs("b.weight") is None


def test_shards_are_one(tmp_path, checkpoint):
    folder = tmp_path / "shards"
    folder.mkdir()
    save_file({"a.weight": torch.ones(3, 4)}, folder / "1.safetensors")
    save_file({"b.weight": torch.ones(2, 3)}, folder / "2.safetensors")
    assert check(Statistics.open(folder), checkpoint, ["a.weight", "b.weight"]) == frozenset()
    save_file({"b.weight": torch.ones(2, 3)}, folder / "3.safetensors")
    with pytest.raises(InputRefused, match="more than one file") as e:
        Statistics.open(folder)
    assert e.value.type == "gradients-mismatch"


@pytest.mark.parametrize(
    "change, kind, says",
    [
        ({"c.weight": torch.ones(2, 2)}, "gradients-mismatch", "'c.weight'"),
        ({"a.weight": None}, "gradients-mismatch", "'a.weight'"),
        ({"a.weight": torch.ones(4, 3)}, "gradients-mismatch", r"'a.weight' have shape \[4, 3\], the tensor has \[3, 4\]"),
        ({"a.weight": torch.ones(3, 4, dtype=torch.int32)}, "gradients-mismatch", "'a.weight' are I32"),
        ({"b.bias": torch.tensor([1.0, float("nan")])}, "gradients-not-finite", "'b.bias' hold NaN"),
        ({"b.bias": torch.tensor([1.0, float("inf")])}, "gradients-not-finite", "'b.bias' hold NaN or infinite"),
        ({"a.weight": torch.full((3, 4), 1e300, dtype=torch.float64)}, "gradients-not-finite", "'a.weight'"),
        ({"a.weight": torch.full((3, 4), 1e30)}, "gradients-not-finite", "up to 1e[+]30"),
        ({n: torch.zeros(s) for n, s in SHAPES.items()}, "gradients-zero", "'a.weight' first"),
    ],
)
def test_what_is_not_of_the_model_is_refused_by_name(tmp_path, checkpoint, change, kind, says):
    with pytest.raises(InputRefused, match=says) as e:
        check(uploaded(tmp_path, change), checkpoint, ["a.weight", "b.weight"])
    assert e.value.type == kind


def test_a_tensor_that_no_gradient_reaches_is_told(tmp_path, checkpoint):
    s = uploaded(tmp_path, {"a.weight": torch.zeros(3, 4)})
    assert check(s, checkpoint, ["a.weight", "b.weight"]) == {"a.weight"}
    assert check(s, checkpoint, ["b.weight"]) == frozenset()


def test_what_no_step_needs_may_be_missing(tmp_path, checkpoint):
    s = uploaded(tmp_path, {"b.bias": None, "b.weight": None})
    assert check(s, checkpoint, ["a.weight"]) == frozenset()
    with pytest.raises(InputRefused, match="'b.weight'"):
        s.square("b.weight")


@pytest.mark.parametrize(
    "change",
    [{"absolute:a.weight": None}, {"square:a.weight": -torch.ones(3, 4)}, {"inputs:a.weight": torch.ones(7)}, {"inputs:a.weight": torch.ones(2, 2)}],
)
def test_statistics_that_contradict_themselves_are_refused(tmp_path, checkpoint, change):
    made = {"absolute:a.weight": torch.ones(3, 4), "square:a.weight": torch.ones(3, 4)} | change
    save_file({n: t for n, t in made.items() if t is not None}, tmp_path / "s.safetensors")
    with pytest.raises(InputRefused):
        check(Statistics.open(tmp_path), checkpoint, ["a.weight"])


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "g.txt").write_text("x")
    with pytest.raises(InputRefused, match="no .safetensors"):
        Statistics.open(tmp_path)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_file_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("g") / "g.safetensors"
    path.write_bytes(data)
    try:
        opened = Statistics.open(path)
    except InputRefused:
        return
    assert opened.names == frozenset() or data.startswith(len(data[8:]).to_bytes(8, "little"))
