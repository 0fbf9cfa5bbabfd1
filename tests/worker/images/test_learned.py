"""A codec is trained, measured, used and its images come back, by the program that users run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import InputRefused, InvalidJobSpec
from app.job_spec import parse_job
from worker.__main__ import main
from worker.images.learned import fitting, index
from worker.images.learned.codec import decode, encode
from worker.images.learned.held_out import split, unseen
from worker.images.learned.model import Model, dumped, loaded
from worker.images.learned.network import improved
from worker.images.picture import Picture
from worker.images.transform.basis import dct
from worker.images.transform.coding import Damaged
from worker.kernels.integer_convolution import convolved

ROOT = Path(__file__).parents[3]
ANY, OTHER = "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"


def scene(i: int, height: int = 48, width: int = 56) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / (9.0 + i)
    return np.clip(np.stack([np.sin(x + y + i), np.sign(np.cos(x * 2)), np.sin(x - 2 * y)], -1) * 90 + 128, 0, 255).astype(np.uint8)


def network_of(channels: int = 3, width: int = 4, depth: int = 3) -> tuple:
    torch.manual_seed(0)
    network = fitting.Network(channels, width, depth)
    with torch.no_grad():
        network.layers[-1].weight *= 20
    return network, Model(dct(channels), False, 40, network.integers())


def run(source: Path, out: Path, recipe: dict, *options: str) -> dict:
    path = out.with_suffix(".recipe")
    path.write_text(json.dumps({"steps": [recipe]}))
    assert main([str(source), str(out), "--kind", "images", "--recipe", str(path), *options]) == 0
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path, dict]:
    root = tmp_path_factory.mktemp("codec")
    (root / "set").mkdir()
    for i in range(3):
        Image.fromarray(scene(i)).save(root / "set" / f"{i}.png")
    (root / "set" / "a.txt").write_text("x")
    return root / "set", root / "codec", run(root / "set", root / "codec", {"method": "train_codec", "minutes": 0.01, "lambda": 0.02})


@pytest.mark.slow
def test_a_codec_is_trained_measured_and_used(trained, tmp_path):
    source, codec, report = trained
    told = report["training"]
    assert told["model_bytes"] == (codec / "modelpress.codec").stat().st_size and told["curve"] and told["steps"] > 0
    assert [r["action"] for r in report["rows"]].count("held out") == 1 and report["rows"][-1]["name"] == "a.txt"
    tested = run(source, tmp_path / "test", {"method": "test_codec"}, "--codec", str(codec))
    held_out = [r["name"] for r in report["rows"] if r["action"] == "held out"]
    assert [r["name"] for r in tested["rows"] if r["action"] == "measured"] == held_out
    assert tested["test"]["model_bytes"] == told["model_bytes"] and tested["test"]["verdict"] in tested["notes"]
    assert json.loads((tmp_path / "test" / "figures.json").read_text()) == tested["test"]
    used = run(source, tmp_path / "used", {"method": "image", "candidates": ["learned"], "target": {"psnr": 24}, "effort": "fast"}, "--codec", str(codec))
    assert used["totals"]["codecs"] == {"learned": 3} and (tmp_path / "used" / "modelpress.codec").read_bytes() == (codec / "modelpress.codec").read_bytes()
    tries = used["rows"][0]["tried"]
    best = min(t["bytes"] for t in tries if t["meets"])
    assert best == sum(r["bytes_after"] for r in used["rows"] if r["action"] == "coded") + told["model_bytes"]  # its file counts, once
    back = run(tmp_path / "used", tmp_path / "back", {"method": "restore"})
    assert back["load_proof"]["restored"]["other_pixels_than_at_the_coder"] == 0
    assert sorted(p.name for p in (tmp_path / "back").glob("*.png")) == ["0.png", "1.png", "2.png"]


def test_another_process_with_other_threads_decodes_the_same(tmp_path):
    _, model = network_of()
    data = encode(scene(1, 71, 90), 40, model)
    (tmp_path / "model").write_bytes(dumped(model))
    (tmp_path / "x.mpn").write_bytes(data)
    code = (
        "import hashlib, sys; from pathlib import Path; from worker.images.learned.codec import decode; from worker.images.learned.model import loaded\n"
        "d = Path(sys.argv[1]); print(hashlib.sha256(decode((d / 'x.mpn').read_bytes(), loaded((d / 'model').read_bytes()))).hexdigest())"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env={"OPENBLAS_NUM_THREADS": "2", "PATH": ""}, check=True)
    assert told.stdout.strip() == hashlib.sha256(decode(data, model)).hexdigest()


def test_integers_do_what_was_trained():
    network, model = network_of()
    decoded = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(decoded.astype(np.float32)).permute(2, 0, 1)[None] - 128
        wanted = (x + network(x, torch.tensor([40.0])) + 128).clamp(0, 255)[0].permute(1, 2, 0).numpy()
    found = improved(model.layers, decoded, 40)
    assert np.abs(found - wanted).max() < 1 and np.abs(found.astype(int) - decoded).max() > 3
    assert improved(model.layers, decoded[:7, :9], 40).shape == (7, 9, 3)


def test_convolutions_are_exact():
    draw = np.random.default_rng(1)
    x, w, b = draw.integers(-65535, 65536, (5, 6, 7)), draw.integers(-127, 128, (4, 5, 3, 3)).astype(np.int8), draw.integers(-(2**30), 2**30, 4).astype(np.int32)
    wanted = np.zeros((4, 6, 7), np.int64) + b[:, None, None]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    for dy in range(3):
        for dx in range(3):
            wanted += np.einsum("oi,ihw->ohw", w[:, :, dy, dx].astype(np.int64), padded[:, dy : dy + 6, dx : dx + 7])
    assert np.array_equal(convolved(x.astype(float), w, b, 5), (wanted + 16) >> 5)
    with pytest.raises(ValueError):
        convolved(np.full((1, 2, 2), 2.0**50), w[:, :1], b, 0)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_codecs_are_refused_or_work(data):
    whole = bytearray(dumped(network_of(1, 3, 2)[1]))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    try:
        model = loaded(bytes(whole[:cut]))
    except Damaged:
        return
    assert improved(model.layers, np.zeros((5, 4, model.channels), np.uint8), 9).dtype == np.uint8


@pytest.mark.slow
def test_a_strangers_codec_is_checked(trained, tmp_path):
    for change in ({"sha256": "0" * 64}, {"learned": [{"pixels": "x", "columns": 1}]}, {"format": "images"}, {"codec": "../x"}):
        document = json.loads((trained[1] / "modelpress.json").read_text()) | change
        (tmp_path / "modelpress.json").write_text(json.dumps(document))
        (tmp_path / "modelpress.codec").write_bytes((trained[1] / "modelpress.codec").read_bytes())
        with pytest.raises(InputRefused):
            index.read(tmp_path)


def test_a_training_goes_on_where_another_was(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "KEEP", 0.0)
    pairs = [(scene(0), scene(1), 40)]
    more = {"width": 4, "depth": 2, "seed": 1, "device": torch.device("cpu"), "state": tmp_path / "s.safetensors"}
    _, first = fitting.train(Model(dct(3), False, 40), pairs, pairs, 1.0, **more)
    (tmp_path / "s.safetensors").rename(tmp_path / "old.safetensors")
    _, second = fitting.train(Model(dct(3), False, 40), pairs, pairs, first.seconds + 0.3, **more, resume=tmp_path / "old.safetensors")
    assert second.steps > first.steps > 2 and second.curve[0] == first.curve[0] and second.seconds < first.seconds + 2
    assert min(p["loss"] for p in second.curve) < second.curve[0]["loss"]
    (tmp_path / "old.safetensors").write_bytes(b"half")
    _, third = fitting.train(Model(dct(3), False, 40), pairs, pairs, 0.05, **more, resume=tmp_path / "old.safetensors")
    assert third.steps > 0


def test_nothing_is_both_learned_from_and_measured():
    pictures = [Picture(f"{i}.png", b"", "PNG", 56, 48, scene(i % 5)) for i in range(6)]  # two are equal
    learned, held_out = split(pictures, 3)
    assert len(learned) == 4 and {p.digest for p in learned}.isdisjoint(p.digest for p in held_out)
    assert {p.digest for p in unseen(pictures, {p.digest: p.columns for p in learned})} == {p.digest for p in held_out}
    (left,), (right,) = split(pictures[:1], 3)
    assert left.columns == 40 and right.pixels.shape == (48, 16, 3) and np.array_equal(unseen(pictures[:1], {left.digest: 40})[0].pixels, right.pixels)


def test_a_step_names_its_codec():
    def job(step: dict, **more):
        return parse_job({"input": ANY, "recipe": {"steps": [step]}} | more, kind="images")

    step = {"method": "image", "candidates": ["jpeg", "learned"], "target": {"psnr": 30}}
    spec = job(step | {"codec": ANY})
    assert spec.codec == ANY and spec.recipe.steps[0].codec is None and spec.recipe.steps[0].per == "set"
    assert job({"method": "test_codec", "codec": ANY}).output.format == "figures" and job({"method": "train_codec"}).output.format == "codec"
    bad = ((step, {}, "/recipe/steps/0/codec"), (step | {"codec": ANY}, {"codec": OTHER}, "/recipe/steps/0/codec"), ({"method": "train_codec"}, {"codec": ANY}, "/codec"),
           (step | {"codec": ANY, "per": "image"}, {}, "/recipe/steps/0/per"), ({"method": "train_codec", "lambda": 0.0}, {}, "/recipe/steps/0/lambda"))  # fmt: skip
    for given_, more, pointer in bad:
        with pytest.raises(InvalidJobSpec) as refused:
            job(given_, **more)
        assert refused.value.pointer == pointer
    with pytest.raises(InvalidJobSpec) as refused:
        parse_job({"input": ANY, "preset": "int8", "codec": ANY})
    assert refused.value.pointer == "/codec"
