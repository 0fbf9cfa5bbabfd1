"""A folder of many parts is few statements, whatever it refers to."""

from __future__ import annotations

import pytest
from homes import KINDS, own_home
from sqlalchemy import event

from app.compose import Composition, compose
from app.db import engine, session
from app.errors import NotFound
from app.models import Artifact, ArtifactFile, Blob, new_id

MANY = 3000


@pytest.fixture(scope="module", params=KINDS)
def parts(request, tmp_path_factory):
    """Ids of artifacts of one file each, as many as a folder of them needs several queries for."""
    with own_home(tmp_path_factory.mktemp("home"), request.param):
        artifacts = [Artifact(id=new_id(), owner="alice", kind="model", format="safetensors", name="m", digest="d", size=1) for _ in range(1200)]
        for i, artifact in enumerate(artifacts):
            artifact.files = [ArtifactFile(path="m", size=i, sha256="0" * 64)]
        with session() as s, s.begin():
            s.add(Blob(sha256="0" * 64, size=1))
            s.flush()
            s.add_all(artifacts)
        yield [a.id for a in artifacts]


def asked(ids: list[str]) -> Composition:
    return Composition(files=[{"path": f"{i:05}.safetensors", "artifact": ident} for i, ident in enumerate(ids)])


def statements(ids: list[str]) -> tuple[Artifact, int]:
    seen: list[str] = []

    def count(_connection, _cursor, statement, *_):
        seen.append(statement)

    event.listen(engine(), "before_cursor_execute", count)
    try:
        with session() as s, s.begin():
            return compose(s, "alice", asked(ids), new_id()), len(seen)
    finally:
        event.remove(engine(), "before_cursor_execute", count)


@pytest.mark.parametrize("distinct", [1, 1200])
def test_statements_are_few(parts, distinct):
    ids = (parts[:distinct] * MANY)[:MANY]
    made, count = statements(ids)
    assert count < 30 and [f.size for f in made.files] == [parts.index(i) for i in ids]


def test_the_part_that_is_missing_is_pointed_at(parts):
    with session() as s, s.begin(), pytest.raises(NotFound) as refused:
        compose(s, "alice", asked([*parts, new_id()]), new_id())
    assert refused.value.pointer == "/files/1200/artifact"
    with session() as s, s.begin(), pytest.raises(NotFound):
        compose(s, "bob", asked(parts), new_id())
