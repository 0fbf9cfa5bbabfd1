"""shared/hostile/http_attacks.json, entry by entry, against a real server on either database: the answer is one of those that the entry names, and its
problem's type is. What cannot be run here is held elsewhere: `ELSEWHERE` says where, and the tests must be there.

Where the service answers otherwise on purpose, `TYPES` and `OTHERWISE` have its answer and why."""

from __future__ import annotations

import json
import re
import socket
import uuid
from pathlib import Path

import attack_races as races
import pytest
from homes import KINDS
from raw_http import CHUNKED, raw, request

from app.api_keys import create_key

LIST = Path(__file__).parents[3] / "shared" / "hostile" / "http_attacks.json"
if not LIST.exists():
    pytest.skip("shared/hostile is not here", allow_module_level=True)
ATTACKS = {a["name"]: a for a in json.loads(LIST.read_text())}
JSON = {"Content-Type": "application/json"}


class Attacker:
    """What the checks use: each returns answers, as (status, type of the problem); a connection that was closed without one is 0."""

    def __init__(self, api, model):
        self.api, self.model, self.c, self.bob = api, model, api.client(), api.client("bob")
        self.data = model({"fc.weight": ("F32", [4, 8])})
        self.artifact, self.file = self.upload()
        self.job = self.submit().json()["id"]

    def upload(self, name="m.safetensors", **headers):
        made = self.c.post("/v1/artifacts", params={"name": name}, content=self.data, headers=headers).json()
        return made["id"], f"/v1/artifacts/{made['id']}/files/{made['files'][0]['path']}"

    def submit(self, key=None, client=None, **more):
        return (client or self.c).post("/v1/jobs", json={"input": self.artifact, "preset": "lossless"} | more, headers={} if key is None else {"Idempotency-Key": key})

    def wire(self, *lines, **more):
        answer = raw(self.api, request(self.api, *lines, **more))
        head, _, body = answer.partition(b"\r\n\r\n")
        found = re.search(rb'"type": ?"([a-z-]+)"', body)
        return int(answer[9:12] or 0), found and found[1].decode()

    def get(self, path, client=None, method="GET", **headers):
        return (client or self.c).request(method, path, headers=headers)

    def link(self, **more):
        return self.c.post(f"/v1/artifacts/{self.artifact}/link", json={"path": self.file.split("/", 4)[4]} | more).json()["url"]

    def altered(self, *changes):
        url = self.link()
        with self.api.client(None) as nobody:
            return [nobody.get(change(url)) for change in changes]


def flip(url: str) -> str:
    return url[:-10] + ("A" if url[-10] != "A" else "B") + url[-9:]


def ended(a):
    before = a.submit(preset="lossless", seed=11).json()["id"]
    return [a.c.post(f"/v1/jobs/{before}/cancel") for _ in range(2)]


def before_its_start(a):
    cancelled, _ = ended(a)
    assert cancelled.status_code == 200 and cancelled.json()["state"] == "cancelled" and cancelled.json()["attempts"] == 0
    return []


def json_all_the_same(a):
    r = a.get("/v1/jobs", Accept="application/xml")
    assert r.status_code == 200 and r.headers["content-type"] == "application/json"
    return []


def orphan(a):
    ident, file = a.upload()
    url = a.c.post(f"/v1/artifacts/{ident}/link", json={"path": file.split("/", 4)[4]}).json()["url"]
    a.c.delete(f"/v1/artifacts/{ident}")
    with a.api.client(None) as nobody:
        return [nobody.get(url)]


def keyed(a, second=None, client=None):
    key = str(uuid.uuid4())
    first = a.submit(key)
    again = a.submit(key, **(second or {}))
    assert second or (again.json()["id"] == first.json()["id"] and again.headers["idempotency-replayed"] == "true")
    return [first, again] if not second else [again]


def scoped(a):
    with a.api.session() as s, s.begin():
        key = create_key(s, "alice", scope="read")
    return [a.c.post("/v1/jobs", json={"input": a.artifact, "preset": "lossless"}, headers={"Authorization": f"Bearer {key}"})]


def unkeyed(a):
    with a.api.client(None) as nobody:
        answers = [nobody.get("/v1/jobs", headers=h) for h in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp4"}, {"Authorization": f"Bearer {a.api.keys['alice'][:-1]}"})]
    assert all("www-authenticate" in r.headers for r in answers)
    return answers


def named(a):
    answers = [a.c.post("/v1/artifacts", params={"name": name}, content=a.data) for name in ("../../etc/x.safetensors", "/etc/x.safetensors", "a\0.safetensors", "a" * 4000 + ".safetensors", "CON.safetensors", "\u202ex.safetensors")]
    assert all("/" not in f["path"] for r in answers if r.status_code == 201 for f in r.json()["files"])
    return answers


def disposed(a):
    _, file = a.upload('x"\r\nSet-Cookie: a=b.safetensors')
    r = a.get(file)
    assert r.status_code == 200 and r.headers["content-disposition"].startswith('attachment; filename="') and "set-cookie" not in r.headers
    assert r.headers["x-content-type-options"] == "nosniff" and r.headers["content-type"] == "application/octet-stream"
    return []


def replaced(a):
    for sent in ("a\x1b[31mb", "a" * 10_000):
        assert re.fullmatch("[0-9a-f]{16}", a.get("/v1/formats", **{"X-Request-Id": sent}).headers["x-request-id"])
    return []


def logged(a):
    a.upload('x\n{"level": "error"}.safetensors')
    a.get('/v1/x%0a{"level":"error"}')
    assert all(isinstance(json.loads(line), dict) for line in (a.api.home / "api.log").read_text().splitlines() if line.startswith("{"))
    return []


def located(a):
    for header in ("Host", "X-Forwarded-Host", "Forwarded"):
        r = a.c.post("/v1/jobs", json={"input": a.artifact, "preset": "lossless"}, headers={header: "evil.example"})
        assert r.status_code == 202 and "evil" not in str(r.headers) + r.text
    return []


def foreign(a):
    paths = [f"/v1/artifacts/{a.artifact}", a.file, f"/v1/jobs/{a.job}", f"/v1/artifacts/{a.artifact}/report"]
    for path in paths:
        unknown = a.get(re.sub(r"[0-9a-f-]{32,36}", str(uuid.uuid4()), path), a.bob)
        mine = a.get(path, a.bob)
        assert {k: v for k, v in mine.json().items() if k != "request_id"} == {k: v for k, v in unknown.json().items() if k != "request_id"}
    return [a.get(path, a.bob) for path in paths]


def open_elsewhere(a):
    with a.api.client(None) as nobody:
        assert nobody.get("/debug").status_code == 404 and nobody.get("/metrics", headers={"X-Forwarded-For": "192.0.2.1"}).status_code in (401, 403, 404)
    return []


def parts(a, count=10_000):
    body = b"".join(b"--x\r\nContent-Disposition: form-data; name=a%d\r\n\r\n1\r\n" % i for i in range(count)) + b"--x--\r\n"
    return [a.c.post("/v1/jobs", content=body, headers={"Content-Type": kind}) for kind in ("multipart/form-data; boundary=x", "multipart/form-data")]


def shared(a):
    key = str(uuid.uuid4())
    a.submit(key)
    theirs = a.bob.post("/v1/artifacts", params={"name": "m.safetensors"}, content=a.data).json()["id"]
    answer = a.bob.post("/v1/jobs", json={"input": theirs, "preset": "lossless"}, headers={"Idempotency-Key": key})
    assert "idempotency-replayed" not in answer.headers
    return [answer]


def methods(a):
    assert a.get(f"/v1/artifacts/{a.artifact}", **{"X-HTTP-Method-Override": "DELETE"}).status_code == 200 and a.get(f"/v1/artifacts/{a.artifact}").status_code == 200
    return [a.get("/v1/jobs", method="TRACE"), a.get("/v1/jobs", method="CONNECT")]


def reflected(a):
    for origin in ("null", "https://evil.example"):
        assert "access-control-allow-origin" not in a.get("/v1/jobs", Origin=origin, Cookie="a=b").headers
    return []


def validated(a):
    r = a.get(a.file, Range="bytes=0-3", **{"If-Range": '"old"'})
    assert r.content == a.data
    return [r]


def broken_off(a):
    with socket.create_connection(("127.0.0.1", a.api.port)) as s:
        s.sendall(request(a.api, "Content-Length: 1000", body=bytes(500)))
    return []


def gzipped(a, *codings):
    return [a.c.post("/v1/jobs", content=b"\x1f\x8b\x08" + bytes(50), headers=JSON | {"Content-Encoding": coding}) for coding in codings]


def ranges(a, *texts):
    return [a.get(a.file, Range=f"bytes={text}") for text in texts]


CHECKS = {
    "cl_longer": broken_off,
    "cl_negative": lambda a: [a.wire("Content-Length: -1")],
    "cl_two": lambda a: [a.wire("Content-Length: 5", "Content-Length: 6")],
    "cl_and_te": lambda a: [a.wire("Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")],
    "te_obfuscated": lambda a: [a.wire("Transfer-Encoding: xchunked"), a.wire("Transfer-Encoding:\r\n chunked"), a.wire(CHUNKED, CHUNKED)],
    "cl_over_limit": lambda a: [a.wire("Content-Length: 9999999999", "Expect: 100-continue")],
    "chunked_over_limit": lambda a: [a.wire(CHUNKED, body=(b"10000\r\n" + bytes(1 << 16) + b"\r\n") * 20 + b"0\r\n\r\n")],
    "chunked_bad_size": lambda a: [a.wire(CHUNKED, body=size + b"\r\nhello\r\n0\r\n\r\n") for size in (b"FFFFFFFFFFFFFFFFF", b"-1", b"0x10")],
    "trailer_flood": lambda a: [a.wire(CHUNKED, body=body) for body in (b"5;" + b"a" * 10_000_000, b"0\r\n" + b"X: a\r\n" * 1_600_000)],
    "header_flood": lambda a: [a.wire(*(f"X-{i}: a" for i in range(10_000))), a.wire("X: " + "a" * 1_000_000)],
    "uri_long": lambda a: [a.wire(target="/v1/jobs?cursor=" + "a" * 100_000, method="GET")],
    "checksum_wrong": lambda a: [a.c.post("/v1/artifacts?name=m.safetensors", content=a.data, headers={"Repr-Digest": "sha-256=:" + "A" * 43 + "=:"})],
    "checksum_malformed": lambda a: [a.c.post("/v1/artifacts?name=m.safetensors", content=a.data, headers={"Repr-Digest": "sha-256=:zzz:"})],
    "checksum_absent": lambda a: [a.c.post("/v1/artifacts?name=m.safetensors", content=a.data)],
    "idem_same": keyed,
    "idem_diff_body": lambda a: keyed(a, {"seed": 5}),
    "idem_cross_tenant": shared,
    "idem_key_long": lambda a: [a.submit(key) for key in ("k" * 10_000, "a\tb", "")],
    "filename_traversal": named,
    "filename_header_injection": disposed,
    "host_injection": located,
    "request_id_injection": replaced,
    "log_injection": logged,
    "idor_read": foreign,
    "idor_write": lambda a: [a.bob.post(f"/v1/jobs/{a.job}/cancel"), a.bob.delete(f"/v1/artifacts/{a.artifact}"), a.bob.patch(f"/v1/artifacts/{a.artifact}", json={"expires_at": None})],
    "idor_reference": lambda a: [a.submit(client=a.bob)],
    "idor_list": lambda a: [a.get("/v1/jobs?cursor=alice", a.bob)],
    "mass_assign": lambda a: [a.submit(**{name: "x"}) for name in ("state", "owner", "id", "created_at", "status", "tenant_id")],
    "auth_none": unkeyed,
    "auth_scope": scoped,
    "url_tamper": lambda a: a.altered(flip, lambda u: u.replace("link=", "link=x&link="), lambda u: u.replace("files/", "files/x"), lambda u: u + "x"),
    "url_other_method": lambda a: [a.api.client(None).request(m, a.link()) for m in ("DELETE", "PUT")],
    "url_after_delete": orphan,
    "url_alg": lambda a: a.altered(lambda u: u.split("link=")[0] + "link=none", lambda u: u.split("link=")[0] + "link=../../x.y.z"),
    "url_length_ext": lambda a: a.altered(lambda u: u + "A" * 8, lambda u: u[:-4]),
    "cancel_twice": ended,
    "cancel_queued": before_its_start,
    "range_many": lambda a: ranges(a, ",".join(f"{i}-{i}" for i in range(2000))),
    "range_weird": lambda a: ranges(a, "-0", "5-2", "99999999999999999999-", "abc", "9" * 5000 + "-"),
    "range_if_range": validated,
    "gzip_bomb_json": lambda a: gzipped(a, "gzip"),
    "gzip_nested": lambda a: gzipped(a, "gzip, gzip, gzip"),
    "gzip_truncated": lambda a: gzipped(a, "gzip", "deflate", "br"),
    "multipart_bomb": parts,
    "wrong_ctype": lambda a: [a.c.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind}) for kind in ("text/xml", "application/json; charset=utf-7")],
    "accept_xml": json_all_the_same,
    "method_override": methods,
    "cors": reflected,
    "path_normalise": lambda a: [a.wire("Connection: close", target=t, method="GET") for t in ("/v1/jobs/%2e%2e/admin", "//v1/jobs", "/v1/jobs/..;/")],
    "metrics_open": open_elsewhere,
}
CHECKS |= {
    "cl_shorter": races.shorter,
    "chunked_endless": races.endless,
    "part_twice": races.twice_a_part,
    "complete_twice": races.completed_twice,
    "complete_race_abort": races.completed_or_given_up,
    "idem_inflight": lambda a: races.at_once(a, 2),
    "idem_100_parallel": lambda a: races.at_once(a, races.AT_ONCE),
    "idem_after_5xx": races.after_failure,
    "idem_expired": races.old_key,
    "id_guess": races.guessed,
    "auth_timing": races.prefixes,
    "url_replay_expired": races.expired,
    "url_after_rotate": races.rotated,
    "cancel_after_done": races.cancelled_late,
    "cancel_vs_finish": races.cancelled_or_finished,
    "delete_while_used": races.deleted_in_use,
    "delete_while_download": races.deleted_while_sent,
    "range_hash": races.ranges_hashed,
    "queue_full": races.without_broker,
}
ELSEWHERE = {
    "slowloris": ["app/test_http_attacks.py::test_heads_that_never_end_are_closed_while_others_are_served", "app/test_proxy.py::test_who_sends_slowly_is_closed_upon"],
    "slow_read": ["app/test_files.py::test_a_slow_reader_holds_no_database", "app/test_http_attacks.py::test_who_reads_too_slowly_is_closed_upon"],
    "cancel_running": ["service/test_life.py::test_cancel_ends_the_child_within_two_seconds"],
    "id_guess": ["app/test_rates.py::test_requests_over_the_rate_are_answered_429_on_all_processes_together"],
    "quota": ["app/test_quotas.py::test_what_has_no_room_is_refused_before_it_is_read_and_again_at_the_end", "app/test_quotas.py::test_jobs_over_the_number_are_refused_also_a_hundred_at_once"],
    "webhook_forge": ["app/test_webhook_secrets.py::test_an_old_one_is_refused_by_the_receiver", "app/test_webhook_secrets.py::test_the_public_library_takes_what_either_secret_signed"],
}
"""What takes a worker, a proxy, a receiver or a server with settings of its own."""
TYPES = {
    "auth_scope": "insufficient-scope",  # as RFC 6750 calls it
    "gzip_truncated": "unsupported-media-type",  # no coding is undone, so none is malformed
    "trailer_flood": "headers-too-large",
    **dict.fromkeys(("url_tamper", "url_alg", "url_length_ext", "url_replay_expired", "url_after_rotate"), "invalid-link"),  # which part of a link is wrong is nobody's business
}
"""The status is the listed one, its type is called otherwise here."""
OTHERWISE = {
    "idem_same": (202, None),  # a job is accepted, not yet made: DESIGN.md, "202 + Location"
    "idem_cross_tenant": (202, None),
    "multipart_bomb": (415, "unsupported-media-type"),  # no form is ever parsed, so none is looked at for what is wrong with it
    "url_other_method": (405, "method-not-allowed"),  # the address has no other method, for whoever holds a key either
    "url_after_delete": (404, "not-found"),  # a 410 would tell that there was something: an id that is gone answers as an unknown one
}


@pytest.fixture(scope="module", params=KINDS)
def attacker(request, tmp_path_factory, serve_api, model):
    with serve_api(tmp_path_factory.mktemp("listed"), request.param, max_upload_bytes=str(1 << 20), upload_idle_timeout="2", rate_limit="") as api:
        yield Attacker(api, model)


@pytest.mark.parametrize("name", [n for n in ATTACKS if n in CHECKS])
def test_every_attack_is_answered_as_expected(attacker, name):
    expected = {int(code) for code in re.findall(r"\b[2-5]\d\d\b", ATTACKS[name]["expect"])}
    answers = CHECKS[name](attacker)
    seen = [(r.status_code, r.json().get("type") if "json" in r.headers.get("content-type", "") else None) if hasattr(r, "status_code") else r for r in answers]
    wanted = {ATTACKS[name]["type"], TYPES.get(name)} if ATTACKS[name]["type"] else None
    for status, kind in seen:
        assert (status in expected and (status < 400 or wanted is None or kind in wanted)) or (status, kind) == OTHERWISE.get(name), (status, kind, ATTACKS[name])
    assert attacker.get("/healthz").status_code == 200


def test_what_is_held_elsewhere_is_there():
    tests = Path(__file__).parents[1]
    for name, places in ELSEWHERE.items():
        for file, test in (place.split("::") for place in places):
            assert f"def {test}(" in (tests / file).read_text(), (name, file, test)
    assert set(ATTACKS) <= set(CHECKS) | set(ELSEWHERE)
