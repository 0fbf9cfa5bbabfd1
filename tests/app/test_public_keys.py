"""Public keys on their way from the disk of the sign process to the API's answers."""

from __future__ import annotations

import json
import time

import pytest
from homes import own_home
from sqlalchemy import delete

from app import public_keys, rotation, sign, signing
from app.db import now, session
from app.models import PublicKey
from app.statement import sign_artifact

FILES = {"m.safetensors": "a" * 64}


@pytest.fixture
def home(tmp_path):
    with own_home(tmp_path, heartbeat="0.05") as folder:
        yield folder


def ids() -> list[str]:
    with session() as s:
        return [signing.key_id(k.key) for k in public_keys.published(s)]


def test_all_keys_of_the_folder_newest_first_and_each_once(home):
    keys = [signing.key_id(rotation.rotate(home / "keys").public_key()) for _ in range(3)]
    public_keys.publish(home / "keys")
    public_keys.publish(home / "keys")
    assert ids() == keys[::-1]
    newest = signing.key_id(rotation.rotate(home / "keys").public_key())
    public_keys.publish(home / "keys")
    assert ids() == [newest, *keys[::-1]]


def test_a_key_is_published_before_anything_is_signed_with_it(home):
    sign.wake()
    assert ids() == [signing.key_id(signing.open_key(home / "keys").public_key())]


def test_the_sign_process_makes_publishes_and_follows_its_key(home):
    sign.prepare()
    made = signing.key_id(signing.open_key(home / "keys").public_key())
    while not ids():
        time.sleep(0.01)
    assert ids() == [made]
    rotated = signing.key_id(rotation.rotate(home / "keys").public_key())
    while len(ids()) == 1:
        time.sleep(0.01)
    assert ids() == [rotated, made]


@pytest.fixture
def key(api, tmp_path):
    """A signing key on another disk, its public half in the API's database."""
    made = signing.open_key(tmp_path)
    with api.session() as s, s.begin():
        s.add(PublicKey(id=signing.key_id(made.public_key()), pem=signing.public_pem(made.public_key()).decode(), held_at=now()))
    yield made
    with api.session() as s, s.begin():
        s.execute(delete(PublicKey))


def test_an_api_process_without_the_sign_hosts_disk_serves_and_verifies(nobody, alice, api, key, problem):
    (served,) = nobody.get("/v1/keys").json()["keys"]
    assert served["kid"] == signing.key_id(key.public_key()) and served["pem"].encode() == signing.public_pem(key.public_key())
    assert nobody.get("/readyz").json()["checks"]["key"] == "ok" and not (api.home / "keys").exists()
    bundle = json.loads(sign_artifact(key, FILES, "m", {"_type": "x"})["model.sig"])
    assert alice.post("/v1/verify", json={"bundle": bundle, "files": FILES}).json() == {"verified": True, "key_id": served["kid"], "files": FILES}
    problem(alice.post("/v1/verify", json={"bundle": bundle, "files": {"m.safetensors": "b" * 64}}), 422, "invalid-signature")


def test_without_a_published_key_nothing_verifies_and_nothing_is_ready(nobody, alice, problem, tmp_path):
    bundle = json.loads(sign_artifact(signing.open_key(tmp_path), FILES, "m", {"_type": "x"})["model.sig"])
    problem(alice.post("/v1/verify", json={"bundle": bundle, "files": FILES}), 422, "invalid-signature")
    assert nobody.get("/readyz").json()["checks"]["key"] != "ok"
