"""Downloads: ranges, validators, sidecars, reports, the archive, and bytes that are no longer what they were."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import socket
import subprocess
import zipfile

import httpx
import pytest

from app.models import Artifact, ArtifactFile, Blob, Signature
from app.statement import artifact_digest
from app.storage import blob_key


def put(api, data: bytes) -> dict:
    size, sha256 = api.storage.put("tmp/test", [data])
    api.storage.promote("tmp/test", sha256)
    with api.session() as s, s.begin():
        s.merge(Blob(sha256=sha256, size=size))
    return {"size": size, "sha256": sha256}


def result(api, files: dict[str, bytes], sidecars: dict[str, bytes] | None = None, owner: str = "alice") -> str:
    """An artifact as the sign process writes it."""
    rows = [ArtifactFile(path=path, **put(api, data)) for path, data in files.items()]
    signatures = [Signature(file=name, **put(api, data)) for name, data in (sidecars or {}).items()]
    digest = artifact_digest([{"path": r.path, "size": r.size, "sha256": r.sha256} for r in rows])
    artifact = Artifact(owner=owner, kind="model", format="packed", name="result", digest=digest, size=sum(r.size for r in rows))
    artifact.files, artifact.signatures = rows, signatures
    with api.session() as s, s.begin():
        s.add(artifact)
    return artifact.id


@pytest.fixture(scope="module")
def data():
    return random.Random(1).randbytes((3 << 20) + 12345)


@pytest.fixture(scope="module")
def url(api, data):
    return f"/v1/artifacts/{result(api, {'model.bin': data})}/files/model.bin"


def test_a_file_and_what_is_said_about_it(alice, url, data):
    got, head = alice.get(url), alice.head(url)
    sha = hashlib.sha256(data)
    assert (got.status_code, got.content) == (200, data) and (head.status_code, head.content) == (200, b"")
    for r in (got, head):
        assert r.headers["etag"] == f'"{sha.hexdigest()}"' and r.headers["accept-ranges"] == "bytes"
        assert r.headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha.digest()).decode()}:"
        assert r.headers["content-length"] == str(len(data)) and r.headers["x-content-type-options"] == "nosniff"
        assert r.headers["content-disposition"] == "attachment; filename=\"model.bin\"; filename*=UTF-8''model.bin"


@pytest.mark.parametrize("text, expected", [("0-0", (0, 1)), ("5-9", (5, 10)), ("100-", (100, None)), ("-7", (-7, None)), ("0-99999999999999999999999", (0, None)), ("1048575-1048576", (1048575, 1048577))])
def test_one_range(alice, url, data, text, expected):
    got = alice.get(url, headers={"Range": f"bytes={text}"})
    part = data[slice(*expected)]
    start = expected[0] if expected[0] >= 0 else len(data) + expected[0]
    assert got.status_code == 206 and got.content == part
    assert got.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(data)}" and got.headers["content-length"] == str(len(part))


@pytest.mark.parametrize("text", ["-0", "99999999999999999999-", f"{10**4200}-", "9999999-"])
def test_a_range_outside(alice, url, data, problem, text):
    response = alice.get(url, headers={"Range": f"bytes={text}"})
    problem(response, 416, "range-not-satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(data)}"


@pytest.mark.parametrize("text", ["bytes=5-2", "bytes=abc", "bytes=-", "bytes=0-0,1-1", "bytes=" + ",".join(["0-9"] * 5000), "lines=1-2", "bytes=+1-2", "bytes=1_0-20", "bytes=\u0661-2"])
def test_what_is_no_single_range_gets_all(alice, url, data, text):
    got = alice.get(url, headers={"Range": text.encode()})
    assert got.status_code == 200 and got.content == data


def test_ranges_put_together_are_the_file(alice, url, data):
    rng, pieces, at = random.Random(2), [], 0
    while at < len(data):
        end = min(len(data), at + rng.randrange(1, 1 << 18))
        pieces.append(alice.get(url, headers={"Range": f"bytes={at}-{end - 1}"}).content)
        at = end
    assert b"".join(pieces) == data


def test_validators(alice, url, data):
    etag = alice.head(url).headers["etag"]
    assert alice.get(url, headers={"If-None-Match": f'"x", W/{etag}'}).status_code == 304
    assert alice.get(url, headers={"If-None-Match": '"x"'}).status_code == 200
    assert alice.get(url, headers={"Range": "bytes=1-2", "If-Range": etag}).content == data[1:3]
    whole = alice.get(url, headers={"Range": "bytes=1-2", "If-Range": '"old"'})
    assert whole.status_code == 200 and whole.content == data
    assert alice.head(url, headers={"Range": "bytes=1-2"}).status_code == 200


def test_an_empty_file(api, alice, problem):
    url = f"/v1/artifacts/{result(api, {'empty': b''})}/files/empty"
    assert alice.get(url).content == b"" and alice.get(url).headers["content-length"] == "0"
    for text in ("-1", "0-", "0-0"):
        problem(alice.get(url, headers={"Range": f"bytes={text}"}), 416, "range-not-satisfiable")


@pytest.mark.parametrize("name", ["a b/ü 日本.json", "100%.txt", "a?b#c.txt", "semi;colon,'quote'.bin"])
def test_paths_of_all_kinds(api, alice, name):
    ident = result(api, {name: b"data"})
    got = alice.get(httpx.URL(f"http://x/v1/artifacts/{ident}/files/").raw_path.decode() + "".join(f"%{b:02x}" if b != 0x2F else "/" for b in name.encode()))
    assert got.content == b"data" and "\n" not in got.headers["content-disposition"]


SIDECARS = {"SHA256SUMS": b"sums", "SHA256SUMS.sig": b"\x30\x00", "model.sig": b'{"bundle": 1}', "provenance.json": b'{"payload": ""}', "report.json": b'{"tensors": [{"name": "<b>x</b>", "action": "copied"}], "totals": {}}'}


def test_what_stands_beside_a_result(api, alice, problem):
    base = f"/v1/artifacts/{result(api, {'m.bin': b'x'}, SIDECARS)}"
    for name, data in SIDECARS.items():
        assert alice.get(f"{base}/files/{name}").content == data
    assert alice.get(f"{base}/signature").content == SIDECARS["model.sig"] and alice.get(f"{base}/provenance").content == SIDECARS["provenance.json"]
    assert alice.get(base).json()["signed"] and [f["path"] for f in alice.get(base).json()["files"]] == ["m.bin"]
    unsigned = f"/v1/artifacts/{result(api, {'m.bin': b'x'})}"
    for path in ("signature", "provenance", "report", "files/SHA256SUMS", "files/other", "files/", "files/../m.bin"):
        problem(alice.get(f"{unsigned}/{path}"), 404, "not-found")
    own = f"/v1/artifacts/{result(api, {'SHA256SUMS': b'of the model'}, SIDECARS)}"
    assert alice.get(f"{own}/files/SHA256SUMS").content == b"of the model"


def test_a_report_is_json_or_a_page(api, alice):
    url = f"/v1/artifacts/{result(api, {'m.bin': b'x'}, SIDECARS)}/report"
    for accept in ("application/json", "*/*", "application/json, text/html;q=0.5", "application/xml"):
        got = alice.get(url, headers={"Accept": accept})
        assert got.content == SIDECARS["report.json"] and got.headers["content-type"] == "application/json"
    page = alice.get(url, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html") and "&lt;b&gt;x&lt;/b&gt;" in page.text and "<b>" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_page_shows_quality(api, alice):
    report = {"tensors": [], "totals": {}, "quality": {"task": "causal-lm", "kl": 0.0123456789, "perplexity_after": None, "notes": ["<i>cut</i>"]}}
    url = f"/v1/artifacts/{result(api, {'m.bin': b'x'}, SIDECARS | {'report.json': json.dumps(report).encode()})}/report"
    page = alice.get(url, headers={"Accept": "text/html"}).text
    assert "<h2>quality</h2>" in page and "<td>kl</td><td>0.0123457</td>" in page and "&lt;i&gt;cut" in page and "<i>" not in page


def test_the_archive_is_a_zip(api, alice, tmp_path, data):
    files = {"sub/ü.bin": data, "a.json": b"{}", "empty": b""}
    url = f"/v1/artifacts/{result(api, files, SIDECARS)}/archive"
    head, got = alice.head(url), alice.get(url)
    assert head.headers["content-length"] == str(len(got.content)) and head.headers["etag"] == got.headers["etag"]
    with zipfile.ZipFile(io.BytesIO(got.content)) as z:
        assert z.testzip() is None and {n: z.read(n) for n in z.namelist()} == files | SIDECARS
        assert all(i.date_time == (1980, 1, 1, 0, 0, 0) and i.compress_type == 0 for i in z.infolist())
    (tmp_path / "x.zip").write_bytes(got.content)
    assert subprocess.run(["python3", "-m", "zipfile", "-t", tmp_path / "x.zip"], capture_output=True, text=True).stdout.strip() == "Done testing"
    rng = random.Random(3)
    for _ in range(40):
        start = rng.randrange(len(got.content))
        end = min(len(got.content), start + rng.choice([1, 10, 100, 1 << 20]))
        assert alice.get(url, headers={"Range": f"bytes={start}-{end - 1}"}).content == got.content[start:end]
    assert alice.get(url).content == got.content
    with zipfile.ZipFile(io.BytesIO(alice.get(f"/v1/artifacts/{result(api, {'report.json': b'mine'}, SIDECARS)}/archive").content)) as z:
        assert z.read("report.json") == b"mine" and z.read(".modelpress/report.json") == SIDECARS["report.json"]


HARM = {"flip": lambda d: d[:-1] + bytes([d[-1] ^ 1]), "gone": None, "short": lambda d: d[:-1], "empty": lambda d: b""}


def damage(api, data: bytes, how: str) -> None:
    key = blob_key(hashlib.sha256(data).hexdigest())
    api.storage.delete(key)
    if HARM[how] is not None:
        api.storage.put(key, [HARM[how](data)])


@pytest.mark.parametrize("how", HARM)
@pytest.mark.parametrize("size", [100, 5 << 20])
@pytest.mark.parametrize("known", [False, True])
def test_damaged_bytes_never_arrive_whole(api, alice, how, size, known):
    data = os.urandom(size)
    base = f"/v1/artifacts/{result(api, {'m.bin': data})}"
    if known:
        assert alice.get(f"{base}/files/m.bin").content == data
    damage(api, data, how)
    for path, headers in (("files/m.bin", {}), ("files/m.bin", {"Range": "bytes=0-50"}), ("files/m.bin", {"Range": f"bytes={size - 10}-"}), ("archive", {})):
        try:
            response = alice.get(f"{base}/{path}", headers=headers)
        except httpx.RemoteProtocolError:
            continue  # cut off
        assert (response.status_code, response.json()["type"]) in ((500, "storage-damaged"), (410, "quarantined"))


def test_a_slow_reader_holds_no_database(api, alice, url):
    """While one client does not read, others write."""
    with socket.create_connection(("127.0.0.1", api.port)) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.keys['alice']}\r\n\r\n".encode())
        assert s.recv(100).startswith(b"HTTP/1.1 200")
        with api.session() as db, db.begin():
            db.merge(Blob(sha256="0" * 64, size=0))
        assert alice.get("/v1/artifacts").status_code == 200
