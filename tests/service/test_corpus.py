"""Hostile and good files through the whole service: every verdict of the corpus, no canary file, no dead worker."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[3] / "shared" / "hostile" / "corpus.tar.xz"
FAMILIES = ("safetensors", "torch", "archive", "confusion", "numeric", "image")


@pytest.mark.skipif(not CORPUS.exists(), reason="the hostile corpus is not beside this clone")
@pytest.mark.parametrize("each", [2, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_file_gets_its_verdict(service, tmp_path, each):
    """`each`: how many of each family and verdict; every file goes through its reader in tests/worker/formats/test_corpus.py, and all of this with `make hostile`."""
    with tarfile.open(CORPUS) as t:
        t.extractall(tmp_path, filter="data")
    folder = next(tmp_path.rglob("manifest.json")).parent
    manifest = json.loads((folder / "manifest.json").read_text())
    canaries = Path(manifest["canary_dir"])
    before = set(canaries.glob(manifest["canary_glob"]))
    asked = [f for f in manifest["files"] if f["family"] in FAMILIES and f["level"] == "must"]
    alike = lambda f: (f["family"], f["expected"])  # noqa: E731
    files = [f for _, group in groupby(sorted(asked, key=alike), alike) for f in islice(group, each)]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda f: verdict(service, folder / f["name"]), files))
    wrong = [f"{f['name']}: {v}, expected {f['expected']} ({f['reason']})" for f, v in zip(files, verdicts, strict=True) if v[0] != f["expected"]]
    assert not wrong, "\n".join(wrong)
    assert set(canaries.glob(manifest["canary_glob"])) == before
    assert Counter(v[0] for v in verdicts).keys() == {"accepted", "rejected"}
    crashed = [(f["name"], v) for f, v in zip(files, verdicts, strict=True) if v[1] in ("worker-crashed", "internal-error")]
    assert not crashed


def verdict(service, path: Path) -> tuple[str, str]:
    """(accepted | rejected, problem type) of one upload and a lossless job on it."""
    with service.http() as c:
        r = c.post("/v1/artifacts", params={"name": path.name}, content=path.read_bytes())
        if r.status_code != 201:
            assert 400 <= r.status_code < 500, (path.name, r.status_code, r.text)
            return "rejected", r.json()["type"]
        r = c.post("/v1/jobs", json={"input": r.json()["id"], "preset": "images-lossless" if r.json()["kind"] == "images" else "lossless"})
        if r.status_code != 202:
            assert 400 <= r.status_code < 500, (path.name, r.status_code, r.text)
            return "rejected", r.json()["type"]
        job = r.json()
        while job["state"] not in ("succeeded", "failed"):
            job = c.get(f"/v1/jobs/{job['id']}", params={"wait": 20}).json()
        return ("accepted", "") if job["state"] == "succeeded" else ("rejected", job["error"]["type"])
