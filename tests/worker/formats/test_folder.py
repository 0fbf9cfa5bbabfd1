"""Model folders: one weight file or many, an index that must agree, and everything else judged and kept."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save
from uploads import checkpoint_of, payload, refused, saved, upload

from worker.private.model import look

A, B = torch.arange(6.0).reshape(2, 3), torch.ones(4).bfloat16()
CONFIG = {"config.json": b'{"model_type": "x"}'}
WHOLE = CONFIG | {"model.safetensors": save({"a": A, "b": B})}
SHARDS = CONFIG | {"model-1.safetensors": save({"a": A}), "model-2.safetensors": save({"b": B})}


def index(**weight_map) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


INDEX = {"model.safetensors.index.json": index(a="model-1.safetensors", b="model-2.safetensors")}


def holds(c):
    return torch.equal(c.read("a"), A) and torch.equal(c.read("b"), B) and c.tensors.keys() == {"a", "b"} and c.config == {"model_type": "x"}


@pytest.mark.parametrize("files", [WHOLE, SHARDS, SHARDS | INDEX, CONFIG | {"pytorch_model.bin": saved({"a": A, "b": B})}])
def test_one_or_many_files(tmp_path, files):
    c = upload(tmp_path, files)
    assert holds(c) and c.files.keys() == files.keys() and list(c.files) == sorted(c.files)


def test_shards_of_pickles(tmp_path):
    names = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    files = CONFIG | {names["a"]: saved({"a": A}), names["b"]: saved({"b": B}), "pytorch_model.bin.index.json": index(**names)}
    assert holds(upload(tmp_path, files))


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "model-1.safetensors"}, {"a": "model-1.safetensors", "b": "model-1.safetensors"},
        {"a": "model-1.safetensors", "b": "model-3.safetensors"},
        {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"},
        {"a": "model-1.safetensors", "b": "../in/model-2.safetensors"}, {"a": 1}, {},
    ],
)  # fmt: skip
def test_an_index_that_does_not_agree(tmp_path, weight_map):
    files = SHARDS | {"model.safetensors.index.json": index(**weight_map)}
    if weight_map == {"a": "model-1.safetensors"}:  # a file that the index leaves out is kept; a tensor that it leaves out is not
        files["model-1.safetensors"] = save({"a": A, "c": B})
    assert refused(tmp_path, files) == "invalid-hf"


def test_safetensors_win_over_the_same_weights_in_a_bin(tmp_path):
    c = upload(tmp_path, WHOLE | {"pytorch_model.bin": saved({"a": A, "b": B})})
    assert holds(c) and c.weight_files == ("model.safetensors",) and "pytorch_model.bin" in c.notes[0]


def test_a_variant_of_the_weights_is_kept_as_it_is(tmp_path):
    assert holds(upload(tmp_path, WHOLE | {"model.fp16.safetensors": save({"a": A.half(), "b": B})}))


def test_two_sets_of_weights_are_refused(tmp_path):
    assert refused(tmp_path, CONFIG | {"x.safetensors": save({"a": A}), "y.safetensors": save({"a": A})}) == "invalid-hf"


def test_weights_of_a_part_are_kept_as_they_are(tmp_path):
    c = upload(tmp_path, WHOLE | {"2_Dense/model.safetensors": save({"w": A}), "2_Dense/config.json": b"{}"})
    assert holds(c) and "2_Dense/model.safetensors" in c.notes[0]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sub/other.pt", "training_args.bin", "optimizer.pt", "x.pkl", "x.dat"])
@pytest.mark.parametrize("wrap", [lambda p: p, checkpoint_of], ids=["plain", "zip"])
def test_one_hostile_pickle_refuses_the_whole_folder(tmp_path, name, wrap):
    if wrap is checkpoint_of and name == "x.dat":
        return  # a zip under a name that nobody unpickles
    canary = tmp_path / "in" / "canary"
    assert refused(tmp_path, WHOLE | {name: wrap(payload(canary))}) == "unsafe-pickle"
    assert not canary.exists()


def test_a_pickle_without_a_header_is_one_too(tmp_path):
    assert refused(tmp_path, WHOLE | {"pytorch_model.bin": b"cos\nsystem\n(S'x'\ntR."}) == "unsafe-pickle"
    assert refused(tmp_path, WHOLE | {"pytorch_model.bin": b"I0x10\n0cos\nsystem\n(S'x'\ntR."}) == "unsafe-pickle"


def test_what_training_leaves_behind_is_kept_and_reported(tmp_path):
    arguments = b"\x80\x02ctransformers.training_args\nTrainingArguments\nq\x00)\x81}X\x0a\x00\x00\x00output_dirX\x09\x00\x00\x00/home/bobsb."
    side = {
        "training_args.bin": checkpoint_of(arguments),
        "optimizer.pt": saved({"state": {0: A}}),
        "rng_state.pth": saved({"cpu": torch.get_rng_state()}),
        "trainer_state.json": b"{}",
    }
    c = upload(tmp_path, WHOLE | side | {"openvino_model.bin": A.numpy().tobytes(), "vocab.pt": saved({"x": 1})})
    assert holds(c) and side.keys() <= {f["where"] for f in look(c, tmp_path, tmp_path / "scratch").findings} and len(c.notes) == 2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b"\xff{}", "invalid-hf"),
        (b"[]", "invalid-hf"),
        (b'{"a": 1, "a": 2}', "invalid-hf"),
        (b"{", "invalid-hf"),
        (b'{"a":' + b"9" * 5000 + b"}", "invalid-hf"),
        (b'{"a":' * 99 + b"1" + b"}" * 99, "limit-depth"),
        (b" " * (5 << 20), "limit-header"),
    ],
)
def test_configs_are_bounded(tmp_path, config, reason):
    assert refused(tmp_path, WHOLE | {"config.json": config}) == reason


def test_infinity_in_a_config_is_taken_as_transformers_writes_it(tmp_path):
    assert upload(tmp_path, WHOLE | {"config.json": b'{"limit": Infinity}'}).config["limit"] > 1e308


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.txt": b"", "b.txt": b""}, "no-tensors"), (CONFIG, "unsupported-format"), ({"m.pt": pickle.dumps(1, 2)}, "format-not-allowed"),
        (WHOLE | {"x.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}, "lfs-pointer"),
        (WHOLE | {"x.safetensors": b"junk"}, "invalid-safetensors"),
        (CONFIG | {"m.safetensors": save({})}, "no-tensors"), (WHOLE | {"a.pt": b"junk"}, "invalid-torch"),
        (WHOLE | {"old.bin": pickle.dumps(1, 2)}, "format-not-allowed"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, files, reason):
    assert refused(tmp_path, files) == reason


def test_an_unaligned_header_and_an_empty_tensor(tmp_path):
    data = save({"a": A, "e": torch.empty(0, 7)})
    n = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + n].rstrip(b" ")
    header += b" " * (3 - len(header) % 8 + 8)  # data start at an odd byte
    c = upload(tmp_path, {"m.safetensors": len(header).to_bytes(8, "little") + header + data[8 + n :]})
    assert torch.equal(c.read("a"), A) and c.read("e").shape == (0, 7)
    (segment,) = c.segments["m.safetensors"]
    assert segment.offset % 4 and segment.tensors == ("a",)
