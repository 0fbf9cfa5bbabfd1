from __future__ import annotations

import pytest
import tiny_models
import torch

from worker.formats import open_checkpoint
from worker.runnable import open_runnable
from worker.runnable.experts import Experts
from worker.samples import Data


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_are_layers_under_the_names_of_the_checkpoint(tmp_path, name):
    original = tiny_models.build(name, tmp_path / "m")
    (tmp_path / "s").mkdir()
    checkpoint = open_checkpoint(tmp_path / "m", tmp_path / "s")
    runnable = open_runnable(tmp_path / "m", checkpoint)
    assert sum(isinstance(m, Experts) for m in runnable.module.modules()) == 2
    own = {id(p) for p in runnable.module.parameters()}
    experts = {n: p for n, p in runnable.parameters.items() if ".experts." in n}
    assert experts.keys() == {n for n in checkpoint.tensors if ".experts." in n}
    assert all(id(p) in own and torch.equal(p, checkpoint.read(n)) for n, p in experts.items())
    batch = Data(tokens=[torch.arange(4, 30).numpy()]).batch([0])
    assert torch.allclose(runnable.forward(batch), original(**batch.inputs).logits, atol=1e-4)
    some = min(experts)
    before = runnable.forward(batch)
    experts[some].data = torch.zeros_like(experts[some])
    assert not torch.equal(runnable.forward(batch), before)
    checkpoint.close()


def test_experts_that_the_checkpoint_has_in_one_piece_stay_so(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_models.build("qwen3-moe", tmp_path / "m")
    tensors = {n: t for n, t in load_file(tmp_path / "m" / "model.safetensors").items() if ".experts." not in n}
    tensors |= {n: p.detach().clone() for n, p in model.named_parameters() if ".experts." in n}
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    (tmp_path / "s").mkdir()
    checkpoint = open_checkpoint(tmp_path / "m", tmp_path / "s")
    runnable = open_runnable(tmp_path / "m", checkpoint)
    assert not any(isinstance(m, Experts) for m in runnable.module.modules())
    assert {n for n in checkpoint.tensors if "experts" in n} <= runnable.parameters.keys()
    checkpoint.close()


def opened(folder, scratch, tensors):
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    scratch.mkdir()
    checkpoint = open_checkpoint(folder, scratch)
    return checkpoint, open_runnable(folder, checkpoint)


def test_experts_whose_rows_begin_alike_are_told_apart(tmp_path):
    from safetensors.torch import load_file

    tiny_models.build("qwen3-moe", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    for name, t in tensors.items():
        if ".experts." in name:
            t[0, :16] = 0
    checkpoint, runnable = opened(tmp_path / "m", tmp_path / "s", tensors)
    assert sum(isinstance(m, Experts) for m in runnable.module.modules()) == 2
    experts = {n: p for n, p in runnable.parameters.items() if ".experts." in n}
    assert experts.keys() == {n for n in tensors if ".experts." in n} and len(set(map(id, experts.values()))) == len(experts)
    assert all(torch.equal(p, tensors[n]) for n, p in experts.items())
    checkpoint.close()


def test_a_matrix_without_rows_is_no_expert(tmp_path):
    from safetensors.torch import load_file

    tiny_models.build("qwen3-moe", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    for shape in ((0, 5), (5, 0)):
        tensors[f"model.layers.0.experts.0.{shape[0]}"] = torch.empty(shape)
    checkpoint, runnable = opened(tmp_path / "m", tmp_path / "s", tensors)
    assert sum(isinstance(m, Experts) for m in runnable.module.modules()) == 2
    checkpoint.close()
