"""A data set through the whole service: uploaded, cut and coded, signed, restored."""

from __future__ import annotations

import io

import numpy as np


def finished(c, artifact: str, steps: list[dict]) -> dict:
    job = c.post("/v1/jobs", json={"input": artifact, "recipe": {"steps": steps}}).json()
    while job["state"] not in ("succeeded", "failed"):
        job = c.get(f"/v1/jobs/{job['id']}", params={"wait": 20}).json()
    return job


def test_a_data_set_goes_there_and_back(service):
    r = np.random.default_rng(0)
    x, y = r.normal(size=(300, 8)).astype("f4"), np.arange(300) % 3
    x[7] = x[10]
    y[7] = y[10]
    np.savez(data := io.BytesIO(), x=x, y=y)
    with service.http() as c:
        uploaded = c.post("/v1/artifacts", params={"name": "d.npz"}, content=data.getvalue()).json()
        assert (uploaded["kind"], uploaded["format"]) == ("dataset", "numpy")
        steps = [{"method": "dedup"}, {"method": "prune", "keep": 0.5, "saliency": "grand", "label": "y", "seeds": 1}, {"method": "quantize", "max_abs_error": 0.001}, {"method": "reencode"}]
        made = finished(c, uploaded["id"], steps)
        assert made["state"] == "succeeded", made
        report = c.get(f"/v1/artifacts/{made['output']}/report", headers={"accept": "application/json"}).json()
        kept = [report["selections"][0]["positions"][i] for i in report["selections"][1]["positions"]]
        assert report["kind"] == "dataset" and {f["path"] for f in c.get(f"/v1/artifacts/{made['output']}").json()["files"]} >= {"modelpress.json", "data/d.npz.arrays", "kept/0.npy"}
        assert "d.npz/x" in c.get(f"/v1/artifacts/{made['output']}/report", headers={"accept": "text/html"}).text
        assert c.get(f"/v1/artifacts/{made['output']}/signature").status_code == 200
        back = finished(c, made["output"], [{"method": "restore"}])
        got = np.load(io.BytesIO(c.get(f"/v1/artifacts/{back['output']}/files/d.npz").content))
        assert len(kept) == 150 and 10 not in kept and (got["y"] == y[kept]).all() and np.abs(got["x"].astype("f8") - x[kept]).max() <= 0.001
        refused = finished(c, uploaded["id"], [{"method": "quantize", "max_abs_error": 0.1, "columns": ["y"]}])
        assert refused["error"]["type"] == "not-quantizable" and refused["error"]["pointer"] == "/recipe/steps/0/columns/0"
        assert c.post("/v1/jobs", json={"input": uploaded["id"], "recipe": {"steps": [{"method": "lossless"}]}}).status_code == 422
