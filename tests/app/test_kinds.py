"""Jobs on images and data sets: what a body may say follows from the kind of its input."""

from __future__ import annotations

import pytest

from app.errors import InvalidJobSpec
from app.formats import detect, sniff
from app.job_spec import parse_job
from app.presets import BY_KIND
from app.recipe import kind_of, parse_recipe
from app.steps import STEPS

INPUT = {"input": "00000000-0000-0000-0000-000000000000"}
STEP = {"method": "image", "target": {"ms_ssim": 0.97}}


def job(kind="images", **body):
    return parse_job(INPUT | ({} if "preset" in body else {"recipe": {"steps": [STEP]}}) | body, kind=kind)


def test_a_job_on_images_is_resolved():
    spec = job()
    assert (spec.kind, spec.output.format, spec.sanitize, spec.recipe.kind) == ("images", "images", "strip", "lossy")
    assert spec.recipe.steps[0].candidates == ["jpeg", "webp", "avif", "jxl"]
    exact = job(preset="images-lossless")
    assert (exact.sanitize, exact.recipe.kind, exact.recipe.steps[0].candidates) == ("report", "lossless", ["png", "webp", "jxl"])
    again = parse_job(spec.model_dump(mode="json", exclude={"webhook"}), kind="images")
    assert again == spec
    assert job(recipe={"steps": [{"method": "restore"}]}).output.format == "original"


@pytest.mark.parametrize(
    "body, pointer",
    [
        ({"recipe": {"steps": [{"method": "prune"}]}}, "/recipe/steps/0/method"), ({"preset": "int8"}, "/preset"),
        ({"calibration": INPUT["input"]}, "/calibration"), ({"gates": {"min_cosine": 0.9}}, "/gates/min_cosine"), ({"output": {"format": "packed"}}, "/output/format"),
        ({"output": {"format": "original"}}, "/output/format"), ({"budget": {"ratio": 4}}, "/budget"), ({"recipe": {"steps": [STEP, STEP]}}, "/recipe/steps/0"),
        ({"recipe": {"steps": [STEP | {"target": {}}]}}, "/recipe/steps/0/target/ms_ssim"), ({"recipe": {"steps": [STEP | {"target": {"psnr": 30, "bpp": 1}}]}}, "/recipe/steps/0/target/bpp"),
        ({"recipe": {"steps": [{"method": "image"}]}}, "/recipe/steps/0/target"), ({"recipe": {"steps": [STEP | {"lossless": True}]}}, "/recipe/steps/0/target"),
        ({"recipe": {"steps": [STEP | {"candidates": ["png"]}]}}, "/recipe/steps/0/candidates"), ({"recipe": {"steps": [STEP | {"candidates": ["gif"]}]}}, "/recipe/steps/0/candidates/0"),
        ({"recipe": {"steps": [STEP | {"quality": 7}]}}, "/recipe/steps/0/quality"),
    ],
)  # fmt: skip
def test_what_is_of_models_is_refused_with_a_pointer(body, pointer):
    with pytest.raises(InvalidJobSpec) as e:
        job(**body)
    assert e.value.pointer == pointer


def test_the_kind_is_that_of_the_input():
    with pytest.raises(InvalidJobSpec) as e:
        parse_job(INPUT | {"recipe": {"steps": [STEP]}, "kind": "model"}, kind="images")
    assert e.value.pointer == "/kind"


def test_steps_of_images_are_refused_for_models_and_the_way_is_told():
    with pytest.raises(InvalidJobSpec, match="kind=images") as e:
        job(kind="model")
    assert e.value.pointer == "/recipe/steps/0/method"
    with pytest.raises(InvalidJobSpec) as e:
        job(kind="model", recipe={"steps": [{"method": "lossless"}]}, output={"format": "images"})
    assert e.value.pointer == "/output/format"


def test_every_preset_is_a_recipe_of_its_kind():
    names = [name for presets in BY_KIND.values() for name in presets]
    assert len(set(names)) == len(names)
    for kind, presets in BY_KIND.items():
        assert all(parse_recipe(recipe, kind=kind).steps for recipe in presets.values())
    assert kind_of({"steps": [STEP]}) == "images" and kind_of({"steps": [{"method": "restore"}]}) is None and kind_of(7) is None
    assert all("restore" in methods for methods in STEPS.values())


def test_an_upload_is_known_by_its_name_and_held_against_its_content():
    assert (detect("a/B.JPEG"), detect("x.zip"), detect("x.safetensors")) == ("images", "model", "model")
    assert sniff("x.zip", b"PK\3\4" + bytes(30), 34, kind="images") == "zip"
    assert sniff("x.webp", b"RIFF\4\0\0\0WEBPVP8 ", 16, kind="images") == "image"


def test_the_catalogue_and_the_upload_tell_the_kind(api):
    with api.client() as c:
        methods = c.get("/v1/methods").json()["items"]
        assert ("image", "images") in {(m["name"], m["kind"]) for m in methods} and ("prune", "model") in {(m["name"], m["kind"]) for m in methods}
        assert {p["kind"] for p in c.get("/v1/presets").json()["items"]} >= {"model", "images"}
        made = c.post("/v1/artifacts", params={"name": "x.jpg"}, content=b"\xff\xd8\xff" + bytes(90)).json()
        assert (made["kind"], made["format"]) == ("images", "image")
        queued = c.post("/v1/jobs", json={"input": made["id"], "preset": "images-web"})
        assert queued.status_code == 202 and (queued.json()["kind"], queued.json()["output_format"]) == ("images", "images")
        refused = c.post("/v1/jobs", json={"input": made["id"], "preset": "lossless"})
        assert refused.status_code == 422 and refused.json()["pointer"] == "/preset" and "images-web" in refused.json()["detail"]
        text = c.post("/v1/artifacts", params={"name": "labels.txt", "kind": "images"}, content=b"cat").json()
        parts = [{"path": "a/x.jpg", "artifact": made["id"]}, {"path": "labels.txt", "artifact": text["id"]}]
        folder = c.post("/v1/artifacts", json={"kind": "images", "files": parts})
        assert folder.status_code == 201 and folder.json()["format"] == "image"
        assert c.post("/v1/artifacts", json={"kind": "images", "files": parts[1:]}).json()["type"] == "invalid-image"
