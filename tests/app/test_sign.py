"""The sign task on a real database and a real store; tests/service has it as a process."""

from __future__ import annotations

import base64
import hashlib
import json
import time

import pytest
from celery.worker import state
from homes import own_home
from lossy import HOW, lossy
from postgres import server
from sqlalchemy import select, update

from app import pause, sign, signing
from app.config import settings
from app.db import now, session
from app.errors import StorageFull, Unavailable
from app.models import FAILED, SIGNING, SUCCEEDED, Artifact, ArtifactFile, Blob, Job, Meter
from app.storage import Storage, blob_key
from app.verify import verify_folder

SPEC = {"recipe": {"steps": [{"method": "lossless"}]}, "output": {"format": "packed"}, "gates": {}, "sanitize": "report", "seed": 0, "device": "auto"}
FILES = {"model.packed.safetensors": bytes(range(256)) * 40, "sub/config.json": b"{}"}
REPORT = {"tensors": [], "totals": {"bytes_after": 10242}, "gates": {}}


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    with own_home(tmp_path / "home") as folder:
        yield folder


@pytest.fixture
def storage(home):
    return Storage()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def waiting(storage, files=FILES, report=REPORT, cached=False, **spec) -> str:
    """A job whose worker has just handed it over; returns its id."""
    report = json.dumps(report).encode()
    prefix = "tmp/worker/1"
    everything = {f"files/{p}": d for p, d in files.items()} | {"report.json": report}
    with session() as s, s.begin():
        s.add(Blob(sha256="d" * 64, size=3))
        source = Artifact(id="in", owner="o", kind="model", format="safetensors", name="m", digest="c" * 64, size=3)
        source.files = [ArtifactFile(path="m", size=3, sha256="d" * 64)]
        s.add(source)
        if cached:
            s.add_all(Blob(sha256=sha(d), size=len(d)) for d in everything.values())
        s.flush()
        handoff = {
            "prefix": None if cached else prefix,
            "files": [{"path": p, "size": len(d), "sha256": sha(d)} for p, d in files.items()],
            "report": {"path": "report.json", "size": len(report), "sha256": sha(report)},
            "format": "packed", "name": "small", "environment": {"python": "3.11"}, "started": 1.0, "ended": 2.0,
        }  # fmt: skip
        s.add(Job(id="job", owner="o", input_id="in", spec=SPEC | spec, state=SIGNING, handoff=handoff, cached=cached, fence=1))
    for name, data in everything.items():
        storage.put(f"{prefix}/{name}", [data])
        if cached:
            storage.promote(f"{prefix}/{name}", sha(data))
    return "job"


def job() -> Job:
    with session() as s:
        return s.get_one(Job, "job")


def fetched(storage, folder):
    """The artifact of the job, laid out as a download does it."""
    with session() as s:
        artifact = s.get_one(Artifact, job().output_id)
    for path, row in [(f.path, f) for f in artifact.files] + [(g.file, g) for g in artifact.signatures]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(storage.read(row.sha256))
    return artifact


@pytest.mark.parametrize("cached", [False, True])
def test_a_handoff_becomes_a_signed_artifact(home, storage, tmp_path, cached):
    waiting(storage, cached=cached)
    sign.wake()
    done = job()
    assert done.state == SUCCEEDED and done.error is None and done.lease_until is None and done.finished_at and list(done.timings) == ["sign"]
    artifact = fetched(storage, tmp_path / "out")
    verified = verify_folder(tmp_path / "out", signing.public_keys(settings().keys).values())
    assert verified.files == {p: sha(d) for p, d in FILES.items()} and len(verified.checked) == 5
    lines = sorted(f"{p} {len(d)} {sha(d)}\n" for p, d in FILES.items())
    assert artifact.digest == sha("".join(lines).encode()) and artifact.size == 10242 and artifact.owner == "o"
    assert {g.file for g in artifact.signatures if g.key_id} == {"SHA256SUMS.sig", "model.sig", "provenance.json"}
    predicate = json.loads(base64.b64decode(json.loads((tmp_path / "out/provenance.json").read_text())["payload"]))["predicate"]
    assert predicate["buildDefinition"]["internalParameters"] == {"cached": cached} and predicate["runDetails"]["metadata"]["invocationId"] == "job"
    assert list(storage.list("tmp")) == []


@pytest.mark.parametrize("name", ["files/model.packed.safetensors", "report.json"])
@pytest.mark.parametrize("how", ["changed", "longer", "gone"])
def test_a_file_that_is_not_what_was_handed_over_fails_the_job(home, storage, name, how):
    waiting(storage)
    key = f"tmp/worker/1/{name}"
    data = storage.read(key)
    storage.delete(key)
    if how != "gone":
        storage.put(key, [b"\x01" + data[1:] if how == "changed" else data + b"\x00"])
    sign.wake()
    assert job().state == FAILED and job().error["type"] == "storage-damaged" and name in job().error["detail"] and job().output_id is None


def test_a_cached_blob_that_has_rotted_is_not_signed(home, storage):
    waiting(storage, cached=True)
    storage.put(blob_key(sha(FILES["sub/config.json"])), [b"[]"])
    sign.wake()
    assert job().state == FAILED and job().error["type"] == "storage-damaged"


@pytest.mark.parametrize("path", ["../evil", "/evil", "a//b"])
def test_a_path_that_leaves_the_folder_is_not_signed(home, storage, path):
    waiting(storage, {"x": b"1"})
    with session() as s, s.begin():
        row = s.get_one(Job, "job")
        row.handoff = row.handoff | {"files": [row.handoff["files"][0] | {"path": path}]}
    sign.wake()
    assert job().state == FAILED and path in job().error["detail"]


def test_without_a_key_jobs_wait_and_are_never_unsigned(home, storage):
    signing.open_key(settings().keys)
    pem = settings().keys / "signing.pem"
    aside = pem.rename(pem.with_suffix(".aside"))
    waiting(storage)
    sign.wake()
    assert job().state == SIGNING and job().sign_attempt == 0
    aside.rename(pem)
    sign.wake()
    assert job().state == SUCCEEDED


@pytest.mark.parametrize("error", [Unavailable, StorageFull])
def test_a_store_that_is_away_or_full_costs_no_attempt(home, storage, monkeypatch, error):
    waiting(storage)
    stream, times, claims = Storage.stream, settings().max_attempts + 1, []

    def away(self, name, *args):
        claims.append(job().sign_attempt)
        if len(claims) <= times:
            raise error("the store is away")
        return stream(self, name, *args)

    monkeypatch.setattr(Storage, "stream", away)
    monkeypatch.setattr(pause, "FIRST", 0.01)
    sign.wake()
    assert set(claims) == {1} and len(claims) > times and (job().state, job().sign_attempt, job().fence) == (SUCCEEDED, 1, times + 2)


def test_a_process_that_is_to_stop_signs_to_the_end_and_takes_no_other(home, storage, monkeypatch):
    waiting(storage)
    with session() as s, s.begin():
        first = s.get_one(Job, "job")
        s.add(Job(id="next", owner="o", input_id="in", spec=SPEC, state=SIGNING, handoff=first.handoff, fence=1, created_at=now() + 60))
    stream = Storage.stream
    monkeypatch.setattr(state, "should_stop", None)

    def told_to_stop(self, name, *args):
        state.should_stop = 0  # as Celery does on SIGTERM
        return stream(self, name, *args)

    monkeypatch.setattr(Storage, "stream", told_to_stop)
    sign.wake()
    with session() as s:
        assert [s.get_one(Job, i).state for i in ("job", "next")] == [SUCCEEDED, SIGNING] and s.get_one(Job, "next").sign_attempt == 0


def test_another_attempt_goes_on_from_a_half_promoted_result(home, storage, tmp_path):
    waiting(storage)
    with session() as s, s.begin():
        s.add(Blob(sha256=sha(b"{}"), size=2))
    storage.promote("tmp/worker/1/files/sub/config.json", sha(b"{}"))
    sign.wake()
    fetched(storage, tmp_path / "out")
    assert verify_folder(tmp_path / "out", signing.public_keys(settings().keys).values())


def test_a_lost_lease_makes_nothing_visible(home, storage, monkeypatch):
    """Another sign process takes the job over while this one hashes."""
    waiting(storage)
    stream = Storage.stream

    def slow(self, name, *args):
        with session() as s, s.begin():
            s.execute(Job.__table__.update().values(fence=Job.fence + 1, lease_until=now() + 60))
        return stream(self, name, *args)

    monkeypatch.setattr(Storage, "stream", slow)
    sign.wake()
    with session() as s:
        assert job().state == SIGNING and s.scalars(select(Artifact.id)).all() == ["in"]


def test_the_gates_of_a_cached_result_are_judged_anew(home, storage, tmp_path):
    waiting(storage, cached=True, gates={"max_bytes": 10_000})
    sign.wake()
    failed = job()
    assert failed.state == FAILED and failed.error["type"] == "gate-failed" and "report_sha256" not in failed.error
    assert json.loads(storage.read(failed.report_sha256))["gates"]["max_bytes"]["passed"] is False


def test_a_cached_report_says_this_jobs_gates(home, storage, tmp_path):
    waiting(storage, report=REPORT | {"gates": {"max_bytes": {"limit": 5}}}, cached=True, gates={"max_bytes": 20_000})
    sign.wake()
    fetched(storage, tmp_path / "out")
    assert json.loads((tmp_path / "out/report.json").read_text())["gates"]["max_bytes"]["limit"] == 20_000
    assert verify_folder(tmp_path / "out", signing.public_keys(settings().keys).values())


QUALITY = {"measured": True, "task": "encoder", "samples": 25, "cosine": 0.93, "cosine_min": 0.8}


@pytest.mark.parametrize("gates, state", [({"min_cosine": 0.93}, SUCCEEDED), ({"min_cosine": 0.94}, FAILED), ({"max_kl": 9.0}, FAILED)])
def test_gates_on_outputs_are_judged_on_the_quality_of_the_cached_result(home, storage, gates, state):
    waiting(storage, report=REPORT | {"quality": QUALITY}, cached=True, gates=gates, calibration="data")
    sign.wake()
    ended = job()
    report = json.loads(storage.read(ended.report_sha256))
    assert ended.state == state and report["quality"] == QUALITY and [j["passed"] for j in report["gates"].values()] == [state == SUCCEEDED]
    if state == FAILED:
        (gate,) = gates
        assert (ended.error["type"], ended.error["pointer"]) == ("gate-failed", f"/gates/{gate}")
        assert ("0.93, the limit is 0.94" if gate == "min_cosine" else "kl was not measured; there are cosine, cosine_min") in ended.error["detail"]


def test_signing_twice_shares_blobs_and_makes_two_signatures(home, storage):
    waiting(storage)
    sign.wake()
    first = job()
    with session() as s, s.begin():
        handoff = first.handoff | {"prefix": None}
        s.add(Job(id="again", owner="o", input_id="in", spec=SPEC, state=SIGNING, handoff=handoff, cached=True, fence=1))
    sign.wake()
    with session() as s:
        again = s.get_one(Artifact, s.get_one(Job, "again").output_id)
        before = s.get_one(Artifact, first.output_id)
        assert again.id != before.id and again.digest == before.digest
        assert {f.sha256 for f in again.files} == {f.sha256 for f in before.files} and again.signatures[-1].sha256 == before.signatures[-1].sha256


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("which, having", [("claim", "sign_attempt="), ("hold", "INSERT INTO blobs"), ("finish", "output_id=")])
def test_one_artifact_comes_of_commits_whose_answers_are_lost(tmp_path, how, which, having):
    """On PostgreSQL, behind a proxy that loses one COMMIT or its answer."""
    with lossy(server().port) as way, own_home(tmp_path, "postgresql", way.port):
        waiting(storage := Storage())
        made = {p: sha(d) for p, d in FILES.items()}
        way.spoil(how, having=having)
        sign.wake()
        if which == "claim" and how != "commit lost":
            while job().sign_attempt == 0:
                time.sleep(0.05)
            assert job().state == SIGNING
            with session() as s, s.begin():
                s.execute(update(Job).values(lease_until=now() - 1))
            sign.wake()
        assert (way.times, job().state, job().error) == (0, SUCCEEDED, None)
        fetched(storage, tmp_path / "out")
        assert verify_folder(tmp_path / "out", signing.public_keys(settings().keys).values()).files == made
        with session() as s:
            assert len(s.scalars(select(Artifact)).all()) == 2 and s.scalars(select(Meter.count).where(Meter.name == "stage_seconds")).all() == [1]
        assert list(storage.list("tmp")) == []
