"""Images that are equal, or near by their hashes, are dropped with the list; the first of them stays."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from app.errors import InvalidJobSpec
from app.recipe import parse_recipe
from tests.worker.images.test_learned import run, scene
from worker.__main__ import main
from worker.images.deduplicating import likes, perceptual

TARGET = {"method": "image", "target": {"psnr": 30}, "candidates": ["jpeg"], "effort": "fast"}


def save(path, pixels: np.ndarray, **options) -> None:
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes; of the first an equal copy in another format, one coded again, one scaled, one mirrored; two flat images; a text."""
    root = tmp_path_factory.mktemp("alike")
    a = scene(0, 96, 120)
    save(root / "a.png", a)
    save(root / "b.bmp", a)
    save(root / "c.jpg", a, quality=60)
    save(root / "d.png", np.asarray(Image.fromarray(a).resize((61, 50), Image.Resampling.LANCZOS)))
    save(root / "e.png", a[:, ::-1].copy())
    save(root / "f.png", scene(4, 96, 120))
    save(root / "g.png", np.full((40, 40, 3), 255, np.uint8))
    save(root / "h.png", np.full((40, 40, 3), 10, np.uint8))
    (root / "i.txt").write_text("x")
    return root


def found(folder, near):
    return {x.path: (x.first, x.bits) for x in likes({p.name: p for p in sorted(folder.iterdir()) if p.suffix != ".txt"}, near, lambda: None)}


def test_equal_and_near_images_are_told_apart_from_others(folder):
    assert found(folder, None) == {"b.bmp": ("a.png", None)}
    near = found(folder, 4)
    assert near["b.bmp"] == ("a.png", None) and near.keys() == {"b.bmp", "c.jpg", "d.png"}
    assert all(first == "a.png" and bits <= 4 for first, bits in [near["c.jpg"], near["d.png"]])


def test_hashes_are_of_what_is_seen():
    a = scene(2, 90, 90)
    bright = np.clip(a.astype(int) + 5, 0, 255).astype(np.uint8)
    apart = [int(np.bitwise_count(perceptual(a) ^ perceptual(x))) for x in (bright, scene(0, 90, 90), a.transpose(1, 0, 2).copy())]
    assert apart[0] <= 2 and min(apart[1:]) > 8


@pytest.mark.slow
def test_a_job_keeps_the_first_and_lists_the_others(folder, tmp_path):
    alone = run(folder, tmp_path / "alone", {"method": "dedup", "near": 4})
    assert alone["dedup"]["dropped"] == 3 and [d["name"] for d in alone["dedup"]["duplicates"]] == ["b.bmp", "c.jpg", "d.png"]
    assert sorted(p.name for p in (tmp_path / "alone").iterdir() if p.suffix in (".png", ".bmp", ".jpg", ".txt")) == ["a.png", "e.png", "f.png", "g.png", "h.png", "i.txt"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "alone/a.png")), scene(0, 96, 120))
    assert {r["name"]: r["action"] for r in alone["rows"]}["c.jpg"] == "dropped" and alone["totals"]["actions"] == {"copied": 6, "dropped": 3}
    back = run(tmp_path / "alone", tmp_path / "back", {"method": "restore"})
    assert len(back["rows"]) == 6
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"steps": [{"method": "dedup"}, TARGET]}))
    assert main([str(folder), str(tmp_path / "coded"), "--kind", "images", "--recipe", str(path)]) == 0
    report = json.loads((tmp_path / "coded" / "report.json").read_text())
    assert report["dedup"]["duplicates"] == [{"name": "b.bmp", "like": "a.png", "bits": None}] and report["totals"]["actions"]["coded"] >= 5


def test_it_comes_before_coding_alone():
    steps = [{"method": "dedup", "near": 3}, TARGET]
    assert [s.method for s in parse_recipe({"steps": steps}, kind="images").steps] == ["dedup", "image"]
    for bad, pointer in ((steps[::-1], "/recipe/steps/1"), ([steps[0], {"method": "train_codec"}], "/recipe/steps/1"), ([{"method": "dedup", "near": 17}], "/recipe/steps/0/near"), ([TARGET, TARGET], "/recipe/steps/0")):
        with pytest.raises(InvalidJobSpec) as refused:
            parse_recipe({"steps": bad}, kind="images")
        assert refused.value.pointer == pointer
