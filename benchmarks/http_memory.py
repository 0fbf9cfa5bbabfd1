"""Peak memory of every process of the service while a large file goes up and comes down again.

    .venv/bin/python -m benchmarks.http_memory [--bytes 4e9]

The file is a valid safetensors header and random data, made as it is sent and hashed as it is read; it takes twice its size on disk at most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from demo.__main__ import service

PIECE = 1 << 20


def file(nbytes: int) -> Iterator[bytes]:
    """A safetensors file of one U8 tensor, in pieces of 1 MiB."""
    count = nbytes // PIECE
    header = json.dumps({"w": {"dtype": "U8", "shape": [count, PIECE], "data_offsets": [0, count * PIECE]}}).encode()
    yield struct.pack("<Q", len(header)) + header
    block = os.urandom(PIECE)
    for i in range(count):
        yield i.to_bytes(8, "little") + block[8:]


class Peaks:
    """Resident memory (shared pages included) of the processes below this one, by what they run, sampled every 10 ms."""

    def __init__(self):
        self.peaks: dict[str, int] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peaks:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.ended.wait(0.01):
            for p in psutil.Process().children(recursive=True):
                try:
                    words = p.cmdline()
                    name = next((w for w in words if w.startswith(("app.", "worker.")) or "redis" in w), None)
                    if name:
                        self.peaks[name] = max(self.peaks.get(name, 0), p.memory_info().rss)
                except psutil.Error:
                    continue


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=float, default=4e9)
    nbytes = int(parser.parse_args().bytes)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d, service(Path(d)) as url, Peaks() as sampled:
        key = Path(d, "api-key").read_text().strip()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600) as c:

            def sent() -> Iterator[bytes]:
                for piece in file(nbytes):
                    digest.update(piece)
                    yield piece

            start = time.monotonic()
            r = c.post("/v1/artifacts", params={"name": "large.safetensors"}, content=sent())
            r.raise_for_status()
            up, artifact, got = time.monotonic() - start, r.json(), hashlib.sha256()
            start = time.monotonic()
            with c.stream("GET", f"/v1/artifacts/{artifact['id']}/files/large.safetensors") as answer:
                for piece in answer.iter_bytes(PIECE):
                    got.update(piece)
            down = time.monotonic() - start
    if got.digest() != digest.digest():
        raise SystemExit("what came back is not what was sent")
    print(f"{artifact['size'] / 1e9:.2f} GB: up {artifact['size'] / up / 1e6:.0f} MB/s, down {artifact['size'] / down / 1e6:.0f} MB/s (client and server on one machine, both hash)")
    for name, peak in sorted(sampled.peaks.items(), key=lambda item: -item[1]):
        print(f"{name:24}{peak / 1e6:8.0f} MB")


if __name__ == "__main__":
    main()
