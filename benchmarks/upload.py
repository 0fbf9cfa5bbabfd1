"""Upload speed: one POST, one tus PATCH and `modelpress upload`, against a server that does nothing but hash what arrives. One run, medians of three.

    python -m benchmarks.upload [MiB]
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process, Queue
from pathlib import Path

import httpx

from benchmarks.serving import ROOT, Server, api

RUNS = 3


def null_server(ports: Queue) -> None:
    """Answers a request once its body is hashed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ports.put(listening.getsockname()[1])
        buffer = bytearray(1 << 20)
        while True:
            connection, _ = listening.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(1)
                left, digest = int(re.search(rb"(?i)content-length: (\d+)", head)[1]), hashlib.sha256()
                while left:
                    n = connection.recv_into(buffer, min(left, len(buffer)))
                    digest.update(memoryview(buffer)[:n])
                    left -= n
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def send(port: int, request: str, path: Path) -> float:
    """Seconds from connecting to the answer; the kernel reads the file, so that the sender costs next to nothing."""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as s, path.open("rb") as f:
        s.sendall(f"{request}Host: x\r\nConnection: close\r\nContent-Length: {path.stat().st_size}\r\n\r\n".encode())
        s.sendfile(f)
        status = s.recv(1 << 16).split()[1]
    assert status in (b"200", b"201", b"204"), status
    return time.perf_counter() - start


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 1024) << 20
    with tempfile.TemporaryDirectory() as folder:
        path, home = Path(folder, "model.safetensors"), Path(folder, "home")
        header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
        with path.open("wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            for _ in range(size >> 20):
                f.write(os.urandom(1 << 20))
        ports: Queue = Queue()
        null = Process(target=null_server, args=(ports,), daemon=True)
        null.start()
        try:
            with api(home) as server:
                report(measure(path, ports.get(), server), path.stat().st_size)
        finally:
            null.kill()


def measure(path: Path, null: int, server: Server) -> dict[str, list[float]]:
    port, auth, size = server.port, f"Authorization: Bearer {server.key}\r\n", path.stat().st_size
    client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key}", "Tus-Resumable": "1.0.0"}, timeout=60)

    def tus() -> float:
        where = client.post("/v1/uploads", headers={"Upload-Length": str(size), "Upload-Metadata": "filename bW9kZWwuc2FmZXRlbnNvcnM="}).headers["location"]
        tus_headers = "Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\n"
        return send(port, f"PATCH {where} HTTP/1.1\r\n{auth}{tus_headers}", path)

    def command() -> float:
        start = time.perf_counter()
        call = [sys.executable, "-m", "app.cli", "upload", str(path)]
        subprocess.run(call, env=server.environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start

    ways = {
        "null server": lambda: send(null, "POST / HTTP/1.1\r\n", path),
        "POST": lambda: send(port, f"POST /v1/artifacts?name=model.safetensors HTTP/1.1\r\n{auth}", path),
        "tus": tus,
        "modelpress upload": command,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            seconds[name].append(way())
    return seconds


def report(seconds: dict[str, list[float]], size: int) -> None:
    null = statistics.median(seconds["null server"])
    print(f"{size / 1e6:,.0f} MB over loopback, medians of {RUNS}\n{'':>20} {'MB/s':>8} {'of the null server':>20}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:>20} {size / 1e6 / median:8,.0f} {null / median:20.0%}")


if __name__ == "__main__":
    main()
