"""What strangers write into headers is read in one pass. The lengths are such that a second pass for each character would take hours."""

from __future__ import annotations


import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from app import auth, tus
from app.api.requests import announced_sha256, clean_name, media_type
from app.errors import ModelpressError
from app.formats import suffix
from app.http import MAX_HEADER_BYTES
from app.serve import _names, byte_range, disposition

LONG = 200_000
TEXTS = [before + c * LONG + after for c in (" ", ",", ", ", "a,", ".") for before, after in (("", "x"), ("bytes=", "x"), ("sha-256=:", "x"), ("filename ", "="))]


def request(name: str, value: str) -> Request:
    return Request({"type": "http", "headers": [(name.encode(), value.encode())]})


READERS = {
    "range": lambda text: byte_range(text, 10),
    "if-none-match": lambda text: _names(text, '"tag"'),
    "repr-digest": lambda text: announced_sha256(request("repr-digest", text)),
    "digest": lambda text: announced_sha256(request("digest", text)),
    "content-type": lambda text: media_type(request("content-type", text)),
    "authorization": lambda text: auth.identify(f"Basic {text}"),
    "upload-metadata": tus.metadata,
    "upload-checksum": tus.checksum,
    "upload-offset": lambda text: tus.number(Headers({"upload-offset": text}), "upload-offset"),
    "name": clean_name,
    "suffix": suffix,
    "disposition": disposition,
}


@pytest.mark.parametrize("name", READERS)
def test_one_pass(name):
    for text in TEXTS:
        try:
            READERS[name](text)
        except ModelpressError:
            pass


def test_a_name_stays_in_its_folder():
    assert disposition("a/../b\\c").startswith('attachment; filename="a_.._b_c";')


def test_headers_are_bounded_all_together(alice, problem):
    """As they come in one piece, they are whole before anybody counts them."""
    headers = {f"x-{i}": "a" * 3000 for i in range(23)}
    problem(alice.get("/v1/formats", headers=headers), 431, "headers-too-large")
    assert alice.get("/v1/formats", headers={"x-1": "a" * (MAX_HEADER_BYTES - 2000)}).status_code == 200


def test_no_redirect_repeats_the_host(alice):
    answer = alice.get("/v1/artifacts/", headers={"Host": "evil.example"})
    assert answer.status_code == 404 and "evil" not in str(answer.headers)
