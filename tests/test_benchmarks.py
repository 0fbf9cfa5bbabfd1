"""What the tables of `benchmarks.quality` are made by: recipes that the service takes, other libraries on small matrices, a row's own process."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.recipe import parse_recipe
from benchmarks import auto, blockwise, deep_compression, outliers, peers, quality
from benchmarks.row import Broke, measured
from tiny_models import build


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(quality.__file__).parent.glob("*.py")))
def test_every_benchmark_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}")


def test_every_recipe_is_one():
    rows = dict(quality.recipes(recover=10))
    assert all(parse_recipe({"steps": steps}) for steps in rows.values())
    assert sum(parse_recipe({"steps": steps}).recovers for steps in rows.values()) == 3 and not any("recovered" in name for name in dict(quality.recipes(0)))


@pytest.mark.parametrize("num_bits", outliers.RECIPES)
def test_two_level_rows_store_what_their_k_quants_store(num_bits):
    for name, step in outliers.rows(num_bits):
        (q,) = parse_recipe({"steps": [step]}).steps
        if q.scale_bits:
            bits = q.num_bits + (q.scale_bits / q.group_size + 16 / 256) * (1 if q.symmetric else 2)
            assert bits == {2: 2.625, 3: 3.4375, 4: 4.5, 5: 5.5, 6: 6.5625}[num_bits], name


def test_auto_is_held_against_recipes_of_the_service():
    assert len(auto.FIXED) >= 15 and all(parse_recipe({"steps": steps}) for steps in auto.FIXED.values()) and len(auto.BUDGETS) == 10


def test_ggmls_own_quantizer(tmp_path):
    if peers.missing("xllamacpp"):
        pytest.skip("not installed (the extra `bench`)")
    w = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    save_file({"model.layers.0.a.weight": w, "model.layers.0.norm.weight": w[0].clone(), "lm_head.weight": w.clone()}, tmp_path / "w.safetensors")
    four, six = (peers.ggml(str(tmp_path / "w.safetensors"), kind) for kind in ("Q4_K", "Q6_K"))
    assert four["bits"] == 4.5 and 0.06 < four["relative_error"] < 0.09 and six["bits"] == 6.5625 and 0.01 < six["relative_error"] < 0.03


@pytest.fixture
def matrices(tmp_path):
    g = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(32, 128, generator=g), "b": torch.randn(48, 172, generator=g), "other": torch.ones(3)}
    save_file(weights, tmp_path / "w.safetensors")
    return weights, tmp_path / "w.safetensors", tmp_path / "out.safetensors"


def ran(matrices, work: str, **options) -> tuple[dict, float]:
    """What was made of a and b, and the bits; its relative error."""
    weights, source, out = matrices
    bits = getattr(peers, work)(str(source), str(out), ["a", "b"], **options)["bits"]
    made = load_file(out)
    assert made.keys() == {"a", "b"} and all(made[n].shape == weights[n].shape for n in made)
    return made, bits


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_torchs_pruning(matrices, scope):
    made, bits = ran(matrices, "pruned", sparsity=0.75, scope=scope)
    zeros = {n: int((w == 0).sum()) for n, w in made.items()}
    assert sum(zeros.values()) == (32 * 128 + 48 * 172) * 3 // 4 and bits == pytest.approx(1 + 32 / 4)
    if scope == "tensor":
        assert zeros == {"a": 32 * 128 * 3 // 4, "b": 48 * 172 * 3 // 4}


@pytest.mark.parametrize("work, num_bits, worst", [("hqq", 4, 0.15), ("hqq", 2, 0.7), ("quanto", 8, 0.02), ("quanto", 4, 0.2), ("quanto", 2, 0.9)])
def test_other_quantizers(matrices, work, num_bits, worst):
    if peers.missing({"hqq": "hqq", "quanto": "optimum.quanto"}[work]):
        pytest.skip("not installed (the extra `bench`)")
    made, bits = ran(matrices, work, num_bits=num_bits)
    weights = matrices[0]
    assert num_bits < bits <= num_bits + 0.6 and all((made[n] - weights[n]).norm() < worst * weights[n].norm() for n in made)
    assert all(len(row.unique()) <= 2**num_bits * (row.numel() // peers.GROUP + 2) for w in made.values() for row in w)


def test_libraries_of_another_environment_are_looked_for_there(tmp_path):
    (python := tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    assert peers.missing("torch", str(python)) and not peers.missing("json", str(python)) and not peers.missing("torch")
    assert all(hasattr(blockwise, work) for _, work, _, _ in quality.learners())
    assert blockwise._stored(4, True) == {"bits": 4.125} and blockwise._stored(2, False) == {"bits": 2 + 18 / 128}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    build("bert", folder)
    lengths = [3, 5, 4, 3, 3, 6, 5, 3] * 2
    (folder / "samples.jsonl").write_text("".join(json.dumps({"input_ids": [4 + (7 * i + j) % 50 for j in range(n)]}) + "\n" for i, n in enumerate(lengths)))
    model = blockwise._load(str(folder))
    names = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layer." in n]
    return model, names, list(blockwise._batches(str(folder), str(folder / "samples.jsonl"), 3))


def test_samples_of_one_length_are_a_batch(encoder):
    _, _, batches = encoder
    assert sum(len(b["input_ids"]) for b in batches) == 16 and len(batches) == 7 and all(len(b["input_ids"]) <= 3 and b["attention_mask"].all() for b in batches)
    assert not any((b["input_ids"] == 0).any() for b in batches)  # of padding


def test_layers_see_what_those_before_them_have_become(encoder):
    """Twice each weight: the inputs that each layer is given are those of the model whose layers before it are changed."""
    model, names, batches = encoder
    groups, given = [], {}

    def begin(layer):
        name = next(n for n, m in model.named_modules() if m is layer)
        given[name] = []
        groups.append(name)
        return lambda x, y: given[name].append(x), lambda: layer.weight * 2

    original = {n: model.get_parameter(n).clone() for n in names}
    blockwise._block_by_block(model, iter(batches), names, begin)
    assert sorted(groups) == sorted(n.removesuffix(".weight") for n in names)
    assert all(torch.equal(model.get_parameter(n), original[n] * 2) for n in names)
    for name, inputs in given.items():  # those behind a layer change nothing of its inputs
        seen = []
        hook = model.get_submodule(name).register_forward_hook(lambda _, x, y, seen=seen: seen.append(x[0]))
        for batch in batches:
            model(**batch)
        hook.remove()
        assert len(inputs) == len(batches) and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(inputs, seen, strict=True)), name


@pytest.mark.slow
def test_a_row_is_measured_in_a_process_of_its_own(matrices, tmp_path):
    weights, source, out = matrices
    took = measured("benchmarks.peers:pruned", tmp_path, source=source, out=out, names=["a"], sparsity=0.5, scope="tensor")
    assert took["bits"] == 17 and took["seconds"] > 0 and 0 <= took["memory"] < 1 << 30 and int((load_file(out)["a"] == 0).sum()) == 32 * 64
    with pytest.raises(Broke, match="ended with 1"):
        measured("benchmarks.peers:pruned", tmp_path, source=source, out=out, names=["nothing"], sparsity=0.5, scope="tensor")


def test_a_program_is_scored_with_other_tensors_in_their_places(tmp_path):
    """Images as the program takes them, and the digits that it says, held against the module itself."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 5, stride=4), torch.nn.Flatten(), torch.nn.Linear(72, 10))
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},)), tmp_path / "n.pt2")
    rng = np.random.default_rng(0)
    images, says = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8), rng.integers(0, 10, 40)
    np.savez(tmp_path / "mnist.npz", x_test=images, y_test=says)
    scored = deep_compression.Scored(tmp_path / "n.pt2")
    assert scored.shape == [1, 28, 28] and scored.tensors.keys() == network.state_dict().keys()
    for scale in (1.0, -1.0):
        network[2].weight.data.mul_(scale)
        wrong = (network(torch.from_numpy(images[:, None] / np.float32(255))).argmax(1).numpy() != says).sum()
        assert scored.errors({"2.weight": network[2].weight.data}, tmp_path / "mnist.npz") == wrong
