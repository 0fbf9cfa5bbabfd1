"""A set of images is looked at one after another, whatever its size."""

from __future__ import annotations

import io
import json
import weakref

import numpy as np
import pytest
from PIL import Image

from app.steps.image import Target
from tests.worker.images.test_learned import run, scene
from worker.images import gallery as galleries
from worker.images.gallery import Gallery
from worker.images.picture import Picture, open_picture
from worker.images.search import Search
from worker.images.tries import Files


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_what_does_not_fit_is_opened_again(monkeypatch):
    alive, opened = [], []

    class Page(np.ndarray):
        pass

    def picture(i: int) -> Picture:
        opened.append(i)
        found = open_picture(f"{i}.png", png(scene(i)))
        found.pixels = found.pixels.view(Page)
        alive.append(weakref.ref(found.pixels))
        return found

    size = scene(0).size * galleries._JUDGED + len(png(scene(0))) + 1000
    made, most = Gallery(Target(psnr=30), 2 * size), 0
    for i in range(6):
        made.add(picture(i), lambda i=i: picture(i))
    for _ in range(2):
        for shown, judge in made:
            most = max(most, sum(r() is not None for r in alive))
            assert judge(np.asarray(shown.pixels)).ms_ssim > 0.9999
    assert opened == [*range(6), *range(2, 6), *range(2, 6)] and most <= 2 + 1 + 1  # two are held, one is looked at, one may wait for its end
    assert made.pixels == 6 * 48 * 56 and [p.path for p in made.outlines] == [f"{i}.png" for i in range(6)] and all(p.mode == "RGB" for p in made.outlines)


def test_a_bounded_search_finds_what_one_in_memory_does():
    pictures = [open_picture(f"{i}.png", png(scene(i))) for i in range(3)]
    bounded = Gallery(target := Target(ms_ssim=0.95), 0)
    for p in pictures:
        bounded.add(p, lambda p=p: open_picture(p.path, p.data))
    searches = [Search(g, target, "fast") for g in (Gallery.of(pictures, target), bounded)]
    best = [s.run(["jpeg", "webp"]) for s in searches]
    assert list(best[0].files) == list(best[1].files) and len(list(best[0].files)) == 3
    told = [[{k: v for k, v in t.told().items() if k != "seconds"} for t in s.tries.made] for s in searches]
    assert told[0] == told[1] and all(t.files is None for s in searches for t in s.tries.made)


def test_files_of_a_large_try_lie_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.images.tries.HELD", 10)
    files = Files(tmp_path)
    for data in (b"abc", b"", b"0123456789" * 3):
        files.add(data)
    assert list(files) == [b"abc", b"", b"0123456789" * 3] == list(files) and files._file._rolled


@pytest.mark.slow
def test_a_set_comes_out_alike_where_it_is_not_held(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    for i in range(3):
        (tmp_path / "set" / f"{i}.png").write_bytes(png(scene(i)))
    step = {"method": "image", "candidates": ["transform", "jpeg"], "target": {"psnr": 30}, "per": "set", "effort": "fast"}
    run(tmp_path / "set", tmp_path / "held", step)
    monkeypatch.setattr(Gallery.__init__, "__defaults__", (0,))
    run(tmp_path / "set", tmp_path / "not", step)
    index = [json.loads((tmp_path / name / "modelpress.json").read_text()) for name in ("held", "not")]
    assert index[0] == index[1]
