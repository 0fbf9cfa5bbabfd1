from __future__ import annotations

import hashlib
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from worker.checkpoint import DTYPES, Checkpoint, TensorSpec
from worker.encoded import Codebook, Encoded, Quantized
from worker.formats import open_checkpoint
from worker.formats.packed import PACKED_NAME, PackedWriter, open_packed, pack_files, restore_packed, verify_packed
from worker.kernels.uniform import dequantize


def quiet(nbytes: int) -> None:
    pass


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def packed(folder: Path, work: Path, keep=lambda name: True) -> Path:
    """Every file of `folder` packed into `work`."""
    (work / "scratch").mkdir(parents=True)
    checkpoint = open_checkpoint(folder, work / "scratch")
    pack_files(checkpoint, work / PACKED_NAME, keep, quiet)
    checkpoint.close()
    return work / PACKED_NAME


def assert_exact(folder: Path, work: Path) -> None:
    """Packing and restoring `folder` gives its files, byte for byte."""
    path = packed(folder, work)
    assert verify_packed(path, quiet) == {rel: hashlib.sha256(b).hexdigest() for rel, b in tree(folder).items()}
    assert restore_packed(path, work / "restored", quiet)["kind"] == "files"
    assert tree(work / "restored") == tree(folder)


def safetensors_bytes(header: dict | bytes, data: bytes, pad: int = 0) -> bytes:
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + b" " * pad
    return struct.pack("<Q", len(text)) + text + data


def test_a_safetensors_file_of_every_dtype_and_odd_shape_comes_back(tmp_path):
    source, rng = tmp_path / "in", np.random.default_rng(3)
    source.mkdir()
    tensors = {}
    for name, dtype in DTYPES.items():
        if name == "C128":
            continue  # safetensors has no such dtype
        for shape in ((), (0,), (3, 0, 2), (1,), (5, 7), (300, 130)):
            raw = rng.integers(0, 2 if name == "BOOL" else 256, int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
            tensors[f"{name}/{shape}"] = torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw.size else torch.empty(shape, dtype=dtype)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert_exact(source, tmp_path / "work")
    with open_packed(tmp_path / "work" / PACKED_NAME) as reader:
        for name in reader.names:
            assert torch.equal(reader.read(name).reshape(-1).view(torch.uint8), tensors[name].reshape(-1).view(torch.uint8)), name
            assert reader.read(name).shape == tensors[name].shape and reader.stored_bytes(name) > 0


@pytest.mark.parametrize(
    "header, pad",
    [
        (b'{"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},"a":{"dtype":"I32","shape":[],"data_offsets":[0,4]}}', 0),
        (b'{ "a" : {"data_offsets":[0,4],"shape":[1],"dtype":"F32"}, "__metadata__":{"x":"\\u00e9"},\n"b":{"dtype":"F64","shape":[1,1],"data_offsets":[4,12]}}', 501),
        (b'{"a":{"dtype":"BF16","shape":[6],"data_offsets":[0,12]}}', 3),
    ],
)
def test_odd_headers_come_back(tmp_path, header, pad):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m.safetensors").write_bytes(safetensors_bytes(header, bytes(range(12)), pad))
    assert_exact(tmp_path / "in", tmp_path / "work")


@pytest.mark.parametrize("half", [False, True])
def test_a_torch_checkpoint_comes_back(tmp_path, half):
    (tmp_path / "in").mkdir()
    w = torch.randn(200, 300)
    state = {"w": w.half() if half else w, "tied": None, "view": torch.arange(10)[2:5], "bias": torch.zeros(3)}
    state["tied"] = state["w"]
    torch.save({"state_dict": state, "step": 3}, tmp_path / "in" / "m.pt")
    assert_exact(tmp_path / "in", tmp_path / "work")
    assert (tmp_path / "in" / "m.pt").stat().st_size > 1.1 * (tmp_path / "work" / PACKED_NAME).stat().st_size


def test_a_folder_comes_back_with_all_its_files(tmp_path):
    source = tmp_path / "in"
    (source / "onnx").mkdir(parents=True)
    for i in (1, 2):
        save_file({f"l{i}.weight": torch.randn(40, 30).bfloat16(), f"l{i}.bias": torch.randn(40)}, source / f"model-0000{i}-of-00002.safetensors")
    weight_map = {f"l{i}.{k}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2) for k in ("weight", "bias")}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (source / "config.json").write_text('{"model_type": "x"}')
    (source / "empty.txt").write_bytes(b"")
    (source / "onnx" / "big.bin.txt").write_bytes(np.random.default_rng(0).bytes(3_000_000))
    assert_exact(source, tmp_path / "work")


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_bits_in_any_dtype_come_back(tmp_path_factory, data):
    work = tmp_path_factory.mktemp("any")
    dtype = data.draw(st.sampled_from([d for d in DTYPES if d != "C128"]))
    count = data.draw(st.integers(0, 40))
    raw = data.draw(st.binary(min_size=count * DTYPES[dtype].itemsize, max_size=count * DTYPES[dtype].itemsize))
    if dtype == "BOOL":
        raw = bytes(b & 1 for b in raw)
    header = {"t": {"dtype": dtype, "shape": [count], "data_offsets": [0, len(raw)]}}
    (work / "in").mkdir()
    (work / "in" / "m.safetensors").write_bytes(safetensors_bytes(header, raw))
    assert_exact(work / "in", work / "work")


def test_the_same_input_gives_the_same_bytes(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"w": torch.randn(1000, 900)}, tmp_path / "in" / "m.safetensors")
    assert packed(tmp_path / "in", tmp_path / "a").read_bytes() == packed(tmp_path / "in", tmp_path / "b").read_bytes()


def test_tensors_that_no_step_targets_are_stored_raw(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"w": torch.randn(300, 300), "v": torch.randn(300, 300)}, tmp_path / "in" / "m.safetensors")
    with open_packed(packed(tmp_path / "in", tmp_path / "work", lambda name: name == "w")) as reader:
        assert reader.stored_bytes("v") > 360_000 > reader.stored_bytes("w")


def test_any_safetensors_reader_opens_it(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"w": torch.randn(30, 30)}, tmp_path / "in" / "m.safetensors")
    with safe_open(packed(tmp_path / "in", tmp_path / "work"), "np") as f:
        assert f.metadata() == {"format": "modelpress.packed", "version": "1", "index": "modelpress.index"}
        assert f.get_tensor("w").dtype == np.uint8


def test_zeros_shrink_no_further_than_a_reader_takes(tmp_path):
    """300 MiB of zeros would be a few hundred bytes, and a file that says so is refused as a bomb."""
    (tmp_path / "in").mkdir()
    size = 300 << 20
    header = safetensors_bytes({"z": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}, b"")
    with (tmp_path / "in" / "m.safetensors").open("wb") as f:
        f.write(header)
        f.truncate(len(header) + size)
    path = packed(tmp_path / "in", tmp_path / "work")
    assert path.stat().st_size < 5 << 20
    assert list(verify_packed(path, quiet)) == ["m.safetensors"]


def test_a_tiny_model_pays_little(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"fc.weight": torch.randn(4, 4), "fc.bias": torch.randn(4)}, tmp_path / "in" / "m.safetensors")
    assert packed(tmp_path / "in", tmp_path / "work").stat().st_size < 1300


# Lossy results


def params(num_bits: int, **more):
    from app.recipe import Quantize

    return Quantize(method="quantize", num_bits=num_bits, **more)


def quantized(x: torch.Tensor, num_bits: int, group_size: int, asymmetric: bool = False) -> Quantized:
    """Absmax codes of a matrix; how good they are does not matter here."""
    rows, columns = x.shape
    groups = -(-columns // group_size)
    padded = torch.nn.functional.pad(x.float(), (0, groups * group_size - columns)).reshape(rows, groups, group_size)
    high = (1 << (num_bits - 1)) - 1
    scale = padded.abs().amax(-1).clamp_min(1e-6) / (high + 0.5)
    zero = torch.randint(-high - 1, high + 1, scale.shape, dtype=torch.int8) if asymmetric else None
    codes = (padded / scale[..., None]).round().clamp(-high - 1, high).to(torch.int8).reshape(rows, -1)[:, :columns].contiguous()
    return Quantized(codes, scale, zero, group_size, params(num_bits, symmetric=not asymmetric, strategy="group", group_size=group_size))


def lossy(work: Path, encode, weights: dict[str, torch.Tensor], metadata=None, lossless: bool = False) -> tuple[Path, dict[str, Encoded]]:
    """A packed file of `weights`, each as `encode` makes it."""
    source = work / "in"
    source.mkdir(parents=True)
    save_file(weights, source / "model.safetensors", metadata=metadata)
    (source / "config.json").write_text("{}")
    (work / "scratch").mkdir()
    checkpoint = open_checkpoint(source, work / "scratch")
    writer = PackedWriter(work / PACKED_NAME, checkpoint)
    written = {}
    for name in checkpoint.tensors:
        written[name] = encode(checkpoint.tensors[name], checkpoint.read(name))
        assert writer.write(written[name]) > 0 or not checkpoint.tensors[name].nbytes
    writer.finish()
    return work / PACKED_NAME, written


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("lossless", [False, True])
def test_codes_of_any_width_come_back(tmp_path, num_bits, lossless):
    torch.manual_seed(num_bits)
    weights = {"a": torch.randn(30, 172).bfloat16(), "b": torch.randn(7, 128).half(), "c": torch.randn(5, 3)}

    def encode(spec: TensorSpec, x: torch.Tensor) -> Encoded:
        q = quantized(x, num_bits, 64, asymmetric=spec.name == "b")
        dense = dequantize(q.codes, q.scale, q.zero_point, q.group_size).to(x.dtype)
        return Encoded(spec, "quantized", dense, quantized=q, lossless=lossless)

    path, written = lossy(tmp_path, encode, weights, {"format": "pt"})
    with open_packed(path) as reader:
        for name, e in written.items():
            assert torch.equal(reader.read(name), e.dense)
        assert reader.index.steps[0]["num_bits"] == num_bits
    assert restore_packed(path, tmp_path / "out", quiet)["kind"] == "tensors"
    assert set(tree(tmp_path / "out")) == {"config.json", "model.safetensors"}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt"}
        assert {n: f.get_tensor(n).dtype for n in f.keys()} == {n: w.dtype for n, w in weights.items()}
        assert all(torch.equal(f.get_tensor(n), written[n].dense) for n in weights)


def test_dequantize_is_the_formula():
    codes = torch.tensor([[-8, 7, 1], [0, -1, 3]], dtype=torch.int8)
    scale, zero = torch.tensor([[0.5, -2.0], [1.0, 0.25]]), torch.tensor([[0, 1], [-3, 2]], dtype=torch.int8)
    assert dequantize(codes, scale, zero, 2).tolist() == [[-4.0, 3.5, 0.0], [3.0, 2.0, 0.25]]
    assert dequantize(codes, scale[:1, :1], None, 3).tolist() == [[-4.0, 3.5, 0.5], [0.0, -0.5, 1.5]]


def test_codes_without_a_lossless_step_take_num_bits_each(tmp_path):
    path, written = lossy(tmp_path, lambda s, x: Encoded(s, "quantized", x, quantized=quantized(x, 4, 128)), {"w": torch.randn(256, 512)})
    with open_packed(path) as reader:
        assert 256 * 512 // 2 + 256 * 4 * 4 <= reader.stored_bytes("w") < 256 * 512 // 2 + 256 * 4 * 4 + 150


def test_fp8_codes_and_transposed_codes_come_back(tmp_path):
    def encode(spec: TensorSpec, x: torch.Tensor) -> Encoded:
        scale = torch.rand(x.shape[1], 1).add(0.1).bfloat16()
        codes = (x.T.float() / scale.float()).to(torch.float8_e4m3fn).contiguous()
        q = Quantized(codes, scale, None, x.shape[0], params(8, type="float"), transposed=True)
        return Encoded(spec, "quantized", dequantize(codes, scale, None, x.shape[0]).T.contiguous().to(x.dtype), quantized=q)

    path, written = lossy(tmp_path, encode, {"conv1d": torch.randn(48, 20)})
    with open_packed(path) as reader:
        assert torch.equal(reader.read("conv1d"), written["conv1d"].dense)


def codebook(shape: tuple[int, int], num_bits: int, size: int, count: int, group_size: int, transposed: bool = False) -> Codebook:
    """Codes of a skewed distribution and any levels, one of them 0."""
    codes = torch.randn(shape).abs().mul(size / 4).clamp(max=size - 1).to(torch.uint8)
    levels = torch.randn(count, size).half()
    levels[:, 0] = 0
    return Codebook(codes, levels.sort(-1).values, group_size, num_bits, params(max(2, num_bits)), transposed)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_codebooks_come_back(tmp_path_factory, data):
    rows, columns, num_bits = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 40)), data.draw(st.integers(1, 8))
    transposed, group_size = data.draw(st.booleans()), data.draw(st.integers(1, 41))
    count = data.draw(st.sampled_from([1, rows * max(1, -(-columns // group_size))]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    q = codebook((rows, columns), num_bits, data.draw(st.integers(1, 1 << num_bits)), count, group_size, transposed)
    if data.draw(st.booleans()):
        q = replace(q, levels=q.levels.float().mul(1.1))
    w = q.dequantize().to(dtype)
    w = (w.T if transposed else w.reshape(rows, columns, 1, 1)).contiguous()
    work = tmp_path_factory.mktemp("codebook")
    path, _ = lossy(work, lambda spec, x: Encoded(spec, "quantized", x, quantized=q), {"w": w})
    with open_packed(path) as reader:
        assert torch.equal(reader.read("w"), w) and reader.read("w").dtype == dtype
    restore_packed(path, work / "out", quiet)
    with safe_open(work / "out" / "model.safetensors", "pt") as f:
        assert torch.equal(f.get_tensor("w"), w)


def test_a_zero_that_moves_from_row_to_row_costs_no_bits(tmp_path):
    """Sorted levels have their 0 at another code in every row; in the file it is at the same."""
    torch.manual_seed(2)
    levels = torch.randn(40, 16).half().sort(-1).values
    zero = levels.abs().argmin(1, keepdim=True)
    levels.scatter_(1, zero, 0)
    kept = torch.rand(40, 500) < 0.1
    codes = torch.where(kept, torch.randint(0, 16, (40, 500)), zero).to(torch.uint8)
    assert len(zero.unique()) > 2
    q = Codebook(codes, levels, 500, 4, params(4))
    path, _ = lossy(tmp_path, lambda spec, x: Encoded(spec, "quantized", x, mask=kept, quantized=q), {"w": q.dequantize()})
    with open_packed(path) as reader:
        assert torch.equal(reader.read("w"), q.dequantize())
        assert reader.index.tensors[0].quantized.sections[0] * 8 / codes.numel() < 0.1 * 4 + 0.47 + 0.06


def test_codes_of_codebooks_are_entropy_coded(tmp_path):
    torch.manual_seed(0)
    q = codebook((300, 400), 4, 16, 300, 400)
    path, _ = lossy(tmp_path, lambda spec, x: Encoded(spec, "quantized", x, quantized=q), {"w": q.dequantize()})
    share = torch.bincount(q.codes.reshape(-1).int(), minlength=16).double() / q.codes.numel()
    entropy = -(share * share.log2().nan_to_num(neginf=0)).sum().item()
    with open_packed(path) as reader:
        codes, levels = reader.index.tensors[0].quantized.sections
        assert levels < 300 * 16 * 2 + 100
        assert codes * 8 / q.codes.numel() < 1.02 * entropy + 0.03


@pytest.mark.slow
def test_levels_in_abundance_are_no_bomb(tmp_path):
    """A codebook of 256 levels for every value would restore to a thousandfold of what the file claims to hold."""
    q = Codebook(torch.zeros(1200, 1000, dtype=torch.uint8), torch.zeros(1200 * 1000, 256).half(), 1, 8, params(8))
    path, _ = lossy(tmp_path, lambda spec, x: Encoded(spec, "quantized", x, quantized=q), {"w": torch.zeros(1200, 1000)})
    assert path.stat().st_size > 1200 * 1000 * 512 // 100
    with open_packed(path) as reader:
        assert not reader.read("w").any()


@pytest.mark.parametrize("signed, sparsity, ratio", [(False, 0.5, 2.7), (False, 0.9, 11), (True, 0.5, 2.4), (True, 0.9, 7)])
def test_pruned_tensors_are_small_and_exact(tmp_path, signed, sparsity, ratio):
    """`signed`: pruned by a product with the mask, which leaves negative zeros."""
    torch.manual_seed(0)
    w = torch.randn(800, 700).mul(0.02)
    keep = w.abs() > w.abs().flatten().kthvalue(int(sparsity * w.numel())).values
    dense = (w * keep if signed else torch.where(keep, w, 0)).bfloat16()
    path, _ = lossy(tmp_path, lambda s, x: Encoded(s, "pruned", x, mask=keep), {"w": dense})
    with open_packed(path) as reader:
        assert torch.equal(reader.read("w").view(torch.int16), dense.view(torch.int16))
        assert dense.nbytes / reader.stored_bytes("w") > ratio


def test_a_torch_checkpoint_restores_as_safetensors_with_its_ties(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    w = torch.randn(20, 30)
    torch.save({"emb": w, "head": w, "flag": torch.tensor([True, False, True]), "b": torch.zeros(3).double()}, source / "pytorch_model.bin")
    (tmp_path / "scratch").mkdir()
    checkpoint: Checkpoint = open_checkpoint(source, tmp_path / "scratch")
    writer = PackedWriter(tmp_path / PACKED_NAME, checkpoint)
    for name, spec in checkpoint.tensors.items():
        writer.write(Encoded(spec, "copied", checkpoint.read(name), reason="no step matches it"))
    writer.finish()
    with open_packed(tmp_path / PACKED_NAME) as reader:
        assert sorted(reader.names) == ["b", "emb", "flag", "head"] and 0 in (reader.stored_bytes("emb"), reader.stored_bytes("head"))
    restore_packed(tmp_path / PACKED_NAME, tmp_path / "out", quiet)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as f:
        assert torch.equal(f.get_tensor("head"), w) and torch.equal(f.get_tensor("emb"), w)
        assert f.get_tensor("flag").tolist() == [True, False, True] and f.get_tensor("b").dtype == torch.float64


def test_shards_and_their_index_are_restored_under_their_names(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: torch.randn(8, 8)}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    (tmp_path / "scratch").mkdir()
    checkpoint = open_checkpoint(source, tmp_path / "scratch")
    writer = PackedWriter(tmp_path / PACKED_NAME, checkpoint)
    for name, spec in checkpoint.tensors.items():
        writer.write(Encoded(spec, "encoded", checkpoint.read(name), lossless=True))
    writer.finish()
    restore_packed(tmp_path / PACKED_NAME, tmp_path / "out", quiet)
    assert sorted(tree(tmp_path / "out")) == sorted([*names.values(), "model.safetensors.index.json"])
    assert json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text()) == {"metadata": {"total_size": 512}, "weight_map": names}


def _folder(work: Path) -> Path:
    (work / "artifact").mkdir()
    shutil.copy(work / PACKED_NAME, work / "artifact")
    return work / "artifact"


def test_a_packed_file_is_an_input(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"w": torch.randn(30, 30)}, tmp_path / "in" / "m.safetensors")
    packed(tmp_path / "in", tmp_path)
    (tmp_path / "again").mkdir()
    checkpoint = open_checkpoint(_folder(tmp_path), tmp_path / "again")
    assert checkpoint.container == "packed" and list(checkpoint.tensors) == ["w"]
    assert checkpoint.files["m.safetensors"].read_bytes() == (tmp_path / "in" / "m.safetensors").read_bytes()
