"""Experts of one tensor, taken apart into layers: the network says what it said, and each layer is given the tokens of its expert."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import tiny_models
import torch
from torch import nn

from worker.formats import open_checkpoint
from worker.moments import Moments
from worker.runnable import open_runnable, replace
from worker.runnable.experts import Experts
from worker.runnable.stacks import unstack
from worker.samples import Data

NAMES = ["gpt-oss", "llama4", "qwen3-vl-moe", "granitemoe"]


@contextmanager
def opened(tmp_path, name: str):
    tiny_models.build(name, tmp_path / "m", tokenizer=False)
    (tmp_path / "s").mkdir()
    checkpoint = open_checkpoint(tmp_path / "m", tmp_path / "s")
    runnable = open_runnable(tmp_path / "m", checkpoint)
    with torch.no_grad():
        for n, p in runnable.parameters.items():
            if n.endswith("bias"):
                p.normal_()
    yield runnable
    checkpoint.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_network_says_what_it_said_and_layers_see_their_own_tokens(tmp_path, name):
    with opened(tmp_path, name) as runnable:
        data = Data(tokens=[torch.arange(4, 30).numpy(), torch.arange(20, 29).numpy(), torch.arange(50, 55).numpy()])
        batch = data.batch([0, 1, 2])
        before = runnable.forward(batch)
        stacked = {p: name in ("gpt-oss", "llama4") for p in runnable.parameters.values() if p.ndim == 3}
        apart = unstack(runnable.module, stacked)
        assert apart.keys() == stacked.keys() and sum(isinstance(m, Experts) for m in runnable.module.modules()) == 2
        assert torch.allclose(runnable.forward(batch)[batch.mask if before.ndim == 3 else slice(None)], before[batch.mask if before.ndim == 3 else slice(None)], atol=1e-4)
        for p, weights in apart.items():
            assert all(torch.equal(w.T if stacked[p] else w, one) and w.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() for w, one in zip(weights, p, strict=True))
        layers = [m for m in runnable.module.modules() if isinstance(m, nn.Linear) and any(m.weight is w for ws in apart.values() for w in ws)]
        together, mask = Moments(layers, lambda: batch.mask), None
        with together:
            runnable.forward(batch)
        alone = Moments(layers, lambda: mask)
        with alone:
            for i in range(3):
                runnable.forward(data.batch([i]))
        seen = sum(together.of(w).tokens for ws in apart.values() for w in ws if together.of(w) is not None)
        assert seen == 4 * 40 * (1 if name == "llama4" else 2)  # two matrices in two layers, and no token of padding
        for layer in layers:
            a, b = together.of(layer.weight), alone.of(layer.weight)
            assert (a is None or a.tokens == 0) if b is None else a.tokens == b.tokens and torch.allclose(a.gram, b.gram, rtol=1e-3, atol=1e-4)


def test_a_module_that_does_something_else_is_left_alone(tmp_path):
    with opened(tmp_path, "gpt-oss") as runnable:
        fused = next(m for m in runnable.module.modules() if type(m).__name__ == "GptOssExperts")
        fused._apply_gate = lambda x: x[..., ::2] * torch.rand(x.shape[-1] // 2)
        apart = unstack(runnable.module, {p: True for p in runnable.parameters.values() if p.ndim == 3})
        assert len(apart) == 2 and any(m is fused for m in runnable.module.modules())


def test_experts_that_are_stored_the_other_way_round_run_as_they_are(tmp_path):
    from safetensors.torch import load_file, save_file

    original = tiny_models.build("qwen3-vl-moe", tmp_path / "m", tokenizer=False)
    path = tmp_path / "m" / "model.safetensors"
    tensors = {n: t.transpose(1, 2).contiguous() if t.ndim == 3 else t for n, t in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    (tmp_path / "s").mkdir()
    checkpoint = open_checkpoint(tmp_path / "m", tmp_path / "s")
    runnable = open_runnable(tmp_path / "m", checkpoint)
    batch = Data(tokens=[torch.arange(4, 30).numpy()]).batch([0])
    said = runnable.forward(batch)
    assert torch.allclose(said[0], nn.functional.normalize(original(**batch.inputs).last_hidden_state.mean(1)[0], dim=0), atol=1e-5)
    experts = {n: p for n, p in runnable.parameters.items() if p.ndim == 3}
    assert len(experts) == 4 and all(torch.equal(p, tensors[n]) for n, p in experts.items())
    for p in experts.values():
        p.requires_grad_(True)
    assert all(bool(g.any()) for g in torch.autograd.grad(runnable.forward(batch)[0, 0], list(experts.values())))
    with torch.no_grad():
        apart = unstack(runnable.module, dict.fromkeys(experts.values(), True))
        assert len(apart) == 4 and torch.allclose(runnable.forward(batch), said, atol=1e-5)
        replace(runnable, {n: torch.zeros_like(p) for n, p in experts.items()})
        assert not torch.allclose(runnable.forward(batch), said, atol=1e-3)
    checkpoint.close()
