"""Programs of torch.export: what is read of them, what is refused, and that nothing of a hostile one runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from program_attacks import WEIGHTS, attacks, silent
from programs import GOLDEN, MODULES, edited, exported, members, nodes, zipped

from app.errors import InputRefused
from app.limits import Limits
from worker.formats import open_checkpoint
from worker.formats.pt2_file import Pt2File

RAW = """
import sys, torch, warnings, logging
warnings.simplefilter("ignore"); logging.disable(50)
from pathlib import Path
sys.path[:0] = {paths!r}
from program_attacks import attacks, silent
canary = Path({canary!r})
for name, data in (attacks(str(canary)) | silent(str(canary))).items():
    if name in {names!r}:
        path = canary.with_name("a.pt2"); path.write_bytes(data)
        try:
            torch.export.load(path).module()(torch.zeros(2, 6))
        except BaseException:
            pass
        if canary.exists():
            print(name, flush=True); canary.unlink()
"""
LIVE = ("samples", "expression", "expression of a keyword", "pickled weight", "weights of old", "weights of old beside new", "opaque constant", "name of an input")
NAMES = tuple(attacks("x"))


def opened(tmp_path: Path, data: bytes) -> Pt2File:
    path = tmp_path / "program.pt2"
    path.write_bytes(data)
    return Pt2File(path, path.name)


@pytest.mark.parametrize("name", ["mlp", *MODULES])
def test_weights_are_those_of_the_state_dict(tmp_path, name):
    file = opened(tmp_path, exported(name))
    expected = torch.export.load(tmp_path / "program.pt2")
    assert {*file.tensors, *file.aliases} == set(expected.state_dict)
    for key, value in expected.state_dict.items():
        assert torch.equal(file.load(file.aliases.get(key, key)), value) and file.specs[file.aliases.get(key, key)].shape == tuple(value.shape)
    assert set(file.lifted) == set(expected.constants)
    assert [s.nbytes for s in file.segments] == [r.nbytes for n, r in sorted(file.records.items(), key=lambda r: r[1].offset)]


def test_ties_and_constants(tmp_path):
    file = opened(tmp_path, exported("convolution"))
    assert file.aliases == {"tied.weight": "l.weight", "tied.bias": "l.bias"} and set(file.lifted) == {"k"}
    assert [d.name for d in file.dropped if d.kept_in] == ["models/model.json", "constant k"]


def test_what_tells_about_its_maker_is_named(tmp_path):
    found = {d.name for d in opened(tmp_path, GOLDEN.read_bytes()).dropped if d.kept_in is None}
    assert found == {"models/model.json: stack traces", "models/model.json: names of modules and classes", "models/model.json: names of functions", "data/sample_inputs/model.pt"}


def test_a_checkpoint_of_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/m.pt2").write_bytes(GOLDEN.read_bytes())
    checkpoint = open_checkpoint(tmp_path / "in", tmp_path)
    assert checkpoint.container == "pt2" and checkpoint.weight_files == ("m.pt2",) and set(checkpoint.tensors) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "mean"}
    at = checkpoint.offsets["fc1.weight"]
    assert GOLDEN.read_bytes()[at : at + 120] == checkpoint.read("fc1.weight").numpy().tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_attacks_are_refused(tmp_path, name):
    canary = tmp_path / "canary"
    with pytest.raises(InputRefused) as refusal:
        opened(tmp_path, attacks(str(canary))[name])
    assert not canary.exists() and len(refusal.value.detail) < 1000
    assert refusal.value.type in ("unsafe-pt2", "invalid-pt2", "unsafe-archive", "format-not-allowed", "invalid-tensor", "limit-depth", "limit-materialised", "unsupported-format")


@pytest.mark.parametrize("name", silent("x"))
def test_what_is_left_out_does_no_harm(tmp_path, name):
    canary = tmp_path / "canary"
    file = opened(tmp_path, silent(str(canary))[name])
    assert str(canary) not in json.dumps([file.program.document, file.configs]) and not canary.exists()


@pytest.mark.slow
def test_the_attacks_are_real(tmp_path):
    """What torch itself does with them: each of these leaves its canary, so that their refusal says something."""
    code = RAW.format(paths=sys.path, canary=str(tmp_path / "canary"), names=LIVE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert set(LIVE) <= set(done.stdout.splitlines()), done.stdout + done.stderr[-2000:]


def test_a_refusal_says_where(tmp_path):
    data = edited(GOLDEN.read_bytes(), lambda d: nodes(d)[2].update(target="torch.ops.aten.from_file.default"))
    with pytest.raises(InputRefused) as refusal:
        opened(tmp_path, data)
    assert "from_file" in refusal.value.detail and "/graph_module/graph/nodes/2/target" in refusal.value.detail


def test_bounds(tmp_path):
    with pytest.raises(InputRefused) as refusal:
        path = tmp_path / "m.pt2"
        path.write_bytes(GOLDEN.read_bytes())
        Pt2File(path, "m.pt2", Limits(program_bytes=1000))
    assert refusal.value.type == "limit-header"


@pytest.mark.parametrize("cut", [0, 10, 5000, 12000])
def test_truncated(tmp_path, cut):
    with pytest.raises(InputRefused):
        opened(tmp_path, GOLDEN.read_bytes()[:cut])


def test_a_flipped_byte_is_noticed(tmp_path):
    data = bytearray(GOLDEN.read_bytes())
    data[70] ^= 1  # of the first weight
    with pytest.raises(InputRefused) as refusal:
        opened(tmp_path, bytes(data))
    assert refusal.value.type == "unsafe-archive"


def test_schemas_since_2_11(tmp_path):
    """8.17 to 8.20 differ in members that are optional: kinds of arguments, a node's name."""

    def older(document: dict) -> None:
        document["schema_version"]["minor"], document["torch_version"] = 17, "2.11.0"
        for node in nodes(document):
            node.pop("name")
            node.pop("is_hop_single_tensor_return")

    data = edited(GOLDEN.read_bytes(), older)
    file = opened(tmp_path, data)
    assert file.program.document["torch_version"] == "2.11.0"


def test_no_weights(tmp_path):
    root, found = members(GOLDEN.read_bytes())
    document = json.loads(found["models/model.json"])
    document["graph_module"]["signature"]["input_specs"] = [i for i in document["graph_module"]["signature"]["input_specs"] if "user_input" in i]
    with pytest.raises(InputRefused) as refusal:
        opened(tmp_path, zipped(root, found | {"models/model.json": json.dumps(document).encode(), WEIGHTS: b'{"config": {}}'}))
    assert refusal.value.type == "no-tensors"
