from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.errors import InputRefused
from worker.formats import open_checkpoint
from worker.formats.packed import PACKED_NAME, pack_files
from worker.restore import restore


def quiet(nbytes: int) -> None:
    pass


@pytest.fixture
def artifact(tmp_path) -> Path:
    """The folder of a lossless result, `in` beside it being what was packed."""
    for folder in ("in", "scratch", "artifact"):
        (tmp_path / folder).mkdir()
    save_file({"w": torch.randn(40, 30)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "in", tmp_path / "scratch")
    pack_files(checkpoint, tmp_path / "artifact" / PACKED_NAME, lambda name: True, quiet)
    return tmp_path / "artifact"


def test_a_packed_artifact_gives_its_files(artifact, tmp_path):
    told = []
    outcome = restore(artifact, tmp_path / "scratch", tmp_path / "out", told.append)
    assert outcome["format"] == "packed" and outcome["kind"] == "files" and set(outcome["files"]) == {"config.json", "model.safetensors"}
    for path in (tmp_path / "in").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert sum(told) == sum(p.stat().st_size for p in (tmp_path / "in").iterdir())


def test_two_packed_files_are_one_too_many(artifact, tmp_path):
    shutil.copy(artifact / PACKED_NAME, artifact / "other.safetensors")
    with pytest.raises(InputRefused, match="one by one"):
        restore(artifact, tmp_path / "scratch", tmp_path / "out", quiet)


@pytest.mark.parametrize("config", [None, "{}", "[]", "{", json.dumps({"quantization_config": {"quant_method": "gptq"}})])
def test_what_is_no_result_of_ours_is_refused_by_name(tmp_path, config):
    (tmp_path / "in").mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "in" / "m.safetensors")
    if config is not None:
        (tmp_path / "in" / "config.json").write_text(config)
    with pytest.raises(InputRefused, match="a packed file or a compressed-tensors folder, not .*m.safetensors") as e:
        restore(tmp_path / "in", tmp_path / "scratch", tmp_path / "out", quiet)
    assert e.value.type == "unsupported-format"
