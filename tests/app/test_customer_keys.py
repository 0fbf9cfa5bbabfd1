"""Uploaders' own keys in this process: the headers, what opens with them, who may be told, and what goes when nothing refers to it; tests/service has the whole."""

from __future__ import annotations

import hashlib
import os
from types import SimpleNamespace

import obstore
import pytest
from homes import KINDS, own_home
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from app import collect, customer_keys, jobs, quarantine, quotas, recipients, scrub, sweep
from app.customer_keys import headers_of, parse
from app.db import now, session
from app.errors import CustomerKeyGone, CustomerKeyNotApplicable, CustomerKeyRequired, InvalidCustomerKey, NobodyForCustomerKey, StorageDamaged, WrongCustomerKey
from app.models import Artifact, ArtifactFile, CustomerKeyCheck, Job, JobRecipient, Meter, Recipient
from app.storage import Storage
from app.storage.customer import CustomerKey
from app.storage.masters import Masters, new_line
from app.upload import keep

KEY, OTHER = bytes(range(32)), bytes(32)
DATA = os.urandom(200_001)


@pytest.fixture(params=KINDS)
def home(request, tmp_path):
    with own_home(tmp_path, request.param, storage_url=f"file://{tmp_path}/store"):
        yield tmp_path


@pytest.fixture(params=["without a master key", "with one"])
def storage(home, request) -> Storage:
    return Storage(None, Masters.parse(new_line("a")) if request.param == "with one" else None)


def kept(storage: Storage, key: bytes = KEY, data: bytes = DATA, owner: str = "alice") -> Artifact:
    """An upload under the key."""
    place = storage.under(customer_keys.new(key))
    _, sha256 = place.put("tmp/uploads/x", [data])
    return keep(place, "tmp/uploads/x", sha256, len(data), Artifact(owner=owner, kind="model", format="file", name="m"))


def paths(storage: Storage) -> set[str]:
    return {meta["path"] for page in obstore.list(storage.store) for meta in page if not meta["path"].startswith("keys/")}


@given(st.binary(min_size=32, max_size=32))
def test_what_is_sent_is_read(key):
    assert parse(*headers_of(key).values()) == key


@given(st.one_of(st.none(), st.text(max_size=60)), st.one_of(st.none(), st.text(max_size=60)), st.one_of(st.none(), st.text(max_size=60)))
def test_anything_else_is_refused_and_not_repeated(algorithm, key, sha256):
    try:
        assert parse(algorithm, key, sha256) is None and algorithm is key is sha256 is None
    except InvalidCustomerKey as e:
        assert not key or len(key) < 5 or key not in e.detail


def test_it_opens_with_its_key_alone(storage):
    made = kept(storage)
    (file,) = made.files
    with session() as s:
        store = customer_keys.opened(s, storage, KEY, made)
        assert store.read(file.sha256) == DATA and b"".join(store.stream(file.sha256, 65_535, 131_073)) == DATA[65_535:131_073]
        assert store.stat(file.sha256).size == len(DATA)
        with pytest.raises(WrongCustomerKey):
            customer_keys.opened(s, storage, OTHER, made)
        with pytest.raises(CustomerKeyRequired):
            customer_keys.opened(s, storage, None, made)
        blind = storage.of("alice").under(ring=customer_keys.known(s, [file.customer_key]) and {file.sha256: customer_keys.known(s, [file.customer_key])[file.customer_key]})
        with pytest.raises(CustomerKeyRequired):
            blind.read(file.sha256)
    with pytest.raises(FileNotFoundError):
        storage.of("alice").read(file.sha256)  # nothing lies where the service would open it


def test_objects_do_not_stand_in_for_each_other(storage):
    """Whoever can write to the store swaps two objects, of one key or of two uploads under the same key."""
    one, two = kept(storage), kept(storage, data=DATA[::-1])
    with session() as s:
        stores = [customer_keys.opened(s, storage, KEY, a) for a in (one, two)]
    places = [store.ring[a.files[0].sha256].path(a.files[0].sha256) for store, a in zip(stores, (one, two), strict=True)]
    assert paths(storage) == set(places)
    swapped = [obstore.get(storage.store, p).bytes().to_bytes() for p in places]
    for place, data in zip(places, reversed(swapped), strict=True):
        obstore.put(storage.store, place, data)
    for store, a in zip(stores, (one, two), strict=True):
        with pytest.raises(StorageDamaged):
            store.read(a.files[0].sha256)


def test_no_two_uploads_share_an_object(storage):
    made = [kept(storage), kept(storage), kept(storage, OTHER)]
    assert len(paths(storage)) == 3 and len({a.files[0].sha256 for a in made}) == 1
    raw = [obstore.get(storage.store, p).bytes().to_bytes() for p in paths(storage)]
    assert len({hashlib.sha256(r).digest() for r in raw}) == 3 and not any(DATA[:64] in r for r in raw)


def test_what_is_not_shared_counts_each_time(storage):
    kept(storage), kept(storage)
    with session() as s:
        assert quotas.stored(s, "alice") == 2 * len(DATA)


def test_what_nothing_refers_to_goes_and_nothing_else(storage, monkeypatch):
    monkeypatch.setenv("MODELPRESS_ORPHAN_AGE", "-10")
    from app.config import settings

    settings.cache_clear()
    made, gone, waiting = kept(storage), kept(storage), kept(storage)
    with session() as s, s.begin():
        s.delete(s.get(Artifact, gone.id))
        ident, file = waiting.files[0].customer_key, waiting.files[0]
        s.delete(s.get(Artifact, waiting.id))
        s.add(Job(owner="alice", spec={}, state="signing", customer_key=ident, handoff={"prefix": None, "files": [{"path": "m", "size": 1, "sha256": file.sha256}]}))
    assert collect.collect_keyed(storage, collect.KEYED) == 1
    with session() as s:
        assert set(s.scalars(select(CustomerKeyCheck.id))) == {made.files[0].customer_key, ident}
        assert customer_keys.opened(s, storage, KEY, made).read(made.files[0].sha256) == DATA
    collect.collect_sealed(storage, collect.SEALED), collect.collect(storage), collect.collect_keys(storage)
    assert len(paths(storage)) == 2


def test_damage_is_of_one_upload_and_no_scrubber_calls_the_rest_missing(storage):
    hurt, whole = kept(storage), kept(storage)
    with session() as s:
        store = customer_keys.opened(s, storage, KEY, hurt)
    quarantine.condemn(store, hurt.files[0].sha256, "some of its bytes are others")
    kept(storage, data=b"another")  # what is found right elsewhere ends no quarantine of this
    while found := scrub.take():
        assert scrub.scrub(storage, *found, lambda _: None)
    with session() as s, s.begin():
        quarantine.absolve(s, storage.of("alice"), hurt.files[0].sha256)
        assert s.get(Artifact, hurt.id).quarantined and not s.get(Artifact, whole.id).quarantined
        assert s.scalar(select(func.count()).select_from(Meter).where(Meter.name == "damage", Meter.labels.contains("missing"))) == 0


def submitted(s, key: bytes = KEY) -> Job:
    """A job with a key, sealed to whoever serves its queue."""
    source = Artifact(owner="alice", kind="model", format="safetensors", name="m", digest="0" * 64, size=1)
    s.add(source)
    s.flush()
    job = jobs.submit(s, owner="alice", input_id=source.id, spec={}, queue="compress.cpu", cache_key=None)
    made = CustomerKey.new(key)
    s.add(customer_keys.row(made))
    to = recipients.live(s, "compress.cpu")
    job.customer_key, job.sealed_key = made.ident, recipients.sealed(to, job.id, key)
    recipients.address(s, job.id, to)
    return job


def test_a_key_reaches_those_that_run_and_nobody_else(home):
    one, late = recipients.Identity("one", ("compress.cpu",)), recipients.Identity("late", ("compress.cpu",))
    worker, other = SimpleNamespace(id="one", device="cpu"), SimpleNamespace(id="late", device="cpu")
    with session() as s, s.begin():
        one.tell(s)
        recipients.Identity("sign", ("sign",)).tell(s)
        job = submitted(s)
        late.tell(s)
    with session() as s, s.begin():
        assert jobs.claim(s, "compress.cpu", worker=other) is None and jobs.claim(s, "compress.cpu") is None
        assert jobs.claim(s, "compress.cpu", worker=worker).id == job.id
        assert s.scalars(select(JobRecipient.recipient)).all() == ["one"]
    assert one.open(job) == KEY and KEY.hex() not in job.sealed_key
    for who, which in ((late, job), (one, SimpleNamespace(id="another", sealed_key=job.sealed_key)), (one, SimpleNamespace(id=job.id, sealed_key=None)), (one, SimpleNamespace(id=job.id, sealed_key="x"))):
        with pytest.raises(CustomerKeyGone):
            who.open(which)


def test_a_job_ends_once_nobody_has_its_key(home):
    one, two = recipients.Identity("one", ("compress.cpu",)), recipients.Identity("two", ("compress.cpu",))
    with session() as s, s.begin():
        one.tell(s), two.tell(s)
        job = submitted(s)
        plain = jobs.submit(s, owner="alice", input_id=job.input_id, spec={}, queue="compress.cpu", cache_key=None)
    with session() as s, s.begin():
        one.leave(s)
        assert sweep.expire(s) == 0
        s.execute(update(Recipient).values(seen_at=now() - 3600))
        recipients.forget(s)
        assert sweep.expire(s) == 1
    with session() as s:
        ended = s.get(Job, job.id)
        assert (ended.state, ended.error["type"], ended.sealed_key) == ("failed", "customer-key-gone", None) and s.get(Job, plain.id).state == "queued"


def test_without_a_worker_no_key_is_taken(home):
    from app.submission import Submission

    with session() as s, s.begin():
        job = Job(owner="alice", spec={})
        with pytest.raises(NobodyForCustomerKey):
            Submission("alice", {}, None, None, {}, "compress.cpu", None, 0, KEY)._entrust(s, job)


def test_what_an_upload_or_a_job_is_under(home):
    made = CustomerKey.new(KEY)
    with session() as s, s.begin():
        s.add(customer_keys.row(made))
        s.flush()
        assert customer_keys.held(s, KEY, made.ident).root == made.root and customer_keys.held(s, None, None) is None
        for key, ident, error in ((None, made.ident, CustomerKeyRequired), (OTHER, made.ident, WrongCustomerKey), (KEY, None, CustomerKeyNotApplicable)):
            with pytest.raises(error):
                customer_keys.held(s, key, ident)
    assert CustomerKey.rooted(made.ident, made.root).check == made.check


def test_a_key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(line := customer_keys.new_line())
    path.chmod(0o644)
    with pytest.raises(InvalidCustomerKey, match="chmod 600"):
        customer_keys.read(path)
    path.chmod(0o600)
    assert headers_of(customer_keys.read(path))[customer_keys.NAME] == line
    for text in ("", "x", line[:-4], line + "AAAA"):
        path.write_text(text)
        with pytest.raises(InvalidCustomerKey):
            customer_keys.read(path)
