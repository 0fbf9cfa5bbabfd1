"""What a stripped result leaves out, and what it must not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save
from uploads import upload

from app.sensitive import clean_metadata, strips
from worker.formats.sensitive import findings

TELLING = {
    "note": "made in /home/alice/models", "a": "C:\\Users\\bob", "b": "see alice@example.org", "c": "hf_" + "a" * 30, "d": "AKIA" + "A" * 16,
    "e": "s3://bucket/x",
    "f": "-----BEGIN RSA PRIVATE KEY-----", "author": "Alice", "user_name": "alice", "hostname": "node7", "api-key": "x", "g": "http://u:p@host/",
    "h": "10.0.0.7:8080",
}  # fmt: skip
HARMLESS = {
    "format": "pt", "total_size": "123", "bos_token": "<s>", "pad_token_id": "0", "max_tokens": "5", "note": '{"json": [1, NaN]}',
    "model": "meta-llama/Llama-3-8B", "version": "1.2.3.4",
    "license": "https://example.org/licence", "ratio": "1/2", "empty": "", "dtype": "torch.bfloat16", "tokenizer": "x", "activation": "silu",
    "home": "page",
}  # fmt: skip


@pytest.mark.parametrize("key", TELLING)
def test_telling_metadata(key):
    assert clean_metadata({key: TELLING[key], "format": "pt"}) == {"format": "pt"}


@pytest.mark.parametrize("key", HARMLESS)
def test_harmless_metadata(key):
    assert clean_metadata({key: HARMLESS[key]}) == {key: HARMLESS[key]}


@pytest.mark.parametrize(
    "path",
    [
        "training_args.bin",
        "x/optimizer.pt",
        "rng_state_0.pth",
        ".git/config",
        "runs/x",
        "events.out.tfevents.1.host",
        ".env",
        "id_rsa",
        "a.pem",
        "__MACOSX/a",
        "._x",
        ".DS_Store",
    ],
)
def test_side_files_are_left_out(path):
    assert strips(path)


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "git.md",
        "README.md",
        "optimizer.md",
        "1_Pooling/config.json",
        ".gitattributes",
        "environment.yml",
    ],
)
def test_what_a_model_needs_stays(path):
    assert not strips(path)


def test_findings_say_where_and_never_what_stood_there(tmp_path):
    config = {"_name_or_path": "/home/alice/secret", "hidden_size": 4, "nested": [{"contact": "alice@example.org"}]}
    data = save({"w": torch.ones(1)}, {"path": "/root/secret", "format": "pt"})
    found = findings(upload(tmp_path, {"config.json": json.dumps(config).encode(), "model.safetensors": data, "trainer_state.json": b"{}"}))
    assert {f["where"] for f in found} == {
        "trainer_state.json",
        "model.safetensors: __metadata__ 'path'",
        "config.json: '_name_or_path'",
        "config.json: 'nested.0.contact'",
    }
    assert "secret" not in json.dumps(found) and "alice" not in json.dumps(found)
