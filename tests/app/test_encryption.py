"""Encryption at rest over the API: ranges, uploads that resume, archives; what a store's reader sees; a lost key; other owners; rotation."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile

import httpx
import obstore
import pytest
import s3 as buckets
from homes import own_home
from sqlalchemy import select, update

from app import collect, quarantine, scrub
from app.blobs import keep
from app.config import settings
from app.db import session
from app.errors import EncryptionKeyMissing
from app.models import Artifact, ArtifactFile, Blob, DamagedCopy
from app.storage import Storage
from app.storage.masters import Masters, new_line

TUS = {"Tus-Resumable": "1.0.0"}
MARK = b"plain as day, " * 4


@pytest.fixture(scope="module")
def masters() -> str:
    return new_line("2026a")


@pytest.fixture(scope="module", params=["folder", "bucket"])
def sealed(request, tmp_path_factory, serve_api, masters):
    home = tmp_path_factory.mktemp("sealed")
    more = {"storage_url": f"s3://{buckets.server().bucket()}/x"} if request.param == "bucket" else {"storage_url": f"file://{home}/store"}
    with serve_api(home, master_keys=masters, upload_piece=str(200_000), **more) as api:
        api.storage = Storage(more["storage_url"], Masters.parse(masters))
        yield api


@pytest.fixture(scope="module")
def data(model) -> bytes:
    return model({"a.weight": ("U8", [300_000])}, MARK[:1]).replace(MARK[:1] * 300_000, (MARK * 6000)[:300_000])


def raw(storage: Storage) -> dict[str, bytes]:
    """Everything in the store as it lies there."""
    return {m["path"]: obstore.get(storage.store, m["path"]).bytes().to_bytes() for page in obstore.list(storage.store) for m in page}


def test_what_is_uploaded_comes_back_and_lies_there_unreadable(sealed, data):
    with sealed.client() as alice:
        made = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()
        sha256 = hashlib.sha256(data).hexdigest()
        assert made["files"][0]["sha256"] == sha256 and made["size"] == len(data)
        place = f"/v1/artifacts/{made['id']}"
        whole = alice.get(f"{place}/files/m.safetensors")
        assert whole.content == data and hashlib.sha256(whole.content).digest().hex() == sha256 and whole.headers["etag"] == f'"{sha256}"'
        for start, end in ((0, 1), (65_535, 65_537), (65_536, 131_072), (131_000, 299_999), (len(data) - 1, len(data))):
            part = alice.get(f"{place}/files/m.safetensors", headers={"Range": f"bytes={start}-{end - 1}"})
            assert part.status_code == 206 and part.content == data[start:end]
        archive = zipfile.ZipFile(io.BytesIO(alice.get(f"{place}/archive").content))
        assert archive.read("m.safetensors") == data and archive.testzip() is None
        assert alice.post("/v1/jobs", json={"input": made["id"], "preset": "lossless"}).status_code == 202
        assert alice.post("/v1/estimates", json={"input": made["id"], "preset": "lossless"}).status_code == 200
        there = raw(sealed.storage)
        assert not any(MARK in held or b"data_offsets" in held or sha256 in key for key, held in there.items())
        assert {key.split("/")[0] for key in there} == {"sealed", "keys"}


def test_an_upload_that_resumes_is_encrypted_piece_by_piece(sealed, data):
    with sealed.client() as alice:
        begin = TUS | {"Upload-Length": str(len(data)), "Upload-Metadata": "filename bS5zYWZldGVuc29ycw=="}
        place = alice.post("/v1/uploads", headers=begin).headers["location"]
        for start in range(0, len(data), 130_000):
            sent = TUS | {"Upload-Offset": str(start), "Content-Type": "application/offset+octet-stream"}
            answer = alice.patch(place, headers=sent, content=data[start : start + 130_000])
            assert answer.status_code == 204, answer.text
            assert not any(MARK in held for held in raw(sealed.storage).values())
        got = alice.get(f"/v1/artifacts/{answer.headers['upload-artifact']}/files/m.safetensors")
        assert got.content == data and not [key for key in raw(sealed.storage) if key.startswith("tmp/")]


def test_nothing_is_shared_between_owners_and_each_ones_goes_by_itself(sealed, data, monkeypatch):
    with sealed.client() as alice, sealed.client("bob") as bob:
        before = {key for key in raw(sealed.storage) if key.startswith("sealed/")}
        ids = [c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data + b"").json()["id"] for c in (bob, alice, bob)]
        sha256 = hashlib.sha256(data).hexdigest()
        places = {sealed.storage.vault.path(owner, sha256) for owner in ("alice", "bob")}
        assert len(places) == 2 and places <= {key for key in raw(sealed.storage)} and sealed.storage.vault.path("bob", sha256) not in before
        assert bob.delete(f"/v1/artifacts/{ids[0]}").status_code == bob.delete(f"/v1/artifacts/{ids[2]}").status_code == 204
        monkeypatch.setenv("MODELPRESS_DATABASE_URL", str(sealed.engine.url.render_as_string(hide_password=False)))
        monkeypatch.setenv("MODELPRESS_ORPHAN_AGE", "-10")
        from app import config, db

        config.settings.cache_clear(), db.engine.cache_clear()
        try:
            assert collect.collect_sealed(sealed.storage, [f"sealed/{sha256[:2]}"]) == 1
        finally:
            db.engine().dispose()
            monkeypatch.undo()
            config.settings.cache_clear(), db.engine.cache_clear()
        assert sealed.storage.of("alice").exists(sha256) and not sealed.storage.of("bob").exists(sha256)
        assert alice.get(f"/v1/artifacts/{ids[1]}/files/m.safetensors").content == data


def test_a_flipped_bit_sends_no_wrong_byte(sealed, data, problem):
    with sealed.client() as alice:
        other = data.replace(MARK, MARK[::-1])
        made = alice.post("/v1/artifacts", params={"name": "m.safetensors"}, content=other).json()
        path = sealed.storage.vault.path("alice", made["files"][0]["sha256"])
        held = bytearray(obstore.get(sealed.storage.store, path).bytes().to_bytes())
        held[100_000] ^= 1
        obstore.put(sealed.storage.store, path, bytes(held))
        problem(alice.get(f"/v1/artifacts/{made['id']}/files/m.safetensors"), 500, "storage-damaged")


@pytest.fixture
def own(tmp_path, masters):
    """A store, a database and settings in this process."""
    with own_home(tmp_path, scrub_rate=str(1 << 40), storage_url=f"file://{tmp_path}/store", master_keys=masters):
        yield Storage()


def put(storage: Storage, owner: str, data: bytes) -> str:
    sha256 = keep(storage.of(owner), data)
    with session() as s, s.begin():
        s.add(Artifact(owner=owner, kind="model", format="file", name="m", digest=sha256, size=len(data), files=[ArtifactFile(path="m", size=len(data), sha256=sha256)]))
    return sha256


def test_the_scrubber_finds_a_damaged_copy_and_blames_no_other_owners(own):
    one, shared = put(own, "alice", b"one"), put(own, "alice", MARK * 5000)
    assert put(own, "bob", MARK * 5000) == shared
    path = own.place.path / own.vault.path("bob", shared)
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))

    def round_() -> set[str]:
        return {found[0] for found in iter(scrub.take, None) if not scrub.scrub(own, *found, lambda _: None)}

    def held() -> set[tuple[str, str]]:
        with session() as s:
            return {(a.owner, a.digest) for a in s.scalars(select(Artifact).where(Artifact.quarantined.is_not(None)))}

    assert round_() == {shared} and held() == {("bob", shared)}
    with session() as s, s.begin():
        quarantine.absolve(s, own.of("alice"), one, shared)
    assert held() == {("bob", shared)}
    path.write_bytes(right)
    with session() as s, s.begin():
        s.execute(update(Blob).values(checked_at=Blob.checked_at - scrub.AGAIN - 1))
    assert scrub.take()[0] == shared and scrub.scrub(own, shared, len(MARK) * 5000, lambda _: None) and not held()
    with session() as s:
        assert s.scalars(select(Blob.damaged_at)).all() == [None, None] and not s.scalars(select(DamagedCopy)).all()


def test_data_keys_that_nothing_needs_are_collected(own, monkeypatch):
    put(own, "alice", b"one")
    own.put("tmp/x/1", [b"on its way"])
    needed = {key for key in raw(own) if key.startswith("keys/")}
    _, left = own.vault.new()
    assert collect.collect_keys(own) == 0 and f"keys/{left.hex()}" in raw(own)
    monkeypatch.setattr(settings(), "orphan_age", -10)
    assert collect.collect_keys(own) == 1 and {key for key in raw(own) if key.startswith("keys/")} == needed
    own.vault.new()
    obstore.put(own.store, own.vault.path("alice", "0" * 64), b"damaged" * 9)
    assert collect.collect_keys(own) == 0
    assert own.read("tmp/x/1") == b"on its way"


def test_masters_rotate_without_a_byte_of_data_and_a_lost_one_is_said(tmp_path, masters):
    old = Masters.parse(masters)
    both = Masters({"new": os.urandom(32)} | old.keys)
    with own_home(tmp_path):
        first = Storage(masters=old).of("o")
        first.put("tmp/x", [MARK], len(MARK))
        first.promote("tmp/x", sha256 := hashlib.sha256(MARK).hexdigest())
        data = {key: held for key, held in raw(first).items() if key.startswith("sealed/")}
        assert Storage(masters=both).vault.rewrap() == (2, 2) and Storage(masters=both).vault.rewrap() == (2, 0)
        assert {key: held for key, held in raw(first).items() if key.startswith("sealed/")} == data
        only = Masters({"new": both.keys["new"]})
        assert Storage(masters=only).of("o").read(sha256) == MARK
        for lost in (old, Masters({"new": bytes(32)}), None):
            with pytest.raises(EncryptionKeyMissing):
                Storage(masters=lost).of("o").read(sha256)
            with pytest.raises(EncryptionKeyMissing):
                Storage(masters=lost).check()


def test_what_was_stored_before_there_was_a_key_is_still_read(tmp_path, masters):
    with own_home(tmp_path):
        Storage().put(sha256 := hashlib.sha256(MARK).hexdigest(), [MARK], len(MARK))
        later = Storage(masters=Masters.parse(masters)).of("o")
        assert later.read(sha256, 3, 9) == MARK[3:9] and later.exists(sha256) and b"".join(later.stream(sha256)) == MARK


def test_direct_ways_to_the_bucket_are_refused(monkeypatch, masters):
    from app.config import Settings

    monkeypatch.setenv("MODELPRESS_MASTER_KEYS", masters)
    monkeypatch.setenv("MODELPRESS_STORAGE_URL", "s3://b/p")
    monkeypatch.setenv("MODELPRESS_PRESIGNED", "true")
    with pytest.raises(ValueError, match="pass bytes by the service"):
        Settings()
