"""tus 1.0 on a real API process: what it promises, and what it does when servers, clients and bytes are not as they should be."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import signal
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.models import Upload

V = {"Tus-Resumable": "1.0.0"}
PATCH = V | {"Content-Type": "application/offset+octet-stream"}


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def metadata(**said: str) -> str:
    return ",".join(f"{key} {b64(value)}" for key, value in said.items())


def begin(client: httpx.Client, length: int, name: str = "model.safetensors", content: bytes | None = None, **said) -> httpx.Response:
    headers = (PATCH if content is not None else V) | {"Upload-Length": str(length), "Upload-Metadata": metadata(filename=name, **said)}
    return client.post("/v1/uploads", headers=headers, content=content)


def begun(client: httpx.Client, length: int, **more) -> str:
    answer = begin(client, length, **more)
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


def patch(client: httpx.Client, url: str, offset: int, data, **headers: str) -> httpx.Response:
    return client.patch(url, headers=PATCH | {"Upload-Offset": str(offset)} | headers, content=data)


def head(client: httpx.Client, url: str) -> httpx.Response:
    return client.head(url, headers=V)


def offset(client: httpx.Client, url: str) -> int:
    answer = head(client, url)
    assert answer.status_code == 200, answer.headers
    return int(answer.headers["Upload-Offset"])


def same(client: httpx.Client, artifact: str, data: bytes) -> None:
    """The artifact is these bytes, as it says and as it is served."""
    view = client.get(f"/v1/artifacts/{artifact}").json()
    (file,) = view["files"]
    assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert client.get(f"/v1/artifacts/{artifact}/files/{file['path']}").content == data


@pytest.fixture
def data(model):
    return model({"w": ("F32", [100, 100])}, fill=b"\x07")


def test_in_two_parts(alice, data):
    url = begun(alice, len(data), kind="gradients")
    first = patch(alice, url, 0, data[:1000])
    assert (first.status_code, first.headers["Upload-Offset"], first.headers["Tus-Resumable"]) == (204, "1000", "1.0.0")
    assert first.headers["Upload-Expires"].endswith(" GMT") and "Upload-Artifact" not in first.headers
    asked = head(alice, url)
    assert (asked.headers["Upload-Offset"], asked.headers["Upload-Length"], asked.headers["Cache-Control"]) == ("1000", str(len(data)), "no-store")
    assert asked.headers["Upload-Metadata"] == metadata(filename="model.safetensors", kind="gradients")
    last = patch(alice, url, 1000, data[1000:])
    assert (last.status_code, last.headers["Upload-Offset"]) == (204, str(len(data)))
    artifact = last.headers["Upload-Artifact"]
    same(alice, artifact, data)
    assert alice.get(f"/v1/artifacts/{artifact}").json()["kind"] == "gradients"
    assert head(alice, url).headers["Upload-Artifact"] == artifact
    again = patch(alice, url, len(data), b"")
    assert (again.status_code, again.headers["Upload-Artifact"]) == (204, artifact)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
def test_a_checksum_keeps_wrong_bytes_out(alice, data, algorithm):
    url, said = begun(alice, len(data)), lambda part: f"{algorithm} {b64(hashlib.new(algorithm, part).digest())}"
    assert patch(alice, url, 0, data[:500], **{"Upload-Checksum": said(data[:500])}).status_code == 204
    refused = patch(alice, url, 500, b"x" * 500, **{"Upload-Checksum": said(data[500:1000])})
    assert (refused.status_code, refused.json()["type"], refused.headers["Tus-Resumable"]) == (460, "piece-mismatch", "1.0.0")
    assert offset(alice, url) == 500
    last = patch(alice, url, 500, data[500:], **{"Upload-Checksum": said(data[500:])})
    same(alice, last.headers["Upload-Artifact"], data)


def test_the_first_bytes_may_come_with_the_announcement(alice, data):
    answer = begin(alice, len(data), content=data[:300])
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "300")
    last = patch(alice, answer.headers["Location"], 300, data[300:])
    same(alice, last.headers["Upload-Artifact"], data)
    whole = begin(alice, len(data), content=data)
    assert (whole.status_code, whole.headers["Upload-Offset"]) == (201, str(len(data)))
    same(alice, whole.headers["Upload-Artifact"], data)


def test_nothing_at_all_is_a_file_too(alice):
    same(alice, begin(alice, 0, name="config.json").headers["Upload-Artifact"], b"")
    assert begin(alice, 0, name="model.bin").json()["type"] == "invalid-torch"


def test_capabilities_need_no_key(nobody):
    for path in ("/v1/uploads", "/v1/uploads/whatever"):
        answer = nobody.options(path)
        told = {h: answer.headers[h] for h in ("tus-version", "tus-resumable", "tus-extension", "tus-max-size", "tus-checksum-algorithm")}
        assert (answer.status_code, told) == (204, {
            "tus-version": "1.0.0", "tus-resumable": "1.0.0", "tus-extension": "creation,creation-with-upload,expiration,checksum,termination",
            "tus-max-size": str(1 << 30), "tus-checksum-algorithm": "sha1,sha256,md5",
        })  # fmt: skip


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0.0, 1.0.1", "x" * 1000])
def test_another_version_is_told_which_one_is_spoken(alice, data, problem, version):
    url, headers = begun(alice, len(data)), {"Tus-Resumable": version} if version else {}
    for method, path in (("POST", "/v1/uploads"), ("PATCH", url), ("DELETE", url), ("HEAD", url)):
        answer = alice.request(method, path, headers=headers | {"Upload-Length": "1", "Upload-Offset": "0"})
        assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")
        if method != "HEAD":
            problem(answer, 412, "unsupported-tus-version")
    assert offset(alice, url) == 0


@pytest.mark.parametrize("length", [None, "", "-1", "1.0", "1e3", "0x10", "٣", "1" * 30])
def test_a_length_is_a_number(alice, problem, length):
    headers = V | {"Upload-Metadata": metadata(filename="a.json")} | ({"Upload-Length": length.encode()} if length is not None else {})
    problem(alice.post("/v1/uploads", headers=headers), 400, "malformed-request")


def test_a_length_may_not_come_later(alice, problem):
    problem(alice.post("/v1/uploads", headers=V | {"Upload-Defer-Length": "1", "Upload-Metadata": metadata(filename="a.json")}), 400, "malformed-request")


@pytest.mark.parametrize(
    "header",
    ["", metadata(kind="model"), metadata(filename="a.json", kind="nonsense"), metadata(filename="a.json", sha256="abc"), "filename", "filename  YQ==",
     "filename YQ==,filename Yg==", "filename YQ", "filename Y Q==", "filename Y\xf6==", "filename /w==", f"filename {'A' * 5000}",
     "filename YQ==," + ",".join(f"k{i}" for i in range(40)), ",filename YQ=="],
)  # fmt: skip
def test_metadata_is_read_strictly(alice, problem, header):
    problem(alice.post("/v1/uploads", headers=V | {"Upload-Length": "3", "Upload-Metadata": header.encode("latin-1")}), 400, "malformed-request")


@pytest.mark.parametrize(
    "name, cleaned", [("../../etc/x.json", "x.json"), ("CON.json", "_CON.json"), ("a\u202e\r\nb.json", "ab.json"), ("/abs/é.json", "é.json")]
)
def test_names_are_cleaned(alice, name, cleaned):
    assert alice.get(begun(alice, 3, name=name)).json()["name"] == cleaned


def test_too_long_is_refused_before_a_byte(alice, problem):
    problem(begin(alice, (1 << 30) + 1), 413, "payload-too-large")


@pytest.mark.parametrize("value", [None, "", "-1", "1.5", "abc", "9" * 30])
def test_an_offset_is_a_number(alice, data, problem, value):
    headers = PATCH | ({"Upload-Offset": value} if value is not None else {})
    problem(alice.patch(begun(alice, len(data)), headers=headers, content=b"x"), 400, "malformed-request")


@pytest.mark.parametrize("header", ["", "sha1", "sha512 AAAA", "sha1 zzz", f"sha1 {b64(b'x' * 19)}", "SHA1 " + b64(b"x" * 20), "md5 " + "A" * 5000])
def test_a_checksum_is_read_strictly(alice, data, problem, header):
    url = begun(alice, len(data))
    problem(patch(alice, url, 0, data, **{"Upload-Checksum": header}), 400, "malformed-request")
    assert offset(alice, url) == 0


def test_a_wrong_offset_changes_nothing(alice, data, problem):
    url = begun(alice, len(data))
    patch(alice, url, 0, data[:100])
    for wrong in (0, 99, 101, len(data), 1 << 50):
        assert problem(patch(alice, url, wrong, data[wrong : wrong + 10]), 409, "offset-mismatch")["offset"] == 100
    same(alice, patch(alice, url, 100, data[100:]).headers["Upload-Artifact"], data)


def test_more_than_was_announced_is_refused(alice, data, problem):
    url = begun(alice, len(data))
    problem(patch(alice, url, 0, data + b"x"), 413, "payload-too-large")
    problem(patch(alice, url, 0, iter([data, b"x"])), 413, "payload-too-large")
    assert offset(alice, url) == 0
    same(alice, patch(alice, url, 0, iter([data[:9], data[9:]])).headers["Upload-Artifact"], data)
    problem(patch(alice, url, len(data), b"x"), 413, "payload-too-large")


def test_another_media_type_is_refused(alice, data, problem):
    url = begun(alice, len(data))
    problem(alice.patch(url, headers=PATCH | {"Upload-Offset": "0", "Content-Type": "application/octet-stream"}, content=data), 415, "unsupported-media-type")
    problem(patch(alice, url, 0, data, **{"Content-Encoding": "gzip"}), 415, "unsupported-media-type")
    assert offset(alice, url) == 0


def test_a_foreign_upload_is_as_an_unknown_one(alice, bob, data):
    mine, unknown = begun(alice, len(data)), "/v1/uploads/00000000-0000-4000-8000-000000000000"
    for method, headers in (("HEAD", V), ("GET", {}), ("PATCH", PATCH | {"Upload-Offset": "0"}), ("DELETE", V)):
        answers = [bob.request(method, path, headers=headers, content=b"x" if method == "PATCH" else None) for path in (mine, unknown)]
        for answer in answers:
            told = answer.content.replace(answer.headers["x-request-id"].encode(), b"")
            assert (answer.status_code, told) == (404, answers[1].content.replace(answers[1].headers["x-request-id"].encode(), b""))
    assert offset(alice, mine) == 0


def test_without_a_key_not_a_byte_is_read(api, alice, data, nobody, problem):
    url = begun(alice, len(data))
    for method, path in (("POST", "/v1/uploads"), ("PATCH", url), ("HEAD", url), ("GET", url), ("DELETE", url)):
        assert nobody.request(method, path, headers=V).status_code == 401
    with socket.create_connection(("127.0.0.1", api.port)) as s:
        headers = "Host: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        s.sendall(f"PATCH {url} HTTP/1.1\r\n{headers}".encode())
        assert s.recv(1000).startswith(b"HTTP/1.1 401")


def test_what_is_not_what_was_announced_is_refused_for_good(api, alice, data, problem):
    for announced in ({"sha256": "0" * 64}, {}):
        headers = V | {"Upload-Length": str(len(data)), "Upload-Metadata": metadata(filename="model.safetensors", **announced)}
        url = alice.post("/v1/uploads", headers=headers | ({} if announced else {"Repr-Digest": f"sha-256=:{b64(bytes(32))}:"})).headers["Location"]
        patch(alice, url, 0, data[:10])
        refused = problem(patch(alice, url, 10, data[10:]), 422, "checksum-mismatch")
        assert hashlib.sha256(data).hexdigest() in refused["detail"]
        assert problem(patch(alice, url, 10, data[10:]), 422, "checksum-mismatch") == refused
        assert head(alice, url).status_code == 422
        assert alice.get(url).json()["error"] == refused
        assert not [p for p in api.stored() if url.rsplit("/", 1)[1] in p]


def test_two_announcements_must_agree(alice, data, problem):
    headers = V | {"Upload-Length": "3", "Upload-Metadata": metadata(filename="a.json", sha256="0" * 64), "Repr-Digest": f"sha-256=:{b64(b'1' * 32)}:"}
    problem(alice.post("/v1/uploads", headers=headers), 400, "malformed-request")


def test_the_right_announcement_is_kept(alice, data):
    url = begun(alice, len(data), sha256=hashlib.sha256(data).hexdigest().upper())
    same(alice, patch(alice, url, 0, data).headers["Upload-Artifact"], data)


def test_a_hopeless_file_is_refused_by_its_head(alice, problem):
    url = begun(alice, 1 << 29)
    assert patch(alice, url, 0, b"\xff\xff\xff").status_code == 204
    problem(patch(alice, url, 3, b"\xff" * 600), 422, "invalid-safetensors")
    assert head(alice, url).status_code == 422


def test_termination(api, alice, data):
    url = begun(alice, len(data))
    patch(alice, url, 0, data[:100])
    assert alice.delete(url, headers=V).status_code == 204
    assert (head(alice, url).status_code, patch(alice, url, 100, data[100:]).status_code, alice.delete(url, headers=V).status_code) == (404, 404, 404)
    assert not [p for p in api.stored() if url.rsplit("/", 1)[1] in p]
    artifact = patch(alice, whole := begun(alice, len(data)), 0, data).headers["Upload-Artifact"]
    assert alice.delete(whole, headers=V).status_code == 204
    same(alice, artifact, data)


def test_a_deleted_upload_makes_no_artifact(alice, data):
    url = begun(alice, len(data))

    def slow():
        yield data[:100]
        assert alice.delete(url, headers=V).status_code == 204
        yield data[100:]

    with httpx.Client(base_url=alice.base_url, headers=alice.headers) as other:
        before = alice.get("/v1/artifacts").json()["items"][:1]
        assert patch(other, url, 0, slow()).status_code == 404
    assert alice.get("/v1/artifacts").json()["items"][:1] == before


def half(api, url: str, offset: int, data: bytes, length: int) -> socket.socket:
    """A PATCH that announces `length` bytes and sends `data`; it stays open."""
    s = socket.create_connection(("127.0.0.1", api.port))
    request = f"PATCH {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.keys['alice']}\r\nContent-Length: {length}\r\nUpload-Offset: {offset}\r\n"
    s.sendall(request.encode() + "".join(f"{k}: {v}\r\n" for k, v in PATCH.items()).encode() + b"\r\n" + data)
    return s


def row(api, url: str) -> Upload:
    with api.session() as s:
        return s.get_one(Upload, url.rsplit("/", 1)[1])


def writing(api, url: str) -> bool:
    """Whether a request holds the upload."""
    return row(api, url).lease_until is not None


def until(wanted, seconds: float = 20):
    """What `wanted` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_of_parallel_writers_one_writes(api, alice, data):
    url = begun(alice, len(data))
    with ExitStack() as stack:
        writers = [stack.enter_context(half(api, url, 0, data[:1000], len(data))) for _ in range(8)]
        for writer in writers:
            with suppress(ConnectionError):
                writer.sendall(data[1000:])
        answers = [writer.recv(4000).decode() for writer in writers]
    told = sorted(a.split()[1] for a in answers)
    assert told[0] == "204" and set(told[1:]) <= {"409", "423"}
    same(alice, head(alice, url).headers["Upload-Artifact"], data)


def test_what_a_killed_client_has_sent_is_kept(api, alice, data):
    url = begun(alice, len(data))
    with half(api, url, 0, data[:1234], len(data)):
        time.sleep(0.2)
    until(lambda: offset(alice, url) == 1234)
    with half(api, url, 1234, data[1234:2000], len(data) - 1234) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    at = until(lambda: (answer := patch(alice, url, offset(alice, url), b"")).status_code == 204 and int(answer.headers["Upload-Offset"]))
    assert at in (1234, 2000)
    same(alice, patch(alice, url, at, data[at:]).headers["Upload-Artifact"], data)


def test_a_client_that_falls_silent_lets_go(api, alice, data):
    url = begun(alice, len(data))
    with half(api, url, 0, data[:1234], len(data)) as s:
        until(lambda: writing(api, url))
        assert patch(alice, url, 0, b"").status_code == 423
        assert b" 408 " in s.recv(100)
    assert offset(alice, url) == 1234
    same(alice, patch(alice, url, 1234, data[1234:]).headers["Upload-Artifact"], data)


@contextmanager
def another(serve_api, first, **settings: str):
    """One more API process on the home and the database of `first`."""
    with serve_api(first.home, database_url=first.engine.url.render_as_string(hide_password=False), **settings) as made:
        yield dataclasses.replace(made, engine=first.engine, keys=first.keys)


def test_a_killed_server_goes_on_where_it_was(tmp_path, serve_api, model):
    data = model({"w": ("F32", [1000, 3000])})

    def killed(api, url: str) -> None:
        with api.client() as client, half(api, url, start := offset(client, url), data[start : start + 5_000_000], len(data) - start):
            until(lambda: offset(client, url) > start)
            os.kill(api.pid, signal.SIGKILL)

    with serve_api(tmp_path, upload_piece="100000") as one, one.client() as client:
        url = begun(client, len(data))
        killed(one, url)
        with another(serve_api, one, upload_piece="100000") as two:
            killed(two, url)
        with another(serve_api, one) as three, three.client() as client:
            start = offset(client, url)
            assert 200_000 <= start < len(data)
            same(client, patch(client, url, start, data[start:]).headers["Upload-Artifact"], data)


@pytest.mark.slow
def test_two_servers_take_turns(tmp_path, serve_api, data):
    with serve_api(tmp_path) as one, another(serve_api, one) as two, one.client() as a, two.client() as b:
        url, at = begun(a, len(data)), 0
        for turn, size in enumerate((10, 7000, 1, 0, 4096, len(data))):
            answer = patch((a, b)[turn % 2], url, at, data[at : at + size])
            assert answer.status_code == 204 and offset((b, a)[turn % 2], url) == (at := min(at + size, len(data)))
        same(a, answer.headers["Upload-Artifact"], data)


@pytest.mark.slow
def test_a_writer_that_sleeps_is_waited_for(tmp_path, serve_api, data):
    """Its process may wake up at any time and write, so nobody else does before it has ended, whatever the lease says."""
    with serve_api(tmp_path, lease="0.2", heartbeat="0.1") as one, another(serve_api, one) as two, two.client() as client:
        url = begun(client, len(data))
        with half(one, url, 0, data[:5000], len(data)) as s:
            s.settimeout(10)
            until(lambda: writing(one, url))
            os.kill(one.pid, signal.SIGSTOP)
            time.sleep(0.5)
            assert patch(client, url, 0, b"x" * 100).status_code == 423
            os.kill(one.pid, signal.SIGCONT)
            s.sendall(data[5000:])
            assert s.recv(1000).startswith(b"HTTP/1.1 204")
        same(client, head(client, url).headers["Upload-Artifact"], data)


def test_open_uploads_are_counted(tmp_path, serve_api, data, problem):
    with serve_api(tmp_path, max_open_uploads="3") as api, api.client() as alice, api.client("bob") as bob:
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(lambda _: begin(alice, len(data)), range(8))]
        assert sorted(a.status_code for a in answers) == [201] * 3 + [429] * 5
        problem(next(a for a in answers if a.status_code == 429), 429, "quota-exceeded")
        assert begin(bob, len(data)).status_code == 201
        urls = [a.headers["Location"] for a in answers if a.status_code == 201]
        patch(alice, urls[0], 0, data)
        alice.delete(urls[1], headers=V)
        assert [begin(alice, len(data)).status_code for _ in range(3)] == [201, 201, 429]


def test_an_upload_expires(tmp_path, serve_api, data):
    with serve_api(tmp_path, upload_ttl="1") as api, api.client() as client:
        url = begun(client, len(data))
        until(lambda: head(client, url).status_code == 404)
        assert patch(client, url, 0, data).status_code == 404


_operations = st.lists(
    st.tuples(st.sampled_from(["patch", "chunked", "again", "beyond", "abort", "checked", "wrong", "reset"]), st.integers(0, 6000), st.integers(0, 50)),
    max_size=12,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory, serve_api):
    """A server that commits every few bytes."""
    with serve_api(tmp_path_factory.mktemp("small"), upload_piece="1000", max_open_uploads="1000") as api, api.client() as client:
        yield api, client


@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=_operations, fill=st.binary(min_size=1, max_size=3))
def test_whatever_happens_on_the_way_the_digest_is_right(small, model, operations, fill):
    api, client = small
    data = model({"w": ("F32", [60, 30])})
    data = data[:-6000] + (fill * 6000)[:6000]
    url = begun(client, len(data))
    for what, size, back in operations:
        at = until(lambda: (asked := patch(client, url, (o := offset(client, url)), b"")).status_code == 204 and (o,))[0]
        part = data[at : at + size]
        if at == len(data):
            break
        if what in ("patch", "chunked"):
            answer = patch(client, url, at, part if what == "patch" else iter([part[: size // 2], part[size // 2 :]]))
            assert int(answer.headers["Upload-Offset"]) == at + len(part)
        elif what in ("again", "beyond"):
            moved = at - back if what == "again" else at + back
            if moved != at and moved >= 0:
                assert patch(client, url, moved, b"x" * min(size, len(data) - at)).status_code == 409
        elif what in ("abort", "reset") and part:
            before = row(api, url).fence
            with half(api, url, at, part[:-1], len(part)) as s:
                until(lambda: row(api, url).fence > before)
                if what == "reset":
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif what in ("checked", "wrong") and part:
            sent = part if what == "checked" else bytes(b ^ 1 for b in part)
            answer = patch(client, url, at, sent, **{"Upload-Checksum": f"sha1 {b64(hashlib.sha1(part).digest())}"})
            assert answer.status_code == (204 if what == "checked" else 460)
    at = until(lambda: (asked := patch(client, url, (o := offset(client, url)), b"")).status_code == 204 and (o,))[0]
    same(client, patch(client, url, at, data[at:]).headers["Upload-Artifact"], data)
