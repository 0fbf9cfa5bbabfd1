"""What a tensor is by its name, and that no name costs the square of its length."""

from __future__ import annotations

import pytest

from app.outline import TensorSpec
from app.recipe import parse_recipe
from app.targets import treat

KINDS = {
    "model.embed_tokens.weight": "an embedding", "transformer.wte.weight": "an embedding", "encoder.tok_embeddings.weight": "an embedding", "shared.weight": "an embedding",
    "embeddings.position_embeddings.weight": "an embedding", "lm_head.weight": "an output head", "classifier.dense.weight": "an output head", "output.weight": "an output head",
    "layers.0.input_layernorm.weight": "a norm", "layers.0.ln_1.weight": "a norm", "bn1.weight": "a norm", "layers.0.mlp.gate.weight": "a router",
    "layers.0.mlp.up_proj.weight": None, "layers.0.normal.fc.weight": None, "layers.0.embedx.weight": None, "layers.0.gate_proj.weight": None,
}  # fmt: skip
LONG = ("_norm", "norm", "_embed", "head.", "_x", "cls.", "ln_", "conv_", "_moe", "lm_head.a.")


@pytest.mark.parametrize("name", KINDS)
def test_what_it_is(name):
    recipe = parse_recipe({"steps": [{"method": "quantize", "num_bits": 8}]})
    found = treat({n: TensorSpec(n, "F32", (8, 8), 256, "m") for n in (name, "other.fc.weight")}, None, recipe, "packed")[name].reason
    assert (found or "").partition(";")[0] == (KINDS[name] or "")


def test_thousands_of_the_longest_names():
    """Where a pattern looks on to the end from each place of a name, this takes minutes."""
    tensors = {}
    for part in LONG:
        for i in range(300):
            name = (f"{i}." + part * 512)[:500] + ("x.weightx" if i % 2 else "-.weight")
            tensors[name] = TensorSpec(name, "F32", (2, 8, 8) if i % 3 else (8, 8), 512, "m")
    tensors["fc.weight"] = TensorSpec("fc.weight", "F32", (8, 8), 256, "m")
    made = treat(tensors, None, parse_recipe({"steps": [{"method": "quantize", "num_bits": 8, "strict": False}]}), "packed")
    assert len(made) == len(tensors) and made["fc.weight"].steps
