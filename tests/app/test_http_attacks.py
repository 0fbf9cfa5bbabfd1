"""What strangers send over the wire, against a real server on either database: requests that two parsers read in two ways, lengths that are none, bodies
that are no JSON, headers that would leave their line. The principle, each time: refused with a problem (or the connection is closed), nothing of what
follows is taken for a request, and the server goes on."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from homes import DEFAULT, KINDS
from raw_http import CHUNKED, raw, request
from sqlalchemy import func, select

from app import http
from app.models import Job

HOSTILE = Path(__file__).parents[3] / "shared" / "hostile"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module", params=KINDS)
def served(request, tmp_path_factory, serve_api):
    with serve_api(tmp_path_factory.mktemp("attacked"), request.param, max_upload_bytes=str(1 << 20), upload_idle_timeout="2", rate_limit="") as api:
        yield api


ONE_DATABASE = pytest.mark.parametrize("served", [DEFAULT], indirect=True)  # what is answered before any row is read


@pytest.fixture(scope="module")
def artifact(served, model) -> str:
    with served.client() as c:
        made = c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model({"fc.weight": ("F32", [4, 8]), "fc.bias": ("F32", [4])}))
    return made.json()["id"]


FRAMING = {
    "negative": ["Content-Length: -1"],
    "signed": ["Content-Length: +5"],
    "hexadecimal": ["Content-Length: 0x10"],
    "no number": ["Content-Length: ten"],
    "empty": ["Content-Length:"],
    "underscore": ["Content-Length: 1_0"],
    "other digits": ["Content-Length: \xb2"],
    "beyond any number": ["Content-Length: " + "9" * 25],
    "beyond what Python reads": ["Content-Length: " + "9" * 5000],
    "two": ["Content-Length: 5", "Content-Length: 6"],
    "two in a line": ["Content-Length: 5, 6"],
    "two that are equal": ["Content-Length: 5", "content-length:5"],
    "two that are equal, in a line": ["Content-Length: 5, 5"],
    "a space within": ["Content-Length: 1 0"],
    "both": ["Content-Length: 5", CHUNKED],
    "both, the other way": [CHUNKED, "Content-Length: 5"],
    "unknown coding": ["Transfer-Encoding: xchunked"],
    "two codings": ["Transfer-Encoding: gzip, chunked"],
    "chunked twice": [CHUNKED, CHUNKED],
    "chunked, then identity": ["Transfer-Encoding: chunked, identity"],
    "vertical tab": ["Transfer-Encoding: \x0bchunked"],
    "space before the colon": ["Transfer-Encoding : chunked"],
    "chunked twice, in a line": ["Transfer-Encoding: chunked, chunked"],
    "quoted": ['Transfer-Encoding: "chunked"'],
    "folded": ["Transfer-Encoding:\r\n chunked"],
    "folded by a tab": ["X: a\r\n\tb", CHUNKED],
    "bare carriage return": [b"X: a\rTransfer-Encoding: chunked"],
    "a bare line feed at the end": [b"X: a\n"],
    "line feeds alone": [b"X: a\n\n"],
    "bare line feed": [b"X: a\nTransfer-Encoding: chunked"],
    "NUL in a value": ["X: a\0b"],
    "no colon": ["nonsense"],
    "empty name": [": value"],
}


@ONE_DATABASE
@pytest.mark.parametrize("case", FRAMING)
def test_framing_that_can_be_read_in_two_ways(served, case):
    answer = raw(served, request(served, *FRAMING[case], body=b"0\r\n\r\n" + SMUGGLED))
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    assert len(statuses) == 1 and statuses[0][:1] == b"4" and b"smuggled" not in answer, answer
    assert b"application/problem+json" in answer and b"connection: close" in answer.lower()


WHOLE = {
    "line feeds alone": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "folded into the request line": b"GET /healthz HTTP/1.1\r\n X: a\r\nHost: x\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "HTTP/0.9": b"GET /healthz HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /v1/verify HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two spaces": b"GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tab": b"GET\t/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the address": b"GET /health\0z HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
}


@ONE_DATABASE
@pytest.mark.parametrize("case", WHOLE)
def test_heads_that_are_none_first_or_pipelined(served, case):
    for before in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        answer = raw(served, before + WHOLE[case] + SMUGGLED)
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
        assert statuses == [b"200"] * bool(before) + [b"400"] and b"smuggled" not in answer, answer


def test_a_head_in_pieces_is_one_head(served):
    """Where the pieces are cut tells nothing: what is good stays good, and what is not is found."""
    good, bad = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n"
    for data, status in ((good, b"200"), (bad, b"400")):
        for at in range(len(data) - 6, len(data)):
            with socket.create_connection(("127.0.0.1", served.port), timeout=5) as s:
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in (data[: at - 20], data[at - 20 : at], data[at:]):
                    s.sendall(piece)
                    time.sleep(0.01)
                assert s.recv(100).startswith(b"HTTP/1.1 " + status)


SIZES = ["FFFFFFFFFFFFFFFFF", "-1", "0x10", "+5", "", " ", " 5", "5 ", "1_0", "g", "0" * 16 + "5", "5;a\rb", "5;a\nb", "5;\0", "5;" + "a" * 2000, ";a"]


@ONE_DATABASE
@pytest.mark.parametrize("size", SIZES, ids=repr)
def test_chunks_whose_size_is_none(served, size):
    answer = raw(served, request(served, CHUNKED, body=f"{size}\r\nhello\r\n0\r\n\r\n".encode() + SMUGGLED))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"400"] and b"smuggled" not in answer, answer


def test_trailers_say_nothing_about_the_body(served):
    """Read, and not taken for headers: neither the length nor the key."""
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    trailers = f"Content-Length: 3\r\nAuthorization: Bearer {served.keys['alice']}\r\n".encode()
    answer = raw(served, head + b"2;x=y\r\n{}\r\n0\r\n" + trailers + b"\r\n" + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 401") and len(re.findall(rb"HTTP/1\.1 (\d+)", answer)) <= 2
    for trailers in (b"X: a\nY: b\r\n", b"X: a\r\n b\r\n", b"Content-Length: 3\r\nContent-Length: 3\r\n"):
        answer = raw(served, request(served, CHUNKED, body=b"0\r\n" + trailers + b"\r\n" + SMUGGLED))
        assert answer.startswith(b"HTTP/1.1 4") and b"smuggled" not in answer


@ONE_DATABASE
def test_heads_without_end(served):
    flood = b"".join(b"X-%d: a\r\n" % i for i in range(10_000))
    for data, statuses in ((request(served, target="/" + "a" * 100_000), (b"414",)), (b"GET /" + b"a" * 2_000_000, (b"414",)), (request(served, b"X: " + b"a" * 2_000_000), (b"431",)), (request(served, flood), (b"431",))):
        assert raw(served, data)[9:12] in statuses
    assert served.rss() < 400 << 20


@ONE_DATABASE
def test_extensions_and_trailers_without_end(served):
    for body in (b"5;" + b"a" * (1 << 20) + b"\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n" + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n", b"5\r\nhello\r\n0\r\n" + b"X: a\r\n" * 100_000 + b"\r\n"):
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", raw(served, request(served, CHUNKED, body=body)))
        assert len(statuses) <= 1 and all(s[:1] == b"4" for s in statuses)


def test_what_follows_a_body_is_a_request_of_its_own_or_nothing(served):
    """A body longer than announced: the rest is not read as part of it, and what is no request closes the connection."""
    answer = raw(served, request(served, "Content-Length: 10", body=b"0123456789" + b"x" * 490), seconds=1)
    assert b"HTTP/1.1 2" not in answer.split(b"\r\n\r\n", 2)[-1] and len(re.findall(rb"HTTP/1\.1 (\d+)", answer)) <= 2


@ONE_DATABASE
def test_too_much_is_refused_before_it_is_read(served):
    begun = time.monotonic()
    for lines in (["Content-Length: 1048577", "Expect: 100-continue"], ["Content-Length: 99999999999999"]):
        answer = raw(served, request(served, *lines))
        assert answer.startswith(b"HTTP/1.1 413") and b"100 Continue" not in answer and b"payload-too-large" in answer
    piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    answer = raw(served, request(served, CHUNKED, body=piece * 20))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) in ([b"413"], [b"422"], []) and time.monotonic() - begun < 10
    assert not [name for name in served.stored() if name.startswith("tmp/")]


def test_a_body_that_breaks_off_or_stands_still_leaves_nothing(served):
    with socket.create_connection(("127.0.0.1", served.port)) as s:
        s.sendall(request(served, "Content-Length: 1000", body=bytes(500)))
    answer = raw(served, request(served, "Content-Length: 1000", body=(64).to_bytes(8, "little") + bytes(92)), seconds=10)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 4")), answer
    time.sleep(0.2)
    assert not [name for name in served.stored() if name.startswith("tmp/")]


DEEP = 100_000
BODIES = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep, cut off": b'{"a":[' * DEEP,
    "NaN": b'{"input": NaN}',
    "infinity": b'{"input": -Infinity}',
    "twice": b'{"input": 1, "input": 2}',
    "twice, escaped": b'{"input": 1, "\\u0069nput": 2}',
    "twice, deep down": b'{"recipe": {"steps": [{"method": "prune", "method": "lossless"}]}}',
    "two documents": b"{}{}",
    "a number of many digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "UTF-16": '{"input": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "a control character": b'{"a": "\x01"}',
    "single quotes": b"{'a': 1}",
    "a comment": b"{} // x",
    "nothing": b"",
}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/estimates", "/v1/comparisons", "/v1/artifacts", "/v1/verify", "/v1/api-keys"])
def test_bodies_that_are_no_json(served, problem, path):
    with served.client() as c:
        for name, body in BODIES.items():
            r = c.post(path, content=body, headers={"Content-Type": "application/json"})
            assert r.status_code in (400, 403) and r.headers["content-type"] == "application/problem+json", (name, r.text[:300])


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/estimates", "/v1/comparisons", "/v1/artifacts", "/v1/verify"])
def test_json_that_is_no_request(served, artifact, path):
    """Whatever stands where: a problem with a pointer, never an error of the service."""
    odd = [None, True, 0, -1, 1e308, 1e999, "", "x" * 5000, "\0", "\ud800", [], [[]], {}, {"": {}}, {"a": [[[[1e999]]]]}, {"__proto__": 1}, {"constructor": {"prototype": {}}}]
    names = ("input", "recipe", "recipes", "preset", "output", "gates", "budget", "seed", "tags", "webhook", "sanitize", "files", "bundle", "name", "kind")
    with served.client() as c:
        for value in odd:
            for body in (value, *({"input": artifact, "preset": "lossless"} | {name: value} for name in names)):
                r = c.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
                assert r.status_code < 500, (body, r.text[:300])


@pytest.mark.skipif(not HOSTILE.exists(), reason="shared/hostile is not here")
def test_the_hostile_specs(served, artifact, model, problem):
    other = {"$UPLOAD": artifact, "$OTHER": artifact}
    with served.client() as c:
        open_upload = c.post("/v1/uploads", headers={"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Upload-Metadata": "filename " + base64.b64encode(b"m").decode()})
        other |= {"$OPEN": open_upload.headers["location"].rsplit("/", 1)[1], "$REJECTED": c.post("/v1/artifacts", params={"name": "n.txt"}, content=b"x").json()["id"]}
        with served.session() as s:
            before = s.scalar(select(func.count()).select_from(Job))
        accepted = 0
        for case in json.loads((HOSTILE / "job_specs.json").read_text()):
            text = case.get("body_raw") or json.dumps(case["body"])
            for name, ident in other.items():
                text = text.replace(name, ident)
            r = c.post("/v1/jobs", content=text.encode("utf-16" if case["name"] == "raw_utf16" else "utf-8"), headers={"Content-Type": "application/json"})
            accepted += r.status_code == 202
            assert r.status_code < 500 and (r.status_code == 202 or r.json()["type"]), case["name"]
            assert (r.status_code == 202) <= (case["status"] == 202 or case["name"] in ("webhook_redirect", "webhook_nip", "model_rejected")), (case["name"], r.text)
    with served.session() as s:
        assert s.scalar(select(func.count()).select_from(Job)) == before + accepted


def test_headers_stay_in_their_line(served, model):
    with served.client() as c:
        name = 'x"\r\nSet-Cookie: a=b\r\n\r\n<script>.safetensors'
        made = c.post("/v1/artifacts", params={"name": name}, content=model()).json()
        r = c.get(f"/v1/artifacts/{made['id']}/files/{made['files'][0]['path']}")
        assert r.status_code == 200 and "set-cookie" not in r.headers and r.headers["content-type"] == "application/octet-stream"
        for sent in ("a\x1b[31mb", "a" * 10_000, "", "a b", "é"):
            r = c.get("/v1/formats", headers={"X-Request-Id": sent.encode()})
            assert re.fullmatch(r"[0-9a-f]{16}", r.headers["x-request-id"])
    (os.path.exists(served.home / "api.log")) and [json.loads(line) for line in (served.home / "api.log").read_text().splitlines()]  # each line one object


def test_every_answer_has_the_headers_that_keep_browsers_out(served):
    with served.client() as c:
        for method, path in (("GET", "/v1/artifacts"), ("GET", "/nothing"), ("GET", "/healthz"), ("POST", "/v1/jobs"), ("TRACE", "/v1/jobs"), ("OPTIONS", "/v1/jobs")):
            r = c.request(method, path, headers={"Origin": "https://evil.example", "X-HTTP-Method-Override": "DELETE", "X-Forwarded-Host": "evil.example"})
            assert r.headers["x-content-type-options"] == "nosniff" and r.headers["referrer-policy"] == "no-referrer"
            assert "frame-ancestors 'none'" in r.headers["content-security-policy"] and r.headers["x-frame-options"] == "DENY"
            assert "access-control-allow-origin" not in r.headers and "evil" not in str(r.headers) + r.text and "server" not in r.headers
        assert c.get("/v1/artifacts").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("target", ["/v1/jobs/%2e%2e/admin", "//v1/jobs", "/v1/jobs/..;/", "/v1//jobs", "/V1/jobs", "/v1/jobs%00", "/v1/artifacts/%2e%2e%2fjobs", "/v1/jobs/%C0%AE%C0%AE/", "http://evil/v1/nothing", "*"])
def test_paths_that_mean_something_else_elsewhere(served, target):
    answer = raw(served, request(served, "Connection: close", target=target, method="GET"))
    assert re.match(rb"HTTP/1\.1 4\d\d", answer) and b"evil" not in answer, answer


@pytest.mark.slow
def test_heads_that_never_end_are_closed_while_others_are_served(served):
    """300 connections that send a byte of a header each half second, for longer than the 15 seconds that a head may take."""
    left = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(300)]
    for s in left:
        s.setblocking(False)
        s.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ")
    end, waits = time.monotonic() + 20, []
    with served.client() as c:
        while left and time.monotonic() < end:
            begun = time.monotonic()
            assert c.get("/healthz").status_code == 200
            waits.append(time.monotonic() - begun)
            for s in list(left):
                try:
                    s.send(b"a")
                    if s.recv(4096) == b"":
                        left.remove(s)
                except BlockingIOError:
                    pass
                except ConnectionError:
                    left.remove(s)
            time.sleep(0.5)
    assert not left and max(waits) < 2


def test_the_server_still_serves(served):
    with served.client() as c:
        assert c.get("/v1/artifacts").status_code == 200
    log = (served.home / "api.log").read_text()
    assert "Traceback" not in log, log[-3000:]


def test_who_reads_too_slowly_is_closed_upon(monkeypatch):
    """One byte, and then nothing for longer than a piece may take. The time is shortened, so that it can be waited for."""
    monkeypatch.setattr(http, "STALL", 0.5)

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

    server = uvicorn.Server(uvicorn.Config(http.Gate(endless), port=0, http=http.Protocol, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", port))
            s.settimeout(10)
            s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert s.recv(1) == b"H"
            time.sleep(1)
            got = 0
            while piece := _until_closed(s):
                got += len(piece)
            assert got < 64 << 20  # what was on its way already
    finally:
        server.should_exit = True
        thread.join()


def _until_closed(s: socket.socket) -> bytes:
    try:
        return s.recv(1 << 16)
    except ConnectionError:
        return b""
