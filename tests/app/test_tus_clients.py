"""Other people's clients: tuspy, and tus-js-client on node. Each is interrupted and goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tusclient.client import TusClient
from tusclient.storage import filestorage

JS = Path(__file__).parents[1] / "js"


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    data = model({"w": ("F32", [1000, 100])})
    path.write_bytes(data[:-300_000] + os.urandom(300_000))
    return path


def served(client, artifact: str) -> bytes:
    (kept,) = client.get(f"/v1/artifacts/{artifact}").json()["files"]
    return client.get(f"/v1/artifacts/{artifact}/files/{kept['path']}").content


@pytest.mark.parametrize("checksum", [False, True])
def test_tuspy(api, alice, file, tmp_path, checksum):
    tus = TusClient(f"{api.url}/v1/uploads", headers={"Authorization": f"Bearer {api.keys['alice']}"})
    more = {"store_url": True, "url_storage": filestorage.FileStorage(str(tmp_path / "urls")), "metadata": {"filename": file.name}, "upload_checksum": checksum}
    first = tus.uploader(str(file), chunk_size=50_000, **more)
    first.upload(stop_at=100_000)
    assert alice.head(first.url, headers={"Tus-Resumable": "1.0.0"}).headers["Upload-Offset"] == "100000"
    second = tus.uploader(str(file), chunk_size=70_000, **more)
    assert (second.url, second.offset) == (first.url, 100_000)
    second.upload()
    assert served(alice, second.request.response_headers["upload-artifact"]) == file.read_bytes()


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("npm and node are not installed")
    folder = tmp_path_factory.mktemp("js")
    for name in ("package.json", "package-lock.json", "upload.mjs"):
        shutil.copy(JS / name, folder)
    done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm ci: {done.stderr[-300:]}")

    def run(*arguments: str) -> dict:
        done = subprocess.run(["node", "upload.mjs", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_tus_js_client(api, alice, file, node):
    known = (f"{api.url}/v1/uploads", api.keys["alice"], str(file))
    url = node(*known)["url"]
    assert 0 < int(alice.head(url, headers={"Tus-Resumable": "1.0.0"}).headers["Upload-Offset"]) < file.stat().st_size
    assert served(alice, node(*known, url)["artifact"]) == file.read_bytes()
