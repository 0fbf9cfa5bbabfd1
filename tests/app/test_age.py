"""Uploads that are encrypted to the service with age: decrypted on their way; what is damaged, cut, for others or none of age is refused and leaves nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from contextlib import aclosing

import pyrage
import pytest
from homes import own_home
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from app import age
from app.client import Client
from app.config import settings
from app.errors import InputRefused


@pytest.fixture(scope="module")
def opened(tmp_path_factory, serve_api):
    home = tmp_path_factory.mktemp("age")
    age.ensure(home / "age-identity")
    with serve_api(home, upload_idle_timeout="2") as api, api.client() as client:
        api.alice, api.recipient = client, client.get("/v1/keys").json()["age"]
        yield api


def seal(data: bytes, *recipients: str) -> bytes:
    return pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(r) for r in recipients])


def test_what_is_encrypted_to_the_service_is_stored_as_it_was(opened, model):
    other = str(pyrage.x25519.Identity.generate().to_public())
    for data in (model(), model({"w": ("U8", [3_000_000])}), model({"w": ("U8", [65_536 * 4 - 80])})):
        sealed = seal(data, other, opened.recipient)
        digest = base64.b64encode(hashlib.sha256(sealed).digest()).decode()
        made = opened.alice.post("/v1/artifacts", params={"name": "m.safetensors.age"}, content=sealed, headers={"Repr-Digest": f"sha-256=:{digest}:"})
        assert made.status_code == 201, made.text
        assert (file := made.json()["files"][0])["path"] == "m.safetensors" and file["sha256"] == hashlib.sha256(data).hexdigest() and made.json()["format"] == "safetensors"
        assert opened.alice.get(f"/v1/artifacts/{made.json()['id']}/files/m.safetensors").content == data
    streamed = opened.alice.post("/v1/artifacts", params={"name": "m.safetensors.age"}, content=iter([sealed[i : i + 1000] for i in range(0, len(sealed), 1000)]))
    assert streamed.json()["files"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert not [key for key in opened.stored() if key.startswith("tmp/")]


def test_the_client_encrypts_files_and_folders(opened, model, tmp_path):
    (tmp_path / "f").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "f" / name).write_bytes(model() if name[0] == "m" else b"{}")
    with Client(opened.url, opened.keys["bob"]) as bob:
        one = bob.upload(tmp_path / "f" / "model.safetensors", recipient=opened.recipient)
        assert one["files"][0]["sha256"] == hashlib.sha256(model()).hexdigest() and one["name"] == "model.safetensors"
        assert {f["path"] for f in bob.upload(tmp_path / "f", recipient=opened.recipient)["files"]} == {"model.safetensors", "config.json"}
        with pytest.raises(InputRefused, match="for somebody else"):
            bob.upload(tmp_path / "f" / "config.json", recipient=str(pyrage.x25519.Identity.generate().to_public()))


def test_what_does_not_decrypt_is_refused_and_leaves_nothing(opened, model, problem):
    data = model({"w": ("U8", [3_000_000])}, b"\x02")
    good, before = seal(data, opened.recipient), opened.stored()
    armored = pyrage.encrypt(data[:100], [pyrage.x25519.Recipient.from_str(opened.recipient)], armored=True)
    for sealed, kind in {
        seal(data, str(pyrage.x25519.Identity.generate().to_public())): "wrong-recipient",
        pyrage.passphrase.encrypt(data[:100], "open sesame"): "wrong-recipient",
        good[:-1]: "invalid-age",
        good[: -(len(data) % 65_536 + 16)]: "invalid-age",  # all chunks but the last one
        good[:150]: "invalid-age",
        good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]: "invalid-age",
        good + b"more": "invalid-age",
        armored: "invalid-age",
        data: "invalid-age",
        b"": "invalid-age",
        age.MAGIC + b"-> X25519 " * 10_000: "invalid-age",
        seal(b"no model at all", opened.recipient): "invalid-safetensors",
    }.items():
        answer = opened.alice.post("/v1/artifacts", params={"name": "m.safetensors.age"}, content=iter([sealed]))
        assert answer.json()["type"] == kind, answer.text
        problem(answer, 422, kind)
    cut = opened.alice.post("/v1/artifacts", params={"name": "m.safetensors.age"}, content=good[:-1])
    problem(cut, 422, "invalid-safetensors")  # its length gives it away before it is there
    wrong = {"Repr-Digest": f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"}
    problem(opened.alice.post("/v1/artifacts", params={"name": "m.safetensors.age"}, content=good, headers=wrong), 422, "checksum-mismatch")
    begin = {"Tus-Resumable": "1.0.0", "Upload-Length": "9", "Upload-Metadata": f"filename {base64.b64encode(b'm.safetensors.age').decode()}"}
    problem(opened.alice.post("/v1/uploads", headers=begin), 422, "unprocessable")
    assert opened.stored() == before


def test_a_service_without_an_identity_says_so(alice, problem):
    assert alice.get("/v1/keys").json()["age"] is None
    problem(alice.post("/v1/artifacts", params={"name": "m.safetensors.age"}, content=b"x"), 422, "wrong-recipient")


def test_identities_are_private_and_the_first_is_published(tmp_path):
    with own_home(tmp_path):
        assert age.Identities.configured() is None
        age.ensure(path := settings().age_identity)
        text = path.read_text()
        age.ensure(path)
        assert path.read_text() == text and path.stat().st_mode & 0o777 == 0o600
        path.write_text(age.new_identity() + text)
        both = age.Identities.configured()
        assert both.recipient in path.read_text().splitlines()[0] and str(both.keys[1].to_public()) in text
        path.chmod(0o640)
        with pytest.raises(ValueError, match="chmod 600"):
            age.Identities.configured()


KEYS = age.Identities([pyrage.x25519.Identity.generate()])


async def decrypted(body, length: int | None = None) -> tuple[bytes, int | None]:
    sealed = age.Encrypted(body, KEYS, None)
    length = await sealed.begin(length)
    async with aclosing(sealed.plain()) as pieces:
        return b"".join([piece async for piece in pieces]), length


async def split(data: bytes, step: int):
    for at in range(0, len(data), step):
        yield data[at : at + step]


@settings_of(max_examples=25, deadline=None)
@given(st.one_of(st.integers(0, 100), st.integers(-3, 3).map(lambda n: 131_072 + n), st.integers(1_000_000, 2_200_000)), st.integers(40, 200_000))
def test_any_size_in_any_pieces(size, step):
    data = os.urandom(size)
    sealed = seal(data, KEYS.recipient)
    assert asyncio.run(decrypted(split(sealed, max(step, len(sealed) // 500)), len(sealed))) == (data, size)


def test_a_body_that_stops_or_a_reader_that_leaves_ends_the_thread():
    sealed = seal(bytes(5_000_000), KEYS.recipient)

    async def stuck():
        yield sealed[:3_000_000]
        await asyncio.sleep(3600)

    async def breaks():
        yield sealed[:3_000_000]
        raise ConnectionError("gone")

    async def leave() -> int:
        one = age.Encrypted(stuck(), KEYS, None)
        await one.begin(None)
        async with aclosing(one.plain()) as pieces:
            return len(await anext(pieces))

    assert asyncio.run(asyncio.wait_for(leave(), 5)) == 1 << 20
    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(decrypted(breaks()))
    with pytest.raises(InputRefused, match="for somebody else"):
        asyncio.run(decrypted(split(seal(b"x", str(pyrage.x25519.Identity.generate().to_public())), 50)))
