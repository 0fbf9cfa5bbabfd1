"""`/readyz` and `/healthz` over HTTP."""

from __future__ import annotations

import socket

from app.db import now
from app.models import Worker


def test_each_part_says_what_is_missing_and_nothing_secret(nobody, api):
    told = nobody.get("/readyz")
    assert told.status_code == 503 and told.json()["status"] == "not ready"
    checks = told.json()["checks"]
    assert checks["database"] == checks["storage"] == "ok" and checks["broker"] != "ok" and "start one" in checks["jail"]
    assert str(api.home) not in told.text and "127.0.0.1" not in told.text
    assert nobody.get("/healthz").json() == {"status": "ok"}


def test_it_answers_whatever_hangs(tmp_path, serve_api):
    """A broker that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"127.0.0.1:{deaf.getsockname()[1]}"
        with serve_api(tmp_path, broker_url=f"redis://{url}/0") as api, api.client(None) as c:
            for _ in range(3):
                told = c.get("/readyz", timeout=20)
                assert told.status_code == 503 and told.json()["checks"]["database"] == "ok"
                assert "no answer" in told.json()["checks"]["broker"] or "Error" in told.json()["checks"]["broker"]


def test_what_only_some_need_is_degraded(nobody, api):
    with api.session() as s, s.begin():
        s.add_all([Worker(id=i, queues=[], device="cpu", memory=1, threads=1, jail={"holds": h}, version="0", seen_at=now() + 60) for i, h in (("x", True), ("y", False))])
    try:
        told = nobody.get("/readyz").json()
        assert told["checks"]["jail"] == "ok" and "1 workers of 2" in told["degraded"]["jail"]
    finally:
        with api.session() as s, s.begin():
            s.query(Worker).delete()
