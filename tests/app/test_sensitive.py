"""Which files and which metadata a stripped result leaves out, and what it must not."""

from __future__ import annotations

import pytest

from app.sensitive import allowed_metadata, strips


def test_metadata_by_an_allow_list():
    assert all(map(allowed_metadata, ("format", "total_size", "license", "quantization_config", "modelspec.architecture")))
    assert not any(map(allowed_metadata, ("ss_training_comment", "author", "path", "modelspec.author", "formatted", "note")))


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
