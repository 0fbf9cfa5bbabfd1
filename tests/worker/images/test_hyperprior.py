"""An autoencoder with a hyperprior: its integers are what was trained, any process decodes the same pixels, and a training goes on where another was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import InputRefused, InvalidJobSpec
from app.job_spec import parse_job
from tests.worker.images.test_learned import run, scene
from worker.images.hyperprior import codec, coding, encoder, training
from worker.images.hyperprior.fixed import LEVELS, MIDDLE, ONE, PIXEL, step_of
from worker.images.hyperprior.integers import STRIP
from worker.images.hyperprior.model import Model, dumped, loaded
from worker.images.hyperprior.network import Network, Shape
from worker.images.hyperprior.packing import packed
from worker.images.learned import index
from worker.images.learned import state as states
from worker.images.transform.coding import Damaged
from worker.kernels.similarity import ms_ssim

ROOT = Path(__file__).parents[3]
SMALL = Shape(3, (6, 8, 8), 10, 6)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(3)
    made = Network(SMALL)
    with torch.no_grad():
        made.last.weight *= 4
        made.hyper_synthesis[2].bias[SMALL.latents :] += 1
    return encoder.halved(made)


@pytest.fixture(scope="module")
def model(network) -> Model:
    return packed(network, [scene(0, 96, 130)])


def test_integers_do_what_was_trained(network, model):
    pixels = scene(1, 70, 90)
    for quality in (20, MIDDLE, 95):
        z, y, levels = codec.quantized(codec.analysed(pixels, network), quality, model)
        mean, found = model.decoder.expect(z, quality)
        with torch.no_grad():
            wanted, spread = network.expect(torch.from_numpy(z).float()[None])
            assert np.abs(mean / ONE - wanted[0].numpy()).max() < 0.02
            exact = 4 * (spread[0].numpy() + (quality - MIDDLE) / 16) + 16
            assert np.array_equal(found, levels) and np.abs(found - np.clip(np.rint(exact), 0, LEVELS - 1)).max() <= 1
            latents = y * step_of(quality) + mean
            floating = network.synthesize(torch.from_numpy(latents / ONE).float()[None], torch.tensor([float(quality)]))
        seen = (PIXEL * floating[0].permute(1, 2, 0).numpy() + 128).clip(0, 255)[:70, :90]
        decoded = codec.decode(codec.encode(pixels, quality, model, network), model)
        assert decoded.shape == pixels.shape and decoded.std() > 1 and np.abs(decoded - seen).max() < 0.75


def test_strips_are_the_same_as_all_at_once(model, monkeypatch):
    y = np.random.default_rng(0).integers(-20, 20, (SMALL.latents, 23, 5)) * ONE
    assert y.shape[1] * y.shape[2] < STRIP
    whole = model.decoder.pixels(y, 60)
    monkeypatch.setattr("worker.images.hyperprior.integers.STRIP", 15)
    assert np.array_equal(model.decoder.pixels(y, 60), whole) and whole.shape == (368, 80, 3)


def test_another_process_with_other_threads_decodes_the_same(tmp_path, network, model):
    data = codec.encode(scene(2, 130, 200), 70, model, network)
    (tmp_path / "model").write_bytes(dumped(model))
    (tmp_path / "x.mpn").write_bytes(data)
    code = (
        "import hashlib, sys; from pathlib import Path; from worker.images.hyperprior.codec import decode; from worker.images.hyperprior.model import loaded\n"
        "d = Path(sys.argv[1]); print(hashlib.sha256(decode((d / 'x.mpn').read_bytes(), loaded((d / 'model').read_bytes()))).hexdigest())"
    )
    environment = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "PATH": ""}
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    assert told.stdout.strip() == hashlib.sha256(codec.decode(data, model)).hexdigest()


def test_numbers_of_all_levels_come_back():
    draw = np.random.default_rng(1)
    levels = draw.integers(0, LEVELS, 4000)
    values = np.rint(draw.laplace(size=4000) * 2.0 ** (levels / 4 - 4)).astype(np.int64)
    values[:3], levels[:3] = (2**21, -(2**21), 40), (0, LEVELS - 1, 0)
    tables = coding.counted(values, levels)
    assert coding.fits(tables)
    coder = constriction.stream.queue.RangeEncoder()
    coding.Tables(tables).write(coder, values, levels)
    words = coder.get_compressed()
    assert np.array_equal(coding.Tables(tables).read(constriction.stream.queue.RangeDecoder(words), levels), values)
    spread = np.maximum(2.0 ** (levels / 4 - 4), 0.3)
    assert 32 * len(words) < 1.25 * (np.log2(2 * np.e * spread)).sum() + 300  # of the entropy of what was drawn, about


def test_the_similarity_that_is_trained_is_the_one_that_is_measured():
    a, b = scene(0, 190, 180), scene(0, 190, 180)
    b[40:90] = 255 - b[40:90] // 2
    planes = [torch.from_numpy(x).permute(2, 0, 1) for x in (a, b)]
    found = training.ms_ssim(*((p[None].float() - 128) / PIXEL for p in planes))
    assert found.shape == (1,) and abs(float(found) - ms_ssim(*planes)) < 1e-4


def test_a_training_goes_on_where_another_was(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "KEEP", 0.0)
    monkeypatch.setitem(training.PATCH, "cpu", 64)
    path = tmp_path / "s.safetensors"

    def keep(state):
        states.save(path, state.network, state.descent, asdict(state.course), {})

    first = training.begun(SMALL, "cpu", 1)
    training.train(first, [scene(0)], [scene(1)], 0.6, 0.01, "mse", 1, "cpu", keep=keep)
    second = training.begun(SMALL, "cpu", 1)
    second.course = training.Course(**states.restore(path, second.network, second.descent))
    assert second.course.steps > 0 and all(m.count == second.course.steps for m in second.descent.moments.values())
    training.train(second, [scene(0)], [scene(1)], first.course.seconds + 0.3, 8.0, "ms_ssim", 1, "cpu")
    assert second.course.steps > first.course.steps and second.course.curve[0] == first.course.curve[0]
    path.write_bytes(b"half")
    assert states.restore(path, second.network, second.descent) is None


@pytest.fixture(scope="module")
def written(network, model) -> tuple[bytes, bytes]:
    """The codec's file, and an image's."""
    return dumped(model), codec.encode(scene(0), 40, model, network)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_damaged_codecs_and_streams_are_refused_or_work(written, data):
    kept, stream = map(bytearray, written)
    broken = data.draw(st.sampled_from([kept, stream]))
    broken[data.draw(st.integers(0, min(len(broken), 200) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.just(len(stream)) | st.integers(0, len(stream)))
    try:
        model = loaded(bytes(kept))
        if codec.header(bytes(stream[:cut]))[0] * codec.header(bytes(stream[:cut]))[1] < 1 << 16:
            assert codec.decode(bytes(stream[:cut]), model).dtype == np.uint8
    except Damaged:
        return


def test_an_encoder_has_the_weights_of_its_codec(network):
    data = encoder.dumped(network)
    again = encoder.loaded(data, SMALL)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in again.state_dict().items() if k.startswith("analysis"))
    for bad, shape in ((data[:-9], SMALL), (b"", SMALL), (data, Shape(3, (6, 8, 8), 12, 6))):
        with pytest.raises(Damaged):
            encoder.loaded(bad, shape)


@pytest.mark.slow
def test_a_hyperprior_is_trained_measured_and_used(tmp_path, monkeypatch):
    monkeypatch.setitem(training.SHAPES, "cpu", ((6, 8, 8), 10, 6))
    monkeypatch.setitem(training.PATCH, "cpu", 64)
    (tmp_path / "set").mkdir()
    for i in range(3):
        Image.fromarray(scene(i, 64, 80)).save(tmp_path / "set" / f"{i}.png")
    learned = run(tmp_path / "set", tmp_path / "codec", {"method": "train_codec", "minutes": 0.03, "architecture": "hyperprior", "distortion": "ms_ssim"})
    assert learned["training"]["architecture"] == "hyperprior" and learned["training"]["lambda"] == 16 and learned["training"]["steps"] > 0
    tested = run(tmp_path / "set", tmp_path / "test", {"method": "test_codec"}, "--codec", str(tmp_path / "codec"))
    assert len(tested["test"]["points"]) == 3 and "without_network" not in tested["test"]["points"][0]
    used = run(tmp_path / "set", tmp_path / "used", {"method": "image", "candidates": ["learned"], "target": {"bpp": 20}, "effort": "fast"}, "--codec", str(tmp_path / "codec"))
    assert used["totals"]["codecs"] == {"learned": 3} and not (tmp_path / "used" / index.ENCODER).exists()
    back = run(tmp_path / "used", tmp_path / "back", {"method": "restore"})
    assert back["load_proof"]["restored"]["other_pixels_than_at_the_coder"] == 0
    document = json.loads((tmp_path / "codec" / "modelpress.json").read_text())
    for change in ({"encoder": None}, {"encoder": {"file": "../x", "sha256": "0" * 64}}, {"encoder": document["encoder"] | {"sha256": "0" * 64}}):
        (tmp_path / "codec" / "modelpress.json").write_text(json.dumps(document | change))
        with pytest.raises(InputRefused):
            index.read(tmp_path / "codec")


def test_training_needs_torch_and_numpy_alone():
    code = "import sys; import worker.images.hyperprior.training; print([m for m in ('pydantic', 'constriction', 'app', 'celery') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}, check=True)
    assert told.stdout.strip() == "[]"


def test_what_is_trained_is_asked_for_in_words_that_fit():
    def job(**step):
        return parse_job({"input": "00000000-0000-0000-0000-000000000000", "recipe": {"steps": [{"method": "train_codec"} | step]}}, kind="images").recipe.steps[0]

    assert job().worth == 0.013 and job(architecture="hyperprior", distortion="ms_ssim").worth == 16 and job(**{"lambda": 0.1}).worth == 0.1
    for bad, pointer in (({"distortion": "ms_ssim"}, "distortion"), ({"architecture": "x"}, "architecture"), ({"architecture": "hyperprior", "distortion": "x"}, "distortion")):
        with pytest.raises(InvalidJobSpec) as refused:
            job(**bad)
        assert refused.value.pointer == f"/recipe/steps/0/{pointer}"
