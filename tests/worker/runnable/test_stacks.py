"""Experts of one tensor, taken apart into layers: the network says what it said, and each layer is given the tokens of its expert."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import tiny_models
import torch
from torch import nn

from worker.formats import open_checkpoint
from worker.moments import Moments
from worker.runnable import open_runnable
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
