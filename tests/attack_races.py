"""Those of shared/hostile/http_attacks.json that take two at once, a clock, or what only the database can bring about. Each returns answers, as `test_attack_list.Attacker` has it."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from raw_http import CHUNKED, raw, request
from sqlalchemy import func, select, update

from app import jobs, links
from app.customer_keys import headers_of
from app.models import CANCELLED, RUNNING, SIGNING, SUCCEEDED, Artifact, IdempotencyKey, Job, Outbox, Secret
from app.recipients import Identity

TUS = {"Tus-Resumable": "1.0.0"}
PATCH = TUS | {"Content-Type": "application/offset+octet-stream"}
RANGES, GUESSES, RACES, AT_ONCE = 1000, 200, 100, 100


def together(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result() for f in [pool.submit(call) for call in calls]]


def begun(a) -> str:
    return a.c.post("/v1/uploads", headers=TUS | {"Upload-Length": str(len(a.data)), "Upload-Metadata": "filename bS5zYWZldGVuc29ycw=="}).headers["location"]


def patched(a, place, offset, data):
    return a.c.patch(place, headers=PATCH | {"Upload-Offset": str(offset)}, content=data)


def shorter(a):
    """The ten bytes are a file; what follows them is no request."""
    with a.api.session() as s:
        before = s.scalar(select(func.count()).select_from(Artifact))
    body = b'{"a": 123}' + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n".ljust(490, b"x")
    answer = raw(a.api, request(a.api, "Content-Length: 10", body=body, target="/v1/artifacts?name=config.json"))
    with a.api.session() as s:
        assert s.scalar(select(func.count()).select_from(Artifact)) == before + 1
    assert answer.startswith(b"HTTP/1.1 201") and b"smuggled" not in answer
    return [(int(part[9:12]), None) for part in answer.split(b"\r\n\r\n") if part.startswith(b"HTTP/1.1 201")]


def endless(a):
    """The next byte would come after ten seconds; the server's patience (here 2 s) ends before."""
    answer = raw(a.api, request(a.api, CHUNKED, body=b"1\r\nx\r\n"), seconds=8)
    assert b"request-timeout" in answer
    return [(int(answer[9:12]), "request-timeout")]


def twice_a_part(a):
    place, half = begun(a), len(a.data) // 2
    assert patched(a, place, 0, a.data[:half]).status_code == 204
    again = patched(a, place, 0, bytes(half))
    assert again.status_code == 409 and again.json()["type"] == "offset-mismatch" and again.json()["offset"] == half
    whole = patched(a, place, half, a.data[half:]).headers["upload-artifact"]
    assert a.get(f"/v1/artifacts/{whole}/files/m.safetensors").content == a.data
    assert patched(a, place, half, a.data[half:]).status_code == 409
    return []


def completed_twice(a):
    """One of them makes the artifact; the other one is told that the upload is being written, or has gone on."""
    place, half = begun(a), len(a.data) // 2
    patched(a, place, 0, a.data[:half])
    found = together(*[lambda: patched(a, place, half, a.data[half:])] * 2)
    assert sorted(r.status_code for r in found)[0] == 204 and {r.status_code for r in found} <= {204, 409, 423}
    made = {r.headers["upload-artifact"] for r in found if r.status_code == 204}
    assert made == {a.get(place).json()["artifact"]}
    return []


def completed_or_given_up(a):
    for _ in range(5):
        place = begun(a)
        done, dropped = together(lambda: patched(a, place, 0, a.data), lambda: a.c.delete(place, headers=TUS))
        assert dropped.status_code == 204 and done.status_code in (204, 404, 423)
        if done.status_code == 204:  # then its artifact stays
            assert a.get(f"/v1/artifacts/{done.headers['upload-artifact']}").status_code == 200
        assert a.get(place).status_code == 404
    return []


def at_once(a, count):
    key = str(uuid.uuid4())
    with a.api.session() as s:
        before = s.scalar(select(func.count()).select_from(Job))
    found = together(*[lambda: a.submit(key, seed=77)] * count)
    with a.api.session() as s:
        assert s.scalar(select(func.count()).select_from(Job)) == before + 1
    assert {r.status_code for r in found} == {202} and len({r.json()["id"] for r in found}) == 1
    return []


def after_failure(a):
    """The first answer is a 503, from before anything was committed: there is no worker for the key that comes along."""
    key, brought = str(uuid.uuid4()), headers_of(os.urandom(32))
    body = {"input": a.artifact, "preset": "lossless"}
    first = a.c.post("/v1/jobs", json=body, headers=brought | {"Idempotency-Key": key})
    assert (first.status_code, first.json()["type"], first.headers["retry-after"]) == (503, "nobody-for-customer-key", "5")
    with a.api.session() as s, s.begin():
        Identity("somebody", ("compress.cpu",)).tell(s)
    answers = [a.c.post("/v1/jobs", json=body, headers=brought | {"Idempotency-Key": key}) for _ in range(2)]
    assert [r.status_code for r in answers] == [202, 202] and answers[0].json()["id"] == answers[1].json()["id"]
    return []


def old_key(a):
    key = str(uuid.uuid4())
    first = a.submit(key).json()["id"]
    with a.api.session() as s, s.begin():
        s.execute(update(IdempotencyKey).where(IdempotencyKey.key == key).values(created_at=IdempotencyKey.created_at - 24 * 3600 - 1))
    assert a.submit(key).json()["id"] != first
    return []


def guessed(a):
    version = [uuid.UUID(ident).version for ident in (a.artifact, a.job)]
    assert version == [4, 4]
    near = int(a.artifact.replace("-", ""), 16)
    guesses = [str(uuid.UUID(int=(near + i) % (1 << 128))) for i in range(1, GUESSES // 2)] + [str(uuid.uuid4()) for _ in range(GUESSES // 2)]
    answers = [a.get(f"/v1/artifacts/{guess}", a.bob) for guess in guesses]
    assert {(r.status_code, r.json()["detail"]) for r in answers} == {(404, "there is no such artifact")}
    return answers[:1]


def prefixes(a):
    """Every beginning of a key, and every key that differs in its last character, is answered alike."""
    key = a.api.keys["alice"]
    with a.api.client(None) as nobody:
        answers = [nobody.get("/v1/jobs", headers={"Authorization": f"Bearer {guess}"}) for guess in (*(key[:n] for n in range(4, len(key))), *(key[:-1] + c for c in "AB" if c != key[-1]))]
    assert {(r.status_code, r.json()["detail"]) for r in answers} == {(401, answers[0].json()["detail"])}
    return []


def expired(a):
    """The clock stands at a second before the expiry, at it, and a second after: what is signed moves."""
    path = a.file
    with a.api.session() as s:
        secret, at = s.scalar(select(Secret.value).where(Secret.name == links.NAME)) or "", time.time()
    if not secret:
        a.link()
        return expired(a)
    with a.api.client(None) as nobody:

        def opened(expires: int):
            return nobody.get(f"{path}?link={expires}.{links._encoded(b'alice')}.{links._signature(secret, path, 'alice', expires)}")

        assert opened(int(at) + 5).status_code == 200
        return [opened(int(at) - 1), opened(int(at) - 3600)]


def rotated(a):
    """There is one secret and no grace: once it is another one, links that it signed open nothing, from the next request on."""
    url = a.link()
    with a.api.client(None) as nobody:
        assert nobody.get(url).status_code == 200
        with a.api.session() as s, s.begin():
            s.execute(update(Secret).where(Secret.name == links.NAME).values(value="another" * 6))
        return [nobody.get(url)]


def set_state(a, ident, state):
    with a.api.session() as s, s.begin():
        s.execute(update(Job).where(Job.id == ident).values(state=state))


def cancelled_late(a):
    ident = a.submit(seed=78).json()["id"]
    set_state(a, ident, SUCCEEDED)
    answer = a.c.post(f"/v1/jobs/{ident}/cancel")
    assert a.get(f"/v1/jobs/{ident}").json()["state"] == "succeeded"
    return [answer]


def cancelled_or_finished(a):
    """A worker hands its job over while a cancel comes: one of the two takes place, and the loser is told."""
    seen = set()
    for turn in range(RACES):
        ident = a.submit(seed=1000 + turn).json()["id"]
        set_state(a, ident, RUNNING)
        go = threading.Barrier(2)

        def finish(ident=ident, go=go):
            go.wait()
            with a.api.session() as s, s.begin():
                return jobs.handoff(s, ident, 0, {"files": [], "prefix": None})

        def cancel(ident=ident, go=go):
            go.wait()
            return a.c.post(f"/v1/jobs/{ident}/cancel").status_code

        finished, status = together(finish, cancel)
        state = {True: SIGNING, False: CANCELLED}[finished]
        assert status == (409 if finished else 200) and a.get(f"/v1/jobs/{ident}").json()["state"] == state
        seen.add(state)
        set_state(a, ident, CANCELLED)
    return []


def deleted_in_use(a):
    answer = a.c.delete(f"/v1/artifacts/{a.artifact}")
    assert a.get(a.file).content == a.data
    return [answer]


def deleted_while_sent(a):
    data = a.model({"fc.weight": ("U8", [900_000])}, os.urandom(1))
    made = a.c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()["id"]
    got = hashlib.sha256()
    with a.c.stream("GET", f"/v1/artifacts/{made}/files/m.safetensors") as r:
        for i, piece in enumerate(r.iter_raw(1 << 16)):
            if not i:
                assert a.bob.get("/healthz").status_code == 200 and a.api.client().delete(f"/v1/artifacts/{made}").status_code == 204
            got.update(piece)
    assert got.hexdigest() == hashlib.sha256(data).hexdigest()
    return []


def ranges_hashed(a):
    data = a.model({"fc.weight": ("U8", [500_000])}, os.urandom(1))
    made = a.c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()
    cuts = [0, *sorted(random.Random(1).sample(range(1, len(data)), RANGES - 1)), len(data)]
    file = f"/v1/artifacts/{made['id']}/files/m.safetensors"
    got = hashlib.sha256(b"".join(a.get(file, Range=f"bytes={low}-{high - 1}").content for low, high in zip(cuts, cuts[1:], strict=False)))
    assert got.hexdigest() == made["files"][0]["sha256"]
    return []


def without_broker(a):
    """The broker of this server is away: a job is accepted all the same, since its row and its wake-up are committed, and the sweep wakes the queue."""
    ident = a.submit(seed=79).json()["id"]
    with a.api.session() as s:
        assert s.get(Job, ident) is not None and s.scalar(select(func.count()).where(Outbox.topic == "compress.cpu"))
    return []
