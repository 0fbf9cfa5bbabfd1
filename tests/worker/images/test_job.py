"""Jobs on images from a folder to a result and back, by the program that users run."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import InputRefused
from worker.__main__ import main
from worker.images import index
from worker.images.codecs import CODECS
from worker.images.picture import open_picture

NOISE = np.random.default_rng(1)


def photo(height: int = 60, width: int = 76) -> Image.Image:
    """Smooth shapes and some grain."""
    y, x = np.mgrid[:height, :width] / 20.0
    base = np.stack([np.sin(x + y), np.cos(x * y / 2), np.sin(x - 2 * y)], -1) * 90 + 128
    return Image.fromarray(np.clip(base + NOISE.normal(0, 4, base.shape), 0, 255).astype(np.uint8))


def run(tmp: Path, source: Path, recipe: dict, *options: str, fails: bool = False) -> dict:
    (tmp / "r.json").write_text(json.dumps({"steps": [recipe]}))
    out = tmp / f"out{len(list(tmp.glob('out*')))}"
    assert main([str(source), str(out), "--recipe", str(tmp / "r.json"), *options]) == int(fails)
    return {} if fails else json.loads((out / "report.json").read_text()) | {"out": out}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A folder: photos as PNG (one named like another but for the suffix) and JPEG, a palette, grey, alpha, an animation, a text."""
    root = tmp_path_factory.mktemp("images")
    (root / "deep/er").mkdir(parents=True)
    photo().save(root / "a.png")
    photo().save(root / "a.jpg", quality=95, exif=_exif())
    photo().convert("L").save(root / "deep/grey.bmp")
    photo().convert("RGBA").resize((40, 40)).save(root / "deep/er/alpha.png")
    photo().quantize(8).save(root / "deep/palette.png")
    photo().save(root / "deep/b.webp", lossless=True)
    frames = [photo(), photo()]
    frames[0].save(root / "moves.gif", save_all=True, append_images=frames[1:])
    (root / "labels.txt").write_text("cat\n")
    return root


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    return exif.tobytes()


@pytest.fixture(scope="module")
def zipped(given, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "set.zip"
    with zipfile.ZipFile(path, "w") as z:
        for p in given.rglob("*"):
            if p.is_file():
                z.write(p, p.relative_to(given).as_posix())
    return path


def test_the_smallest_that_meets_the_target_wins_and_all_comes_back(zipped, given, tmp_path):
    report = run(tmp_path, zipped, {"method": "image", "target": {"ms_ssim": 0.96}, "effort": "fast"})
    rows = {r["name"]: r for r in report["rows"]}
    assert set(rows) == {p.relative_to(given).as_posix() for p in given.rglob("*") if p.is_file()}
    assert rows["labels.txt"]["reason"] == "it is no image" and "animated" in rows["moves.gif"]["reason"]
    for row in (r for r in rows.values() if r["action"] == "coded"):
        file = report["out"] / row["file"]
        made = next(c for c in CODECS.values() if c.name == row["codec"])
        assert file.suffix == made.suffix and file.stat().st_size == row["bytes_after"] and row["ms_ssim"] >= 0.96
        assert row["bytes_after"] == min(t["bytes"] for t in row["tried"] if t["meets"])
        assert b"secret" not in file.read_bytes()
    assert "alpha" in rows["deep/er/alpha.png"]["skipped"]["jpeg"]
    assert len({r["file"].lower() for r in rows.values()}) == len(rows)
    back = run(tmp_path, report["out"], {"method": "restore"})
    files = {r["file"] for r in back["rows"]}
    assert files == {"a.png", "a.jpg.png", "labels.txt", "moves.gif", "deep/grey.bmp", "deep/er/alpha.png", "deep/palette.png", "deep/b.webp" if rows["deep/b.webp"]["codec"] in ("webp", "original") else "deep/b.png"}
    assert (back["out"] / "moves.gif").read_bytes() == (given / "moves.gif").read_bytes()
    for name, was in (("a.png", "a.png"), ("a.jpg.png", "a.jpg"), ("deep/grey.bmp", "deep/grey.bmp")):
        with Image.open(back["out"] / name) as again, Image.open(given / was) as original:
            assert (again.size, again.mode) == (original.size, original.mode)
            assert np.abs(np.asarray(again, int) - np.asarray(original, int)).mean() < 20


def test_without_loss_every_pixel_comes_back_and_a_jpeg_whole(given, tmp_path):
    report = run(tmp_path, given, {"method": "image", "lossless": True, "effort": "fast"})
    rows = {r["name"]: r for r in report["rows"]}
    assert rows["a.jpg"]["variant"] == "jxl of the JPEG itself" and rows["a.jpg"]["bytes_after"] < rows["a.jpg"]["bytes_before"]
    assert all(r.get("exact", True) and r["bytes_after"] <= r["bytes_before"] for r in rows.values())
    back = run(tmp_path, report["out"], {"method": "restore"})["out"]
    for p in given.rglob("*"):
        if p.is_file():
            again = back / p.relative_to(given)
            again = again if again.exists() else again.with_suffix(".png")
            same = again.read_bytes() == p.read_bytes()
            assert same or p.suffix in (".png", ".bmp", ".webp") and np.array_equal(open_picture(again.name, again.read_bytes()).pixels, open_picture(p.name, p.read_bytes()).pixels)


def test_targets_of_size_and_sets(given, tmp_path):
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in ("x.png", "y.png"):
        photo().save(pair / name)
    best = run(tmp_path, pair, {"method": "image", "target": {"max_bytes": 1200}, "effort": "fast"})
    assert all(r["bytes_after"] <= 1200 for r in best["rows"])
    assert all(r["ms_ssim"] == max(t["ms_ssim"] for t in r["tried"] if t["meets"]) for r in best["rows"])
    whole = run(tmp_path, pair, {"method": "image", "target": {"psnr": 30.0}, "per": "set", "effort": "fast"})
    assert len({(r["codec"], r["quality"], r["variant"]) for r in whole["rows"]}) == 1
    assert np.mean([r["psnr"] for r in whole["rows"]]) >= 30.0


def test_what_cannot_be_done_fails_and_says_so(given, tmp_path, capsys):
    run(tmp_path, given / "a.png", {"method": "image", "target": {"max_bytes": 10}, "effort": "fast"}, fails=True)
    assert "by none of jpeg, webp, avif, jxl max_bytes 10 is reached" in capsys.readouterr().err
    telling = tmp_path / "telling"
    telling.mkdir()
    frames = [photo(), photo()]
    frames[0].save(telling / "moves.gif", save_all=True, append_images=frames[1:], comment=b"by me")
    run(tmp_path, telling, {"method": "image", "target": {"psnr": 30.0}}, fails=True)
    assert "not stripped from GIF" in capsys.readouterr().err
    (telling / "broken.png").write_bytes((given / "a.png").read_bytes()[:-30])
    run(tmp_path, telling, {"method": "image", "target": {"psnr": 30.0}}, "--sanitize", "report", fails=True)
    assert "invalid-image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"file": "../../etc/passwd"}, "unsafe-archive"), ({"path": "/etc/passwd"}, "unsafe-archive"), ({"codec": "exe"}, "unsupported-format"), ({"width": 10**8}, "limit-pixels"),
        ({"mode": "P"}, "unsupported-format"), ({"pixels": "0" * 64}, "invalid-image"), ({"file": "other.png"}, "unsupported-format"), ({"width": True}, "unsupported-format"), ({"more": 1}, "unsupported-format"),
    ],
)  # fmt: skip
def test_an_index_is_a_strangers(tmp_path, changed, reason):
    from worker.images.restoring import restore

    out = io.BytesIO()
    photo().save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    row = {"path": "a.png", "file": "a.png", "codec": "png", "mode": "RGB", "width": 76, "height": 60, "pixels": "1" * 64, "exact": True, "whole": False}
    (tmp_path / "modelpress.json").write_text(json.dumps({"format": "images", "version": 1, "images": [row | changed]}))
    with pytest.raises(InputRefused) as e:
        restore(tmp_path, tmp_path / "back", lambda n: None)
    assert e.value.type == reason


def test_an_index_that_is_none(tmp_path):
    for text in ("", "[]", '{"format": "dataset", "version": 1}', '{"format": "images", "version": 2}', '{"format": "images", "version": 1, "images": 7}', "{" * 100_000):
        (tmp_path / "modelpress.json").write_text(text)
        with pytest.raises(InputRefused):
            index.read(tmp_path, tuple(CODECS))


def test_a_set_may_have_a_transform_of_its_own_which_counts_and_lies_beside_it(tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    for i in range(2):
        photo(61, 90).save(pages / f"{i}.png")
    report = run(tmp_path, pages, {"method": "image", "candidates": ["transform"], "target": {"psnr": 31.0}, "per": "set"})
    assert {t["variant"] for r in report["rows"] for t in r["tried"]} == {"dct", "klt"}
    smallest = min((t for t in report["rows"][0]["tried"] if t["meets"]), key=lambda t: t["bytes"])
    model = report["out"] / "modelpress.codec"
    assert sum(r["bytes_after"] for r in report["rows"]) == smallest["bytes"] - (model.stat().st_size if smallest["variant"] == "klt" else 0)
    assert model.exists() == (smallest["variant"] == "klt")
    back = run(tmp_path, report["out"], {"method": "restore"})
    assert {r["file"] for r in back["rows"]} == {"0.png", "1.png"} and not back["load_proof"]["restored"]["other_pixels_than_at_the_coder"]


def test_what_has_to_be_kept_keeps_to_a_size_or_is_refused(given, tmp_path, capsys):
    (source := tmp_path / "in").mkdir()
    (source / "moves.gif").write_bytes(data := (given / "moves.gif").read_bytes())
    step = {"method": "image", "candidates": ["jpeg"]}
    assert run(tmp_path, source, step | {"target": {"max_bytes": len(data)}})["rows"][0]["action"] == "copied"
    run(tmp_path, source, step | {"target": {"max_bytes": len(data) - 1}}, fails=True)
    assert f"in {len(data)} bytes, which is more than max_bytes" in capsys.readouterr().err
