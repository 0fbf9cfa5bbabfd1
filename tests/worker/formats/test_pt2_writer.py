"""A program written again: torch.export opens it, it computes the same, and new values are where they belong."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from programs import MODULES, exported
from torch.utils import _pytree

from app.errors import InputRefused
from worker.formats import open_checkpoint
from worker.formats.pickle_tensors import Storage, Tensor
from worker.formats.pt2_file import Pt2File
from worker.formats.pt2_writer import ProgramWriter, Pt2Reader, Pt2Writer, rewrite
from worker.formats.zip_walk import walk_zip

CALLS = {"mlp": ((torch.randn(3, 6),), {}), "convolution": ((torch.randn(2, 1, 8, 8),), {}), "tokens": ((torch.randint(0, 11, (4, 7)),), {"scale": 2.0}), "branch": ((torch.randn(2, 4), torch.randn(2, 3)), {})}


@pytest.fixture
def source(tmp_path):
    def of(name: str) -> Pt2File:
        path = tmp_path / "in.pt2"
        path.write_bytes(exported(name))
        return Pt2File(path, path.name)

    return of


@pytest.mark.parametrize("name", ["mlp", *MODULES])
def test_it_computes_the_same_and_holds_nothing_else(tmp_path, source, name):
    file = source(name)
    rewrite(file, tmp_path / "out.pt2")
    again = Pt2File(tmp_path / "out.pt2", "out.pt2")
    assert [d for d in again.dropped if d.kept_in is None] == [] and again.program.document == file.program.document
    args, kwargs = CALLS[name]
    before, after = (_pytree.tree_leaves(torch.export.load(tmp_path / f"{which}.pt2").module()(*args, **kwargs)) for which in ("in", "out"))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_storages_are_aligned(tmp_path, source):
    rewrite(source("convolution"), tmp_path / "out.pt2")
    assert {m.offset % 64 for m in walk_zip(tmp_path / "out.pt2")} == {0}


def test_rewriting_twice_changes_nothing(tmp_path, source):
    rewrite(source("mlp"), tmp_path / "a.pt2")
    rewrite(Pt2File(tmp_path / "a.pt2", "a.pt2"), tmp_path / "b.pt2")
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()


def test_new_values_and_their_ties(tmp_path, source):
    file = source("convolution")
    writer = ProgramWriter(file, tmp_path / "out.pt2")
    values = torch.randn(10, 36)
    writer.put(file.tensors["l.weight"], values)
    writer.finish()
    state = torch.export.load(tmp_path / "out.pt2").state_dict
    assert torch.equal(state["l.weight"], values) and state["tied.weight"].data_ptr() == state["l.weight"].data_ptr()
    assert torch.equal(state["c.weight"], file.load("c.weight"))
    with Pt2Reader(tmp_path) if not (tmp_path / "in.pt2").unlink() else None as result:
        assert torch.equal(result.read("l.weight"), values) and result.stored_bytes("l.weight") == 1440


def test_views_of_one_storage(tmp_path):
    """A transposed weight, and two that are rows of one matrix: all three are written where they lie."""

    class Views(torch.nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.randn(6, 4)
            self.q, self.k = torch.nn.Parameter(whole[:4]), torch.nn.Parameter(whole[4:])
            self.t = torch.nn.Parameter(torch.randn(3, 4).t())

        def forward(self, x):
            return (x @ self.q.t()) @ self.t.reshape(4, 3), x @ self.k.t()

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Views(), (torch.randn(2, 4),)), buffer)
    (tmp_path / "in.pt2").write_bytes(buffer.getvalue())
    file = Pt2File(tmp_path / "in.pt2", "in.pt2")
    new = {n: torch.randn(t.shape) for n, t in file.tensors.items()}
    writer = ProgramWriter(file, tmp_path / "out.pt2")
    for name, values in new.items():
        writer.put(file.tensors[name], values)
    writer.finish()
    loaded = torch.export.load(tmp_path / "out.pt2").state_dict
    assert set(loaded) == {"q", "k", "t"} and all(torch.equal(loaded[n], v) for n, v in new.items())


@pytest.mark.parametrize("shape, stride, offset", [((4, 4), (0, 1), 0), ((2, 4), (4, 1), 2)])
def test_shared_elements_do_not_change_in_place(tmp_path, source, shape, stride, offset):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/m.pt2").write_bytes(exported("mlp"))
    checkpoint = open_checkpoint(tmp_path / "folder", tmp_path)
    other = checkpoint.program.tensors["fc1.weight"]
    checkpoint.program.tensors["more"] = Tensor(Storage(other.storage.key, None, 120), "F32", offset, shape, stride)
    plans = {"more": SimpleNamespace(steps=[1])}
    with pytest.raises(InputRefused) as refusal:
        Pt2Writer(tmp_path / "files", checkpoint, plans)
    assert refusal.value.type == "not-representable" and "more" in refusal.value.detail
