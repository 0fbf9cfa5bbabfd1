"""A real API whose bucket goes away, and comes back."""

from __future__ import annotations

import threading

import pytest
import s3 as store


@pytest.fixture(scope="module")
def away(s3, serve_api, tmp_path_factory):
    """(api, proxy)"""
    proxy = store.Proxy(s3.port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with serve_api(tmp_path_factory.mktemp("home"), storage_url=f"s3://{s3.bucket()}/store") as api:
            yield api, proxy
    proxy.shutdown()
    proxy.server_close()


def test_requests_are_answered_that_it_is_unavailable_and_later_go_through(away, model, problem):
    api, proxy = away
    with api.client() as c:
        kept = c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=model()).json()
    path = f"/v1/artifacts/{kept['id']}/files/m.safetensors"
    other = model({"w.weight": ("F32", [2048, 1200])})
    calls = {
        "small upload": lambda c: c.post("/v1/artifacts", params={"name": "n.safetensors"}, content=model(fill=b"\x05")),
        "large upload": lambda c: c.post("/v1/artifacts", params={"name": "n.safetensors"}, content=other),
        "download": lambda c: c.get(path),
        "head": lambda c: c.get(path, headers={"Range": "bytes=3-4"}),
        "job": lambda c: c.post("/v1/jobs", json={"input": kept["id"], "preset": "int8"}),
    }
    answers = {}

    def ask(name: str) -> None:
        with api.client() as c:
            answers[name] = calls[name](c)

    proxy.down = True
    threads = [threading.Thread(target=ask, args=[name]) for name in calls]
    [t.start() for t in threads]
    with api.client(None) as c:
        assert c.get("/healthz").status_code == 200
        ready = c.get("/readyz")
        assert ready.status_code == 503 and ready.json()["checks"]["storage"] != "ok"
    [t.join() for t in threads]
    for name, answer in answers.items():
        assert problem(answer, 503, "unavailable") and answer.headers["retry-after"], name
    proxy.down = False
    with api.client() as c:
        assert len(c.get("/v1/artifacts").json()["items"]) == 1
        assert c.get(path).content == model() and c.post("/v1/artifacts", params={"name": "n.safetensors"}, content=other).status_code == 201


def test_an_answer_that_breaks_off_once_is_asked_for_again(away, model):
    api, proxy = away
    data = model({"w.weight": ("F32", [2048, 1200])}, b"\x06")
    with api.client() as c:
        kept = c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=data).json()
        proxy.cuts, proxy.after = 2, 1 << 20
        assert c.get(f"/v1/artifacts/{kept['id']}/files/m.safetensors").content == data and proxy.cuts == 0
