"""Signing keys that take turns: one is published before it signs, old signatures hold, and what was revoked holds nowhere."""

from __future__ import annotations

import json
import os
import time

import pytest
from homes import own_home
from sqlalchemy import update

from app import public_keys, readiness, sign, signing
from app.db import now, session
from app.errors import Conflict, InvalidSignature, KeyRevoked, NotFound, Unavailable
from app.findings import FAIL, OK, find
from app.key_states import CURRENT, NEXT, RETIRED, REVOKED, change, document, load, parse_keys, revocations
from app.models import PublicKey
from app.rotation import current, known_keys, revoke, rotate
from app.statement import sign_artifact
from app.verify import verify_bundle

FILES = {"m.safetensors": "a" * 64}


def ident(key: signing.PrivateKey) -> str:
    return signing.key_id(key.public_key())


def bundle(key: signing.PrivateKey) -> dict:
    return json.loads(sign_artifact(key, FILES, "m", {"_type": "x"})["model.sig"])


def statuses(folder) -> dict[str, str]:
    return {k["kid"]: k["status"] for k in document(known_keys(folder))["keys"]}


def test_the_next_key_is_published_before_it_signs_and_old_signatures_hold(tmp_path):
    old = current(tmp_path)
    coming = rotate(tmp_path, overlap=3600)
    assert ident(current(tmp_path)) == ident(old) and statuses(tmp_path) == {ident(coming): NEXT, ident(old): CURRENT}
    with pytest.raises(Conflict, match="next.pem waits"):
        rotate(tmp_path, overlap=5)
    change(tmp_path, ident(coming), signs_from=time.time() - 1)
    assert ident(current(tmp_path)) == ident(coming) == ident(current(tmp_path)) and not (tmp_path / "next.pem").exists()
    assert statuses(tmp_path) == {ident(coming): CURRENT, ident(old): RETIRED} and load(tmp_path, ident(old)).signs_until <= time.time()
    keys, none = parse_keys(json.dumps(document(known_keys(tmp_path))).encode(), "keys.json")
    assert none == {} and {verify_bundle(bundle(k), FILES, keys).key_id for k in (old, coming)} == {ident(old), ident(coming)}


def test_without_an_overlap_the_key_that_waits_signs_at_once(tmp_path):
    current(tmp_path)
    coming = rotate(tmp_path, overlap=3600)
    assert ident(rotate(tmp_path)) == ident(coming) == ident(current(tmp_path)) and len(known_keys(tmp_path)) == 2


def test_what_a_revoked_key_signed_holds_nowhere(tmp_path):
    old = current(tmp_path)
    revoke(tmp_path, ident(old)[:12], "the disk was stolen")
    new = current(tmp_path)
    assert statuses(tmp_path) == {ident(new): CURRENT, ident(old): REVOKED}
    saved = json.dumps(document(known_keys(tmp_path))).encode()
    for keys, revoked in (parse_keys(saved, "keys.json"), ([k.key for k in known_keys(tmp_path)], revocations(known_keys(tmp_path)))):
        with pytest.raises(KeyRevoked, match="the disk was stolen"):
            verify_bundle(bundle(old), FILES, keys, revoked)
        assert verify_bundle(bundle(new), FILES, keys, revoked).key_id == ident(new)
        forged = bundle(old)  # naming another key does not help
        forged["verificationMaterial"] = bundle(new)["verificationMaterial"]
        with pytest.raises(InvalidSignature):
            verify_bundle(forged, FILES, keys, revoked)
    change(tmp_path, ident(old), revoked_at=None)
    assert load(tmp_path, ident(old)).revoked_at
    os.replace(tmp_path / "signing.pem", tmp_path / "away.pem")
    signing.write_private(tmp_path / "signing.pem", old, tmp_path)  # from a backup, say
    with pytest.raises(Unavailable, match="was revoked"):
        current(tmp_path)
    for name in ("f" * 64, ""):
        with pytest.raises(NotFound):
            revoke(tmp_path, name, "")


def test_a_revoked_key_that_waits_never_signs(tmp_path):
    old = current(tmp_path)
    coming = rotate(tmp_path, overlap=0.001)
    revoke(tmp_path, ident(coming), "")
    time.sleep(0.01)
    assert ident(current(tmp_path)) == ident(old) and statuses(tmp_path) == {ident(coming): REVOKED, ident(old): CURRENT}


def test_without_a_key_nothing_is_ready_and_nothing_is_signed(tmp_path):
    with own_home(tmp_path) as home:
        look = lambda: find("key", readiness.key)  # noqa: E731
        assert look().level == FAIL
        public_keys.publish(home / "keys")
        assert look().level == OK
        os.replace(home / "keys/signing.pem", home / "away.pem")
        public_keys.publish(home / "keys")
        assert look().level == FAIL and "missing" in look().detail
        sign.wake()  # claims nothing
        os.replace(home / "away.pem", home / "keys/signing.pem")
        public_keys.publish(home / "keys")
        assert look().level == OK
        with session() as s, s.begin():
            s.execute(update(PublicKey).values(held_at=now() - 3600))  # the sign process is gone
        assert look().level == FAIL


def test_keys_and_revocation_over_http(api, alice, nobody, problem, tmp_path):
    made = current(tmp_path)
    with api.session() as s, s.begin():
        s.add(PublicKey(id=ident(made), pem=signing.public_pem(made.public_key()).decode(), signs_from=1.0, revoked_at=2.0, revoked_because="leaked"))
    try:
        (told,) = nobody.get("/v1/keys").json()["keys"]
        assert (told["status"], told["valid_from"], told["revoked_at"], told["reason"]) == (REVOKED, "1970-01-01T00:00:01.000Z", "1970-01-01T00:00:02.000Z", "leaked")
        assert "leaked" in problem(alice.post("/v1/verify", json={"bundle": bundle(made), "files": FILES}), 422, "key-revoked")["detail"]
        assert nobody.get("/readyz").status_code == 503
    finally:
        with api.session() as s, s.begin():
            s.delete(s.get(PublicKey, ident(made)))
