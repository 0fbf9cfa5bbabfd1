"""A job that names a trained codec: whose it must be, what it must be, and what a result of it depends on."""

from __future__ import annotations

import io
import json
import zlib

import pytest

from app.models import Job


def upload(client, name: str, data: bytes) -> str:
    return client.post("/v1/artifacts", params={"name": name, "kind": "images"}, content=data).json()["id"]


def codec(client, content: bytes) -> str:
    """What an owner's job with train_codec would have made, as far as the API looks."""
    index = json.dumps({"format": "codec", "version": 1, "codec": "modelpress.codec"}).encode()
    files = [{"path": "modelpress.json", "artifact": upload(client, "modelpress.json", index)}, {"path": "modelpress.codec", "artifact": upload(client, "modelpress.codec", content)}]
    made = client.post("/v1/artifacts", json={"files": files, "kind": "images"}).json()
    assert made["format"] == "codec"
    return made["id"]


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    out = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    out.seek(0, io.SEEK_END)
    out.write(chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\0\0\0\0") + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b""))
    return out.getvalue()


JOBS = ({"method": "test_codec"}, {"method": "image", "candidates": ["jpeg", "learned"], "target": {"psnr": 30}})


@pytest.mark.parametrize("step", JOBS, ids=["test", "use"])
@pytest.mark.parametrize("at", ["step", "job"])
def test_anothers_codec_answers_like_an_unknown_one(alice, bob, problem, step, at):
    image, foreign, own = upload(bob, "x.png", png()), codec(alice, b"one"), codec(bob, b"one")

    def submit(codec_id: str):
        body = {"input": image, "recipe": {"steps": [step | ({"codec": codec_id} if at == "step" else {})]}} | ({"codec": codec_id} if at == "job" else {})
        return bob.post("/v1/jobs", json=body)

    told = [problem(submit(i), 404, "not-found", "/codec") for i in (foreign, "00000000-0000-4000-8000-000000000000")]
    assert [{k: v for k, v in t.items() if k not in ("instance", "request_id")} for t in told][0] == {k: v for k, v in told[1].items() if k not in ("instance", "request_id")}
    assert submit(own).status_code == 202


def test_a_result_depends_on_its_codec(api, alice):
    image, codecs = upload(alice, "x.png", png()), [codec(alice, b"one"), codec(alice, b"another"), codec(alice, b"one")]

    def key(codec_id: str) -> str:
        made = alice.post("/v1/jobs", json={"input": image, "recipe": {"steps": [{"method": "test_codec", "codec": codec_id}]}})
        with api.session() as s:
            return s.get(Job, made.json()["id"]).cache_key

    first, other, same = map(key, codecs)
    assert first != other and first == same  # by what it is, not by its id


def test_what_is_no_codec_is_refused(alice, problem):
    image = upload(alice, "x.png", png())
    told = problem(alice.post("/v1/jobs", json={"input": image, "recipe": {"steps": [{"method": "test_codec", "codec": image}]}}), 409, "upload-not-usable", "/codec")
    assert "train_codec" in told["detail"]
