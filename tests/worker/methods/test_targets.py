"""Which tensors are worked on, and why the others are not."""

from __future__ import annotations

import pytest
import torch

from app.errors import ConflictingSteps, InputRefused, NoTensorMatched
from app.recipe import parse_recipe
from tensors import checkpoint
from worker.methods import apply, plan, prepare


LINEAR = {"method": "quantize", "num_bits": 4, "group_size": 16}


def chosen(tensors, steps=(LINEAR,), output="packed", config=None):
    return plan(checkpoint(tensors, config), parse_recipe({"steps": list(steps)}), output)


def test_defaults_leave_embeddings_heads_norms_and_routers_alone():
    matrix, vector = torch.randn(32, 32), torch.randn(32)
    names = [
        "model.layers.0.self_attn.q_proj.weight", "encoder.layer.0.attention.self.query.weight", "model.layers.0.mlp.gate_proj.weight", "fc1.weight", "lstm.weight_ih_l0",
        "model.embed_tokens.weight", "embeddings.word_embeddings.weight", "transformer.wte.weight", "lm_head.weight", "classifier.weight", "score.weight",
        "cls.predictions.decoder.weight", "block_sparse_moe.gate.weight", "mlp.router.weight", "model.layers.0.mlp.experts.gate_up_proj", "relative_attention_bias.weight",
    ]  # fmt: skip
    plans = chosen({n: matrix for n in names} | {"norm.weight": vector, "fc1.bias": vector})
    assert [n for n, p in plans.items() if p.steps] == names[:5]
    assert all(p.reason for n, p in plans.items() if not p.steps)
    assert "embedding" in plans["model.embed_tokens.weight"].reason and "router" in plans["mlp.router.weight"].reason


def test_a_users_own_patterns_win():
    plans = chosen({"lm_head.weight": torch.randn(32, 32), "fc.weight": torch.randn(32, 32)}, [LINEAR | {"targets": ["lm_head*"]}])
    assert plans["lm_head.weight"].steps and plans["fc.weight"].reason == "not targeted"


def test_convolutions_go_into_packed_only():
    tensors = {"conv.weight": torch.randn(8, 4, 3, 3), "fc.weight": torch.randn(8, 16)}
    assert chosen(tensors)["conv.weight"].steps
    assert "packed" in chosen(tensors, output="compressed-tensors", config={})["conv.weight"].reason


def test_gpt2_is_stored_the_other_way_round():
    w = torch.randn(16, 48)
    plans = chosen({"h.0.attn.c_attn.weight": w}, config={"model_type": "gpt2"})
    p = plans["h.0.attn.c_attn.weight"]
    encoded = apply(p, w)
    assert p.transposed and encoded.quantized.codes.shape == (48, 16) and encoded.quantized.transposed and encoded.dense.shape == w.shape
    assert (encoded.dense - w).abs().max() < w.abs().max() / 7


def test_a_group_size_that_does_not_divide():
    tensors = {"a.weight": torch.randn(4, 64), "b.weight": torch.randn(4, 40)}
    plans = chosen(tensors, [LINEAR | {"group_size": 32}], "compressed-tensors", {})
    assert plans["a.weight"].quantize.strategy == "group" and plans["b.weight"].quantize.strategy == "channel" and "40" in plans["b.weight"].notes[0]
    assert chosen(tensors, [LINEAR | {"group_size": 32}])["b.weight"].quantize.strategy == "group"
    with pytest.raises(InputRefused, match="40 inputs"):
        chosen(tensors, [LINEAR | {"group_size": 32, "strict": True}], "compressed-tensors", {})


def test_steps_that_meet_or_find_nothing():
    tensors = {"a.weight": torch.randn(4, 64), "a.bias": torch.randn(4)}
    with pytest.raises(ConflictingSteps, match="a.weight"):
        chosen(tensors, [LINEAR | {"targets": ["a*"]}, LINEAR | {"targets": ["*.weight"]}])
    with pytest.raises(NoTensorMatched, match="nope"):
        try:
            chosen(tensors, [LINEAR | {"targets": ["nope*"]}])
        except NoTensorMatched as e:
            raise NoTensorMatched(f"nope: {e}") from e
    with pytest.raises(NoTensorMatched, match="rank 1"):
        chosen(tensors, [LINEAR | {"targets": ["*.bias"]}])


def test_values_that_are_not_finite_are_copied_or_refused():
    w = torch.randn(4, 32)
    w[0, 0] = float("nan")
    tensors = {"a.weight": w, "b.weight": torch.randn(4, 32)}
    for strict in (False, True):
        recipe = parse_recipe({"steps": [LINEAR | {"strict": strict}]})
        c = checkpoint(tensors)
        plans = plan(c, recipe, "packed")
        if strict:
            with pytest.raises(InputRefused, match="a.weight"):
                prepare(c, recipe, plans)
        else:
            prepare(c, recipe, plans)
            encoded = apply(plans["a.weight"], w)
            assert encoded.action == "copied" and "NaN" in encoded.reason and encoded.dense is w
            assert apply(plans["b.weight"], tensors["b.weight"]).action == "quantized"
