"""Garbage collection on real databases and a real store: one round after the other, and against everything else that happens meanwhile."""

from __future__ import annotations

import hashlib
import threading

import pytest
from homes import KINDS, own_home
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import create_engine, delete, event, select, update

from app import collect, jobs, sign, signing, upload
from app.api.artifacts import delete_artifact
from app.blobs import hold
from app.compose import Composition, compose
from app.config import settings
from app.db import Base, engine, make_engine, now, session
from app.errors import ModelpressError, Unavailable
from app.models import FAILED, SIGNING, Artifact, ArtifactFile, Blob, Job, Signature, new_id
from app.storage import Storage

CONTENTS = [b"one", b"two", b"three"]
SPEC = {"recipe": {"steps": [{"method": "lossless"}]}, "output": {"format": "packed"}, "gates": {}}
REPORT = b"{}"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(params=KINDS)
def storage(request, tmp_path):
    with own_home(tmp_path, request.param):
        yield Storage()


def blob(storage: Storage, data: bytes) -> str:
    _, sha256 = storage.put("tmp/one/1/x", [data])
    with session() as s, s.begin():
        hold(s, sha256, len(data))
    storage.promote("tmp/one/1/x", sha256)
    return sha256


def test_a_blob_is_marked_waited_for_and_looked_at_again(storage):
    used, free, wanted = (blob(storage, data) for data in (b"used", b"free", b"wanted again"))
    with session() as s, s.begin():
        s.add(Artifact(owner="o", kind="model", format="packed", name="n", digest="d", size=4, files=[ArtifactFile(path="p", size=4, sha256=used)]))
    assert collect.collect(storage) == 0
    with session() as s:
        marks = {b.sha256: b.marked_at for b in s.scalars(select(Blob))}
    assert marks[used] is None and marks[free] and marks[wanted]
    with session() as s, s.begin():
        s.execute(update(Blob).where(Blob.marked_at.is_not(None)).values(marked_at=now() - settings().orphan_age - 1))
        hold(s, wanted, 12)
    assert collect.collect(storage) == 1
    assert [storage.exists(b) for b in (used, free, wanted)] == [True, False, True]
    with session() as s:
        assert s.get(Blob, free) is None


def test_a_blob_that_is_referred_to_again_loses_its_mark(storage):
    found = blob(storage, b"found")
    collect.collect(storage)
    with session() as s, s.begin():
        s.execute(update(Blob).values(marked_at=now() - settings().orphan_age - 1))
        s.add(Job(owner="o", spec={}, cache_key="k", state="failed", report_sha256=found))
    assert collect.collect(storage) == 0 and storage.exists(found)
    with session() as s, s.begin():
        assert s.get(Blob, found).marked_at is None
        s.execute(delete(Job))


def test_bytes_without_a_row_get_one_and_go(storage):
    for data in CONTENTS:
        storage.put("tmp/x/1/y", [data])
        storage.promote("tmp/x/1/y", sha(data))
    known = blob(storage, b"known")
    assert collect.adopt(storage, collect.FOLDERS) == 3 and collect.adopt(storage, collect.FOLDERS) == 0
    with session() as s, s.begin():
        assert {b.sha256: b.size for b in s.scalars(select(Blob).where(Blob.marked_at.is_not(None)))} == {sha(d): len(d) for d in CONTENTS}
        s.execute(update(Blob).where(Blob.marked_at.is_not(None)).values(marked_at=now() - settings().orphan_age - 1))
    assert collect.collect(storage) == 3 and [f.key.rsplit("/", 1)[1] for f in storage.list("blobs")] == [known]


def test_what_waits_to_be_signed_stays(storage):
    waits, free = blob(storage, b"waits"), blob(storage, b"free")
    with session() as s, s.begin():
        s.add(Job(owner="o", spec=SPEC, state=SIGNING, cached=True, handoff={"prefix": None, "files": [{"path": "p", "size": 5, "sha256": waits}]}))
        s.execute(update(Blob).values(marked_at=now() - settings().orphan_age - 1))
    assert collect.collect(storage) == 1 and storage.exists(waits) and not storage.exists(free)


def test_a_round_takes_all_batches(storage, monkeypatch):
    monkeypatch.setattr(collect, "BATCH", 2)
    found = [blob(storage, bytes([n])) for n in range(7)]
    assert collect.collect(storage) == 0
    with session() as s, s.begin():
        s.execute(update(Blob).values(marked_at=now() - settings().orphan_age - 1))
    assert collect.collect(storage) == 7 and not any(map(storage.exists, found))


# Everything at once. Each operation runs in a thread of its own, which stops before every transaction, every change of the database and every change
# of the store, until it is told to go on; no time is waited for between a mark and its end.


class Killed(BaseException):
    """As when its process dies."""


class Operation(threading.Thread):
    """`work` in steps. One that does not come to its next stop waits for a lock that another one holds."""

    mine = threading.local()

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.error = work, None
        self.stopped, self.go, self.killed = threading.Event(), threading.Event(), False

    def run(self) -> None:
        self.mine.operation = self
        try:
            self.stop()
            self.work()
        except (ModelpressError, Killed):
            pass  # refused, or dead
        except BaseException as e:
            self.error = e
        finally:
            self.mine.operation = None
            self.killed = True
            self.stopped.set()

    def stop(self) -> None:
        self.stopped.set()
        self.go.wait()
        self.go.clear()
        if self.killed:
            raise Killed

    @classmethod
    def reach(cls, *_) -> None:
        """Called wherever an operation is to stop."""
        if operation := getattr(cls.mine, "operation", None):
            operation.stop()

    def step(self, steps: int = 1) -> bool:
        """Go on to the stop after so many. False: it waits for another one, or has ended."""
        for _ in range(steps):
            if not self.is_alive() or not self.stopped.wait(0.1):
                return False
            self.stopped.clear()
            self.go.set()
        return self.stopped.wait(0.1) and self.is_alive()

    def kill(self) -> None:
        if self.is_alive() and self.stopped.wait(0.1):
            self.killed = True
            self.go.set()
            self.join(30)


class Stopping(Storage):
    """Storage whose changes can be waited before and after."""

    def put(self, key, data, size=None):
        Operation.reach()
        return super().put(key, data, size)

    def promote(self, key, sha256):
        Operation.reach()
        super().promote(key, sha256)
        Operation.reach()

    def delete(self, *names):
        Operation.reach()
        super().delete(*names)
        Operation.reach()


def stops(connection, cursor, statement, *_) -> None:
    if statement.startswith(("INSERT", "UPDATE", "DELETE")) and connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        Operation.reach()


class Together(RuleBasedStateMachine):
    """Uploads, compositions, deletions, signings, collections, and deaths in the middle of each."""

    def __init__(self):
        super().__init__()
        self.storage, self.plain, self.operations, self.number = Stopping(), Storage(), [], 0
        self.key = signing.open_key(settings().keys)
        with session() as s, s.begin():
            s.execute(update(Job).values(output_id=None, input_id=None, report_sha256=None))
            for table in reversed(Base.metadata.sorted_tables):
                if table.name != "audit":  # which only grows
                    s.execute(delete(table))
        for name in ("tmp", "blobs"):
            self.plain.delete_all(name)
        with session() as s, s.begin():
            s.add(Artifact(id="input", owner="other", kind="model", format="safetensors", name="m", digest="c" * 64, size=0))
        self.looking = make_engine(settings().database) if engine().dialect.name == "postgresql" else create_engine(settings().database)

    def begin(self, work) -> None:
        operation = Operation(work)
        self.operations.append(operation)
        operation.start()

    def artifacts(self) -> list[str]:
        with self.looking.connect() as c:
            return list(c.scalars(select(Artifact.id).where(Artifact.owner == "o").order_by(Artifact.created_at, Artifact.id)))

    @rule(data=st.sampled_from(CONTENTS))
    def upload(self, data):
        self.number += 1
        key = f"tmp/uploads/{self.number}"
        self.plain.put(key, [data])
        made = Artifact(owner="o", kind="model", format="safetensors", name="m.safetensors")
        self.begin(lambda: upload.keep(self.storage, key, sha(data), len(data), made))

    @rule(picks=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def compose(self, picks):
        known = self.artifacts()

        def work():
            parts = [{"path": f"{i}.safetensors", "artifact": known[p % len(known)]} for i, p in enumerate(picks)]
            with session() as s, s.begin():
                compose(s, "o", Composition(files=parts), new_id())

        if known:
            self.begin(work)

    @rule(pick=st.integers(0, 9))
    def delete(self, pick):
        if known := self.artifacts():
            self.begin(lambda: delete_artifact(known[pick % len(known)], "o"))

    @rule(data=st.sampled_from(CONTENTS))
    def sign(self, data):
        self.number += 1
        prefix = f"tmp/job{self.number}/1"
        files = {"files/model.packed.safetensors": data, "report.json": REPORT}
        for name, content in files.items():
            self.plain.put(f"{prefix}/{name}", [content])
        rows = [{"path": name.removeprefix("files/"), "size": len(d), "sha256": sha(d)} for name, d in files.items()]
        handoff = {"prefix": prefix, "files": rows[:1], "report": rows[1], "format": "packed", "name": "m", "environment": {}, "started": 1.0, "ended": 2.0}

        def work():
            with session() as s, s.begin():
                s.add(Job(owner="o", input_id="input", spec=SPEC, state=SIGNING, handoff=handoff))
            self.sign_next()

        self.begin(work)

    @rule()
    def sign_again(self):
        """What a dead sign process has left."""

        def work():
            with session() as s, s.begin():
                s.execute(update(Job).where(Job.state == SIGNING).values(lease_until=now() - 1))
            self.sign_next()

        self.begin(work)

    def sign_next(self) -> None:
        with session() as s, s.begin():
            job = jobs.claim_signing(s)
        if job is not None:
            sign.sign(job, self.key, self.storage)

    @rule()
    def collect(self):
        self.begin(lambda: collect.collect(self.storage))

    @rule(pick=st.integers(0, 9), steps=st.integers(1, 6))
    def go_on(self, pick, steps):
        if alive := [o for o in self.operations if o.is_alive()]:
            alive[pick % len(alive)].step(steps)

    @rule(pick=st.integers(0, 9))
    def die(self, pick):
        if alive := [o for o in self.operations if o.is_alive()]:
            alive[pick % len(alive)].kill()

    def referred(self) -> set[str]:
        with self.looking.connect() as c:
            columns = (ArtifactFile.sha256, Signature.sha256, Job.report_sha256)
            return {sha256 for column in columns for sha256 in c.scalars(select(column).where(column.is_not(None)))}

    @invariant()
    def what_is_referred_to_is_there(self):
        for sha256 in self.referred():
            assert sha(self.plain.read(sha256)) == sha256

    def teardown(self):
        while alive := [o for o in self.operations if o.is_alive()]:
            for operation in alive:
                operation.step(100)
        try:
            assert [o.error for o in self.operations if o.error] == []
            self.what_is_referred_to_is_there()
            with session() as s, s.begin():
                s.execute(update(Job).where(Job.state == SIGNING).values(state=FAILED))
            collect.adopt(self.plain, collect.FOLDERS)
            for _ in range(2):
                collect.collect(self.plain)
            with self.looking.connect() as c:
                rows = set(c.scalars(select(Blob.sha256)))
            assert rows == self.referred() == {f.key.rsplit("/", 1)[1] for f in self.plain.list("blobs")}
        finally:
            self.looking.dispose()


@pytest.fixture(params=KINDS)
def impatient(request, tmp_path):
    with own_home(tmp_path, request.param, orphan_age="0"):
        event.listen(engine(), "engine_connect", Operation.reach)
        event.listen(engine(), "before_cursor_execute", stops)
        yield request.param


def test_nothing_that_is_referred_to_is_lost_and_nothing_else_stays(impatient):
    run_state_machine_as_test(Together, settings=examples(max_examples=6, stateful_step_count=20, deadline=None))


@pytest.mark.parametrize("stop", ["before it is promoted", "before it is referred to"])
def test_a_collection_in_the_middle_of_an_upload(impatient, stop):
    """It takes the row, or row and bytes, of an upload that is slower than `orphan_age`: that is stored all the same, or refused, never half."""
    storage, plain = Stopping(), Storage()
    plain.put("tmp/uploads/1", [b"one"])
    made = Artifact(owner="o", kind="model", format="safetensors", name="m.safetensors")
    told = []

    def work():
        try:
            told.append(upload.keep(storage, "tmp/uploads/1", sha(b"one"), 3, made))
        except Unavailable as e:
            told.append(e)

    slow = Operation(work)
    slow.start()
    while not (plain.exists(sha(b"one")) if stop.endswith("referred to") else blob_row()):
        slow.step()
    assert [collect.collect(plain) for _ in range(2)] in ([1, 0], [0, 1])
    while slow.is_alive():
        slow.step()
    assert isinstance(told[0], Artifact if stop == "before it is promoted" else Unavailable)
    assert plain.exists(sha(b"one")) == blob_row() == (stop == "before it is promoted")


def blob_row() -> bool:
    with session() as s:
        return s.get(Blob, sha(b"one")) is not None
