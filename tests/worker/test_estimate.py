"""What was said of a result beforehand, held against the result: to the byte for fixed-rate formats, within bounds where values decide."""

from __future__ import annotations

import json
import math
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import app.estimate
from app import packed_size
from app.coded import raw_payload
from app.errors import NotEstimable
from app.estimate import estimate
from app.job_spec import parse_job
from app.presets import MODEL
from app.local import open_local
from app.outline import Outline, TensorSpec
from app.values import DRAWN_CHANGED, DRAWN_LEAST, DRAWN_MOST
from worker import pipeline
from worker.kernels.chunks import Layout
from worker.kernels.payload import chunk_log2

ID = "00000000-0000-0000-0000-000000000000"
FIXED = {
    "w4": {"num_bits": 4, "group_size": 32},
    "w4 asymmetric": {"num_bits": 4, "group_size": 32, "symmetric": False},
    "w3 that does not divide": {"num_bits": 3, "group_size": 48},
    "w8 tensor": {"num_bits": 8, "strategy": "tensor"},
    "int8": {"num_bits": 8, "activations": "dynamic"},
    "fp8": {"num_bits": 8, "type": "float"},
}
CODED = {
    "lossless": [{"method": "lossless"}],
    "half pruned": [{"method": "prune"}],
    "nine tenths pruned": [{"method": "prune", "sparsity": 0.9, "scope": "global"}],
    "2:4": [{"method": "prune", "mask_structure": "2:4"}],
    "int4": [{"method": "quantize", "num_bits": 4, "group_size": 32}],
    "int4 per tensor, coded": [{"method": "quantize", "num_bits": 4, "strategy": "tensor"}, {"method": "lossless"}],
    "int4, coded": [{"method": "quantize", "num_bits": 4, "group_size": 32, "scale_search": "mse"}, {"method": "lossless"}],
    "two levels": [{"method": "quantize", "num_bits": 4, "scale_bits": 6, "symmetric": False}],
    "two levels of signed scales, coded": [{"method": "quantize", "num_bits": 3, "scale_bits": 5, "group_size": 16, "scale_search": "mse"}, {"method": "lossless"}],
    "float offsets": [{"method": "quantize", "num_bits": 4, "group_size": 64, "symmetric": False, "zero_point": "float"}],
    "nf4": [{"method": "quantize", "num_bits": 4, "type": "nf", "group_size": 64}],
    "nf3 of two levels, coded": [{"method": "quantize", "num_bits": 3, "type": "nf", "scale_bits": 8, "scale_search": "mse"}, {"method": "lossless"}],
    "hqq": [{"method": "quantize", "num_bits": 3, "group_size": 64, "symmetric": False, "scale_search": "hqq"}],
    "pruned under float offsets": [{"method": "prune", "sparsity": 0.6}, {"method": "quantize", "num_bits": 4, "scale_bits": 6, "symmetric": False}],
    "fp8, coded": [{"method": "quantize", "num_bits": 8, "type": "float"}, {"method": "lossless"}],
    "all": [{"method": "prune", "sparsity": 0.7}, {"method": "quantize", "num_bits": 3}, {"method": "lossless"}],
}


def weights(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Heavy-tailed, with rows of different scales."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g) * torch.rand(shape[0], 1, generator=g).add(0.2) * 0.05).to(dtype)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=["F32", "BF16", "F16"])
def folder(request, tmp_path_factory) -> Path:
    """A folder of two shards and what lies beside them; a file that is stripped."""
    out = tmp_path_factory.mktemp("model")
    dtype = request.param
    first = {"embed_tokens.weight": weights((500, 96), dtype, 0), "layers.0.fc.weight": weights((256, 384), dtype, 1)}
    first["layers.0.norm.weight"] = torch.ones(384, dtype=dtype)
    second = {"layers.1.fc.weight": weights((200, 256), dtype, 2), "layers.1.fc.bias": weights((200, 1), dtype, 3)[:, 0].clone(), "steps": torch.arange(40)}
    second["layers.1.experts.up_proj"] = weights((256, 96), dtype, 4).reshape(4, 64, 96)
    for i, shard in enumerate((first, second), 1):
        save_file(shard, out / f"model-0000{i}-of-00002.safetensors", {"format": "pt"})
    names = {n: f"model-0000{i}-of-00002.safetensors" for i, shard in enumerate((first, second), 1) for n in shard}
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (out / "config.json").write_text(json.dumps({"model_type": "x", "hidden_size": 96, "note": "caf\u00e9"}))
    (out / "tokenizer.json").write_text(json.dumps({f"token{i}": i for i in range(2000)}))
    (out / "optimizer.pt").write_bytes(b"not a model")
    return out


def both(folder: Path, out: Path, output: str, steps: list, sampled: bool = True) -> tuple[dict, dict]:
    """The estimate, and the report of the work."""
    spec = parse_job({"input": ID, "recipe": {"steps": steps}, "output": {"format": output}}, has_config=True)
    model, read = open_local(folder)
    pipeline.run(folder, out, spec.model_dump(mode="json"), lambda event: None)
    return estimate(model, spec, read if sampled else None), json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("case, output", [*((case, "compressed-tensors") for case in FIXED), ("w4", "safetensors")])
def test_fixed_rates_are_exact_to_the_byte_of_every_file(folder, tmp_path, case, output):
    said, report = both(folder, tmp_path, output, [{"method": "quantize"} | FIXED[case]], sampled=False)
    assert said["exact"] and {f["path"]: f["bytes"] for f in said["files"]} == report["totals"]["files"]
    assert said["bytes_after"] == said["bytes_least"] == said["bytes_most"] == report["totals"]["bytes_after"]
    rows = {r["name"]: r for r in report["tensors"]}
    assert all((r["action"], r["bytes_after"]) == (rows[r["name"]]["action"], rows[r["name"]]["bytes_after"]) for r in said["tensors"])


DTYPES = {torch.float32: CODED, torch.bfloat16: ("lossless", "half pruned", "2:4", "all")}
"""Cases of every run; others are `slow`."""
EVERY = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    "folder, case",
    [pytest.param(t, c, marks=[] if c in DTYPES.get(t, ()) else pytest.mark.slow, id=f"{str(t)[6:]}-{c}") for t in EVERY for c in CODED],
    indirect=["folder"],
)
def test_entropy_coded_bytes_are_within_two_percent_of_a_sample(folder, tmp_path, case):
    said, report = both(folder, tmp_path, "packed", CODED[case])
    real = report["totals"]["bytes_after"]
    assert abs(said["bytes_after"] / real - 1) < 0.02 and said["bytes_least"] <= real <= said["bytes_most"], (said["bytes_after"], real)
    assert {n: a["tensors"] for n, a in said["actions"].items()} == report["totals"]["actions"] and said["basis"] == "sample"


@pytest.mark.parametrize("case", ["lossless", "half pruned", "int4"])
def test_headers_alone_give_an_interval_that_holds(folder, tmp_path, case):
    said, report = both(folder, tmp_path, "packed", CODED[case], sampled=False)
    assert said["basis"] == "headers" and said["bytes_least"] <= report["totals"]["bytes_after"] <= said["bytes_most"]
    assert said["bytes_most"] - said["bytes_least"] <= 2 * DRAWN_CHANGED * said["bytes_after"] + 2


@pytest.mark.parametrize("kind, width", [("float", 1), ("float", 2), ("float", 8), ("int", 4), ("codes", 3), ("codes", 8)])
@pytest.mark.parametrize("count", [0, 1, 7, 1 << 17, (1 << 20) + 1, 3 << 20])
def test_raw_payloads_are_as_the_kernel_writes_them(kind, width, count):
    layout = Layout(kind, width)
    step = 1 << chunk_log2(layout)
    parts = [min(step, count - i) for i in range(0, count, step)]
    assert raw_payload(kind, width, count) == 16 + 8 * (math.ceil(count / step) + 1) + sum(12 + layout.raw_bytes(n) for n in parts)


@pytest.mark.parametrize("preset", [p for p in MODEL if p != "auto"])
def test_every_preset_has_an_estimate(folder, preset):
    model, read = open_local(folder)
    said = estimate(model, parse_job({"input": ID, "preset": preset}, complete=False), read)
    assert 0 < said["bytes_least"] <= said["bytes_after"] <= said["bytes_most"] < said["bytes_before"]
    assert said["peak_memory"] > 100 << 20 and said["scratch_bytes"] > said["bytes_before"] and said["seconds"] > 0 and said["loaders"]


def drawn_model(shapes: list[tuple[int, int]]) -> Outline:
    tensors = {f"l{i}.weight": TensorSpec(f"l{i}.weight", "BF16", shape, 2 * math.prod(shape), "m.safetensors") for i, shape in enumerate(shapes)}
    offsets = dict(zip(tensors, accumulate((t.nbytes for t in tensors.values()), initial=1000)))
    return Outline({"m.safetensors": 1000 + sum(t.nbytes for t in tensors.values())}, ("m.safetensors",), tensors, offsets)


def drawn_spec(*steps: dict):
    return parse_job({"input": ID, "recipe": {"steps": list(steps)}, "output": {"format": "packed"}})


def test_equal_tensors_are_told_once(monkeypatch):
    told, size = [], packed_size.tensor_size
    monkeypatch.setattr(app.estimate, "tensor_size", lambda t, *given: told.append(t.spec.shape) or size(t, *given))
    model = drawn_model([(64, 64 + i % 3) for i in range(300)])
    said = estimate(model, drawn_spec({"method": "prune", "scope": "global"}, {"method": "lossless"}), None)
    sizes = {t["bytes_after"] for t in said["tensors"]}  # in the bundle, and when that is full each by itself
    assert sorted(told) == [(64, 64), (64, 65), (64, 66)] and len(sizes) == 6


def test_the_more_tensors_differ_the_less_is_drawn_of_each():
    several, many = (app.estimate.looker(model := drawn_model([(8, 8 + i) for i in range(n)]), None)(model.tensors["l0.weight"]) for n in (10, 2000))
    assert len(several.tops) == DRAWN_MOST and len(many.tops) == DRAWN_LEAST
    with pytest.raises(NotEstimable, match="9000 tensors"):
        estimate(drawn_model([(8, 8 + i) for i in range(9000)]), drawn_spec({"method": "lossless"}), None)


def test_only_the_largest_of_very_many_are_read(monkeypatch):
    monkeypatch.setattr(app.estimate, "_LOOKED", 2)
    model, read = drawn_model([(64, 64), (64, 96), (64, 80)]), []
    said = estimate(model, drawn_spec({"method": "lossless"}), lambda path, begin, end: read.append(begin) or bytes(end - begin))
    assert {begin for begin in read if begin >= 1000} == {model.offsets["l1.weight"], model.offsets["l2.weight"]}
    assert [t["bytes_after"] > 4000 for t in said["tensors"]] == [True, False, False]  # the others are zeros all over


MAPPED = {
    "rows": [{"num_bits": 4}],
    "groups": [{"num_bits": 3, "strategy": "group", "group_size": 48}],
    "a tensor, pruned": [{"sparsity": 0.9}, {"num_bits": 2, "strategy": "tensor"}],
    "rows, pruned by gradients": [{"sparsity": 0.6, "saliency": "fisher"}, {"num_bits": 3}],
}


@pytest.mark.parametrize("case", MAPPED)
def test_codebooks_come_within_the_interval(tmp_path, case):
    tensors = {"a.weight": weights((256, 384), torch.float32, 1), "b.weight": weights((200, 256), torch.float32, 2), "b.bias": torch.zeros(200)}
    (tmp_path / "in").mkdir()
    (tmp_path / "gradients").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    save_file({n: torch.randn(t.shape, generator=torch.Generator().manual_seed(9)) for n, t in tensors.items()}, tmp_path / "gradients" / "g.safetensors")
    *before, quantize = MAPPED[case]
    steps = [*({"method": "prune"} | s for s in before), {"method": "quantize", "mapping": "gradient"} | quantize]
    spec = parse_job({"input": ID, "recipe": {"steps": steps}, "output": {"format": "packed"}, "gradients": ID}, True)
    model, read = open_local(tmp_path / "in")
    pipeline.run(tmp_path / "in", tmp_path / "out", spec.model_dump(mode="json") | {"beside": {"gradients": str(tmp_path / "gradients")}}, lambda event: None)
    real = json.loads((tmp_path / "out" / "report.json").read_text())["totals"]["bytes_after"]
    said = estimate(model, spec, read)
    assert said["bytes_least"] <= real <= said["bytes_most"], (said["bytes_after"], real)
    assert abs(said["bytes_after"] / real - 1) < 0.1 and not said["exact"]
