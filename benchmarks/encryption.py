"""Upload and download with encryption at rest on against off: one POST, one resumed upload of a single PATCH, one GET, two servers in one run, taking turns; medians of five.

    python -m benchmarks.encryption [MiB]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from app.storage.masters import new_line
from benchmarks.serving import Server, api
from benchmarks.upload import send

RUNS = 5


def ways(path: Path, server: Server) -> dict[str, Callable[[], float]]:
    """What is timed, in seconds each. Nothing is kept, so that every upload is a new one."""
    port, auth, size = server.port, f"Authorization: Bearer {server.key}\r\n", path.stat().st_size
    client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key}"}, timeout=120)
    newest = "/v1/artifacts?limit=1"

    def post() -> float:
        return send(port, f"POST /v1/artifacts?name=model.safetensors HTTP/1.1\r\n{auth}", path)

    def tus() -> float:
        begin = {"Tus-Resumable": "1.0.0", "Upload-Length": str(size), "Upload-Metadata": "filename bW9kZWwuc2FmZXRlbnNvcnM="}
        where = client.post("/v1/uploads", headers=begin).headers["location"]
        return send(port, f"PATCH {where} HTTP/1.1\r\n{auth}Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\n", path)

    def get() -> float:
        ident, start, got = client.get(newest).json()["items"][0]["id"], time.perf_counter(), 0
        with client.stream("GET", f"/v1/artifacts/{ident}/files/model.safetensors") as answer:
            for block in answer.iter_raw(1 << 20):
                got += len(block)
        assert got == size
        return time.perf_counter() - start

    return {"POST": post, "tus": tus, "GET": get}


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 256) << 20
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
        with path.open("wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            for _ in range(size >> 20):
                f.write(os.urandom(1 << 20))
        with api(Path(folder, "off")) as off, api(Path(folder, "on"), MODELPRESS_MASTER_KEYS=new_line("a")) as on:
            timed = {"off": ways(path, off), "on": ways(path, on)}
            seconds: dict[tuple[str, str], list[float]] = {}
            for _ in range(RUNS):
                for way in ("POST", "tus", "GET"):
                    for name, own in timed.items():
                        seconds.setdefault((way, name), []).append(own[way]())
    rate = {at: size / 1e6 / statistics.median(taken) for at, taken in seconds.items()}
    print(f"{size / 1e6:,.0f} MB over loopback, medians of {RUNS}\n{'':>6} {'off MB/s':>9} {'on MB/s':>9} {'on / off':>9}")
    for way in ("POST", "tus", "GET"):
        print(f"{way:>6} {rate[way, 'off']:9.0f} {rate[way, 'on']:9.0f} {rate[way, 'on'] / rate[way, 'off']:9.2f}")


if __name__ == "__main__":
    main()
