"""Keys of the uploaders' own, from the upload to the result, on a real service: what needs them, what a wrong one answers, what is stored, and what becomes of a job whose key is gone."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from homes import KINDS, new_database
from service.running import QUICK, Service, safetensors
from sqlalchemy import text

from app.client import Client
from app.customer_keys import headers_of
from app.db import make_engine
from app.errors import WrongCustomerKey
from app.storage.masters import new_line

TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
MARK = b"plain as day, the whole of it. "
KEY, OTHER = bytes(range(32)), bytes(32)
WITH, WRONG = headers_of(KEY), headers_of(OTHER)


@pytest.fixture(scope="module", params=KINDS)
def keyed(request, tmp_path_factory):
    """On SQLite without a master key, on PostgreSQL with one."""
    home = tmp_path_factory.mktemp("keyed")
    database = new_database(home, request.param)
    more = {"MODELPRESS_MASTER_KEYS": new_line("2026a")} if request.param == "postgresql" else {}
    running = Service(home, **QUICK, **more, MODELPRESS_DATABASE_URL=database, MODELPRESS_UPLOAD_PIECE="200000")
    running.database = database
    yield running
    running.stop()


@pytest.fixture(scope="module")
def data() -> bytes:
    marked = np.frombuffer((MARK * 12_000)[: 4 * 64 * 1024], "<f4").reshape(64, 1024)
    return safetensors({"a.weight": marked, "b.weight": np.random.default_rng(0).standard_normal((64, 1024), dtype="f4")})


def refused(response, status: int, kind: str) -> None:
    assert (response.status_code, response.json()["type"]) == (status, kind), response.text


def stored(service: Service) -> dict[str, bytes]:
    root = Path(service.environment["MODELPRESS_STORAGE_URL"].removeprefix("file://"))
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def upload(c, data: bytes, name: str = "m.safetensors", headers: dict = WITH) -> dict:
    made = c.post("/v1/artifacts", params={"name": name}, content=data, headers=headers)
    assert made.status_code == 201, made.text
    return made.json()


def test_from_the_upload_to_the_result(keyed, data):
    with keyed.http() as c:
        made = upload(c, data)
        assert made["customer_key"] and made["files"][0]["sha256"] == hashlib.sha256(data).hexdigest()
        place = f"/v1/artifacts/{made['id']}"
        for path in ("files/m.safetensors", "archive"):
            refused(c.get(f"{place}/{path}"), 400, "customer-key-required")
            refused(c.get(f"{place}/{path}", headers=WRONG), 403, "wrong-customer-key")
            assert c.head(f"{place}/{path}").status_code == 400
        assert c.get(f"{place}/files/m.safetensors", headers=WITH).content == data
        for start, end in ((0, 1), (65_535, 65_537), (131_000, 299_999), (len(data) - 1, len(data))):
            part = c.get(f"{place}/files/m.safetensors", headers=WITH | {"Range": f"bytes={start}-{end - 1}"})
            assert part.status_code == 206 and part.content == data[start:end]
        body = {"input": made["id"], "preset": "lossless"}
        refused(c.post("/v1/jobs", json=body), 400, "customer-key-required")
        refused(c.post("/v1/jobs", json=body, headers=WRONG), 403, "wrong-customer-key")
        refused(c.post("/v1/estimates", json=body), 400, "customer-key-required")
        assert c.post("/v1/estimates", json=body, headers=WITH).status_code == 200
        once = WITH | {"Idempotency-Key": "once"}
        job = c.post("/v1/jobs", json=body, headers=once).json()
        assert job["customer_key"] and c.post("/v1/jobs", json=body, headers=once).json()["id"] == job["id"]
        refused(c.post("/v1/jobs", json=body, headers=WRONG | {"Idempotency-Key": "once"}), 403, "wrong-customer-key")
        refused(c.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"}), 400, "customer-key-required")
        done = keyed.finish(job["id"])
        assert done["state"] == "succeeded" and not done["cached"], done
        result = c.get(f"/v1/artifacts/{done['output']}").json()
        assert result["customer_key"] and result["signed"]
        name = result["files"][0]["path"]
        refused(c.get(f"/v1/artifacts/{result['id']}/files/{name}"), 400, "customer-key-required")
        refused(c.get(f"/v1/artifacts/{result['id']}/files/{name}", headers=WRONG), 403, "wrong-customer-key")
        packed = c.get(f"/v1/artifacts/{result['id']}/files/{name}", headers=WITH).content
        assert hashlib.sha256(packed).hexdigest() == result["files"][0]["sha256"]
        assert c.get(f"/v1/artifacts/{result['id']}/report").json()["tensors"]  # what is said of it needs no key
        with (keyed.home / "whole.zip").open("wb") as f:
            f.write(c.get(f"/v1/artifacts/{result['id']}/archive", headers=WITH).content)
        assert zipfile.ZipFile(keyed.home / "whole.zip").read(name) == packed
        again = keyed.finish(c.post("/v1/jobs", json=body, headers=WITH).json()["id"])
        assert again["state"] == "succeeded" and not again["cached"]  # nothing is taken from another job
        restored = keyed.finish(c.post("/v1/jobs", json={"input": result["id"], "recipe": {"steps": [{"method": "restore"}]}}, headers=WITH).json()["id"])
        back = c.get(f"/v1/artifacts/{restored['output']}").json()
        assert c.get(f"/v1/artifacts/{back['id']}/files/{back['files'][0]['path']}", headers=WITH).content == data


def test_nothing_of_it_is_stored_or_said_in_the_clear(keyed, data):
    with keyed.http() as c:
        upload(c, data)
    for path, held in stored(keyed).items():
        assert MARK not in held and b"data_offsets" not in held, path
    secrets = (KEY, base64.b64encode(KEY), KEY.hex().encode(), base64.b64encode(hashlib.sha256(KEY).digest()), hashlib.sha256(KEY).hexdigest().encode())
    engine = make_engine(keyed.database)
    with engine.connect() as s:
        from app.db import Base

        for table in Base.metadata.tables.values():
            for row in s.execute(table.select()):
                said = repr(tuple(row)).encode()
                assert not any(secret in said for secret in secrets[1:]), table.name
        assert not s.execute(text("select count(*) from jobs where sealed_key is not null and state in ('succeeded', 'failed', 'cancelled')")).scalar()
    engine.dispose()
    for path in [*keyed.home.rglob("*.log"), *keyed.home.rglob("*.db*")]:
        assert not any(secret in path.read_bytes() for secret in secrets), path


def test_an_upload_that_resumes_wants_the_same_key_each_time(keyed, data):
    with keyed.http() as c:
        begin = TUS | {"Upload-Length": str(len(data)), "Upload-Metadata": "filename bS5zYWZldGVuc29ycw=="}
        begin.pop("Content-Type")
        place = c.post("/v1/uploads", headers=begin | WITH).headers["location"]
        half = 300_001
        sent = TUS | {"Upload-Offset": "0"}
        refused(c.patch(place, headers=sent, content=data[:half]), 400, "customer-key-required")
        refused(c.patch(place, headers=sent | WRONG, content=data[:half]), 403, "wrong-customer-key")
        assert c.patch(place, headers=sent | WITH, content=data[:half]).headers["upload-offset"] == str(half)
        assert c.head(place, headers=TUS).headers["upload-offset"] == str(half)
        assert not any(MARK in held for held in stored(keyed).values())
        refused(c.patch(place, headers=TUS | WRONG | {"Upload-Offset": str(half)}, content=data[half:]), 403, "wrong-customer-key")
        made = c.patch(place, headers=TUS | WITH | {"Upload-Offset": str(half)}, content=data[half:]).headers["upload-artifact"]
        assert c.get(f"/v1/artifacts/{made}/files/m.safetensors", headers=WITH).content == data
        refused(c.get(f"/v1/artifacts/{made}/files/m.safetensors"), 400, "customer-key-required")
        plain = c.post("/v1/uploads", headers=begin).headers["location"]
        refused(c.patch(plain, headers=sent | WITH, content=data[:9]), 400, "customer-key-not-applicable")
        given_up = c.post("/v1/uploads", headers=begin | WITH).headers["location"]
        c.patch(given_up, headers=sent | WITH, content=data[:half])
        assert c.delete(given_up, headers={"Tus-Resumable": "1.0.0"}).status_code == 204
        assert not [path for path in stored(keyed) if path.startswith("tmp/uploads/" + given_up.rsplit("/", 1)[1])]


def test_a_folder_is_under_one_key_or_none(keyed, data):
    with keyed.http() as c:
        parts = [upload(c, data, "a.safetensors"), upload(c, data, "b.safetensors"), upload(c, data, "c.safetensors", WRONG), upload(c, data, "d.safetensors", {})]
        config = upload(c, b'{"model_type": "x"}', "config.json")
        assert len({path for path in stored(keyed) if path.startswith("keyed/")}) >= 4  # the same bytes, each for itself

        def folder(*which: dict) -> dict:
            return {"files": [{"path": p["name"], "artifact": p["id"]} for p in which], "kind": "model"}

        refused(c.post("/v1/artifacts", json=folder(parts[0])), 400, "customer-key-required")
        refused(c.post("/v1/artifacts", json=folder(parts[0], parts[2]), headers=WITH), 403, "wrong-customer-key")
        refused(c.post("/v1/artifacts", json=folder(parts[0], parts[3]), headers=WITH), 400, "customer-key-not-applicable")
        whole = c.post("/v1/artifacts", json=folder(parts[0], parts[1], config), headers=WITH).json()
        for part in parts[:2]:
            c.delete(f"/v1/artifacts/{part['id']}")
        time.sleep(4)  # a cleaning goes by
        assert c.get(f"/v1/artifacts/{whole['id']}/files/b.safetensors", headers=WITH).content == data
        refused(c.get(f"/v1/artifacts/{parts[3]['id']}/files/d.safetensors", headers=WITH), 400, "customer-key-not-applicable")
        refused(c.get(f"/v1/artifacts/{whole['id']}/files/b.safetensors", headers=WRONG), 403, "wrong-customer-key")


@pytest.mark.parametrize(
    "change",
    [
        {"Modelpress-Encryption-Algorithm": "AES128"}, {"Modelpress-Encryption-Algorithm": None}, {"Modelpress-Encryption-Key": None}, {"Modelpress-Encryption-Key": "AAAA"},
        {"Modelpress-Encryption-Key": "!" * 44}, {"Modelpress-Encryption-Key-SHA256": None}, {"Modelpress-Encryption-Key-SHA256": base64.b64encode(bytes(32)).decode()},
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused_and_not_repeated(keyed, data, change):
    sent = {k: v for k, v in (WITH | change).items() if v is not None}
    with keyed.http() as c:
        answer = c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data, headers=sent)
    refused(answer, 400, "invalid-customer-key")
    assert base64.b64encode(KEY).decode() not in answer.text and "!!!!" not in answer.text


def test_damage_is_told_and_no_wrong_byte_is_sent(keyed, data):
    with keyed.http() as c:
        before = set(stored(keyed))
        made = upload(c, data)
        (path,) = set(stored(keyed)) - before
        file = Path(keyed.environment["MODELPRESS_STORAGE_URL"].removeprefix("file://")) / path
        held = bytearray(file.read_bytes())
        held[100_000] ^= 1
        file.write_bytes(held)
        refused(c.get(f"/v1/artifacts/{made['id']}/files/m.safetensors", headers=WITH), 500, "storage-damaged")
        refused(c.get(f"/v1/artifacts/{made['id']}/files/m.safetensors", headers=WITH), 410, "quarantined")
        fresh = upload(c, data)
        assert c.get(f"/v1/artifacts/{fresh['id']}/files/m.safetensors", headers=WITH).content == data
        refused(c.get(f"/v1/artifacts/{made['id']}/files/m.safetensors", headers=WITH), 410, "quarantined")


def test_the_command_line_and_the_client_send_it_with_everything(keyed, data, tmp_path):
    key, source = tmp_path / "key", tmp_path / "m.safetensors"
    source.write_bytes(data)
    command, environment = [sys.executable, "-m", "app.cli"], keyed.environment | {"MODELPRESS_URL": keyed.url, "MODELPRESS_API_KEY": keyed.key}
    key.write_bytes(subprocess.run([*command, "encryption", "new-customer-key"], env=environment, capture_output=True, check=True).stdout)
    environment["MODELPRESS_CUSTOMER_KEY_FILE"] = str(key)
    key.chmod(0o644)
    loose = subprocess.run([*command, "upload", str(source)], env=environment, capture_output=True, text=True)
    assert loose.returncode == 1 and "chmod 600" in loose.stderr and key.read_text().strip() not in loose.stderr
    key.chmod(0o600)
    done = subprocess.run([*command, "compress", str(source), "--preset", "lossless", "-o", str(tmp_path / "out")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([*command, "restore", str(tmp_path / "out"), "-o", str(tmp_path / "back")], env=environment, capture_output=True).returncode == 0
    assert (tmp_path / "back" / "m.safetensors").read_bytes() == data
    with Client(keyed.url, keyed.key, customer_key=KEY) as own, Client(keyed.url, keyed.key, customer_key=OTHER) as other:
        made = own.upload(source)
        with pytest.raises(WrongCustomerKey):
            other.download(made["id"], tmp_path / "nothing")
        own.download(made["id"], tmp_path / "down")
    assert (tmp_path / "down" / "m.safetensors").read_bytes() == data


def test_a_job_whose_key_is_gone_fails_and_says_so(keyed, data):
    """The worker that the key was sealed to is killed while the job waits behind nothing but its own start."""
    with keyed.http() as c:
        made = upload(c, data)
        os.kill(worker := keyed.pid("worker"), signal.SIGSTOP)
        try:
            job = c.post("/v1/jobs", json={"input": made["id"], "preset": "lossless"}, headers=WITH).json()
            assert job["state"] == "queued"
        finally:
            os.kill(worker, signal.SIGKILL)
        done = keyed.finish(job["id"])
        assert done["state"] == "failed" and done["error"]["type"] == "customer-key-gone", done
        keyed.ready()
        end = time.monotonic() + 30
        while (again := c.post("/v1/jobs", json={"input": made["id"], "preset": "lossless"}, headers=WITH)).status_code == 503:
            assert again.json()["type"] == "nobody-for-customer-key" and time.monotonic() < end
            time.sleep(0.2)
        assert keyed.finish(again.json()["id"])["state"] == "succeeded"
