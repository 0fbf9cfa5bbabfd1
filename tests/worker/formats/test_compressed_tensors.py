"""What transformers loads, held against the public package bit for bit, and restored again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from app.compressed import words
from worker import pipeline
from worker.formats.compressed_tensors import pack_rows, unpack_rows

PRESETS = {
    "w4": {"num_bits": 4, "group_size": 32, "scale_search": "mse"},
    "w4 absmax": {"num_bits": 4, "group_size": 32},
    "w3": {"num_bits": 3, "group_size": 16},
    "w8": {"num_bits": 8},
    "w8 tensor": {"num_bits": 8, "strategy": "tensor"},
    "int8": {"num_bits": 8, "activations": "dynamic"},
    "fp8": {"num_bits": 8, "type": "float", "activations": "dynamic"},
}


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (0, 5)])
def test_nothing_is_packed_to_nothing(shape):
    packed = pack_rows(torch.zeros(shape, dtype=torch.int8), 4)
    assert packed.shape == (shape[0], words(shape[1], 4)) and unpack_rows(packed, 4, shape[1]).shape == shape


def test_the_packing_of_the_reference():
    codes = torch.tensor([[-8, -7, -6, -5, 0, 1, 2, 7]], dtype=torch.int8)
    assert pack_rows(codes, 4).view(torch.uint8).numpy().tobytes() == (0xFA983210).to_bytes(4, "little")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_packing_against_the_public_package(num_bits, rows, columns, seed):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    half = 1 << (num_bits - 1)
    codes = torch.from_numpy(np.random.default_rng(seed).integers(-half, half, (rows, columns)).astype(np.int8))
    packed = pack_rows(codes, num_bits)
    assert packed.shape == (rows, words(columns, num_bits))
    assert torch.equal(packed, pack_to_int32(codes, num_bits))
    assert torch.equal(unpack_rows(packed, num_bits, columns), codes)
    assert torch.equal(unpack_from_int32(packed, num_bits, torch.Size(codes.shape)), codes)


def tiny(kind: str, folder: Path, dtype=torch.float32) -> Path:
    """A small random model of a real architecture, as transformers saves it."""
    import transformers as t

    torch.manual_seed(0)
    common = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
    model = {
        "bert": lambda: t.BertModel(t.BertConfig(**common)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=False)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**common, num_key_value_heads=2, tie_word_embeddings=True)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**common, num_key_value_heads=2)),
    }[kind]()
    model.to(dtype).save_pretrained(folder)
    return folder


def compress(source: Path, out: Path, output: str = "compressed-tensors", **fields) -> dict:
    spec = {"recipe": {"steps": [{"method": "quantize"} | fields]}, "output": {"format": output}, "gates": {}, "sanitize": "strip"}
    pipeline.run(source, out, spec, lambda event: None)
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("kind", ["bert", "llama", *(pytest.param(k, marks=pytest.mark.slow) for k in ("qwen2", "mistral"))])
@pytest.mark.parametrize("preset", PRESETS)
def test_transformers_loads_the_values_that_we_report(kind, preset, tmp_path):
    import transformers as t

    dtype = torch.bfloat16 if kind == "mistral" else torch.float32
    source = tiny(kind, tmp_path / "model", dtype)
    report = compress(source, tmp_path / "out", **PRESETS[preset])
    assert sum(r["action"] == "quantized" for r in report["tensors"]) >= 12
    cls = t.AutoModel if kind == "bert" else t.AutoModelForCausalLM
    model, info = cls.from_pretrained(tmp_path / "out" / "files", output_loading_info=True, quantization_config=t.CompressedTensorsConfig(run_compressed=False))
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    restored = tmp_path / "restored"
    pipeline.run(tmp_path / "out" / "files", restored, {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}, lambda e: None)
    ours, original = load_file(restored / "files" / "model.safetensors"), load_file(source / "model.safetensors")
    assert ours.keys() == original.keys()
    theirs = model.state_dict()
    for name, w in ours.items():
        assert w.dtype == original[name].dtype and w.shape == original[name].shape
        assert torch.equal(theirs[name], w), name
    assert json.loads((restored / "files" / "config.json").read_text()) == json.loads((source / "config.json").read_text())


@pytest.mark.parametrize("preset", ["w4 absmax", "w8", "fp8"])
def test_absmax_codes_are_those_of_the_public_package(preset, tmp_path):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    source = tiny("llama", tmp_path / "model")
    fields = PRESETS[preset]
    compress(source, tmp_path / "out", **fields)
    got, original = load_file(tmp_path / "out" / "files" / "model.safetensors"), load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    w, size = original[name], fields.get("group_size")
    grouped = w.reshape(w.shape[0], -1, size) if size else w[:, None, :]
    args = QuantizationArgs(num_bits=fields["num_bits"], type=fields.get("type", "int"), symmetric=True, strategy="group" if size else "channel", group_size=size)
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    assert torch.equal(got[f"{name}_scale"], scale)
    codes = quantize(w, scale, zero, args, dtype=args.pytorch_dtype())
    ours = got[name] if name in got else unpack_rows(got[f"{name}_packed"], fields["num_bits"], w.shape[1])
    assert torch.equal(ours.float(), codes.float())


def test_a_mixed_folder_names_its_schemes(tmp_path):
    import transformers as t

    source = tiny("llama", tmp_path / "model")  # 64 and 96 inputs: 64 does not divide 96
    report = compress(source, tmp_path / "out", num_bits=4, group_size=64)
    config = json.loads((tmp_path / "out" / "files" / "config.json").read_text())["quantization_config"]
    assert {g["weights"]["strategy"] for g in config["config_groups"].values()} == {"group", "channel"} and config["ignore"] == ["lm_head"]
    assert any("does not divide the 96 inputs" in n for r in report["tensors"] for n in r.get("notes", []))
    _, info = t.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "files", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("preset", ["w4", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_other_dtypes_come_back_as_they_were(preset, dtype, tmp_path):
    source = tiny("llama", tmp_path / "model", dtype)
    compress(source, tmp_path / "out", **PRESETS[preset])
    pipeline.run(tmp_path / "out" / "files", tmp_path / "back", {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}, lambda e: None)
    got, original = load_file(tmp_path / "back" / "files" / "model.safetensors"), load_file(source / "model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in got.items()} == {n: (t.dtype, t.shape) for n, t in original.items()}


def test_a_tied_head_gets_no_scales(tmp_path):
    import transformers as t

    from worker.proof import load

    small = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 300}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    t.WhisperForConditionalGeneration(t.WhisperConfig(**small, **tokens)).save_pretrained(tmp_path / "model")
    report = compress(tmp_path / "model", tmp_path / "out", num_bits=8)
    proof = load(tmp_path / "out" / "files", {r["name"] for r in report["tensors"]})
    assert proof["loaded"] and proof["non_finite"] == []


def test_shards_and_their_index_survive(tmp_path):
    source = tiny("llama", tmp_path / "whole")
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text((source / "config.json").read_text())
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({n: tensors[n] for n in part}, model / file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: f for f, part in files.items() for n in part}}))
    for output in ("compressed-tensors", "safetensors"):
        compress(model, tmp_path / output, output, num_bits=8)
        out = tmp_path / output / "files"
        index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        assert set(index.values()) == set(files) and all(n in load_file(out / f) for n, f in index.items())


def test_hostile_folders_are_refused(tmp_path):
    from app.errors import InputRefused
    from worker.formats.compressed_restore import restore_compressed_tensors

    source = tiny("llama", tmp_path / "model")
    compress(source, tmp_path / "out", num_bits=4, group_size=32)
    folder = tmp_path / "out" / "files"
    good, config = load_file(folder / "model.safetensors"), (folder / "config.json").read_text()
    name = "model.layers.0.mlp.up_proj.weight"

    def attempt(tensors, text=config):
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(text)
        with pytest.raises(InputRefused):
            restore_compressed_tensors(folder, tmp_path / "restored", lambda n: None)

    attempt(good | {f"{name}_shape": torch.tensor([96, 1 << 40])})
    attempt(good | {f"{name}_shape": torch.tensor([-96, -64])})
    attempt(good | {f"{name}_scale": torch.ones(96, 3)})
    attempt(good | {f"{name}_scale": torch.ones(96, 0)})
    attempt({k: v for k, v in good.items() if k != f"{name}_shape"})
    attempt(good, config.replace('"num_bits": 4', '"num_bits": 400'))
    attempt(good, config.replace('"config_groups"', '"other_groups"'))
    attempt(good, "{" * 5000)
