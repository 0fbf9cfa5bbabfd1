"""Random bits of stored blobs are flipped, one at a time; how many are caught before a client has accepted a wrong byte?

    python -m benchmarks.bit_flips [flips]

A real API process on a store of its own. After each flip a client asks for the file, for a range with the flipped bit, or for the archive, chosen at random.
It is caught when the client gets a problem document, or a body that breaks off (which no HTTP client takes for whole), and the artifact answers 410 from then on.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import httpx

from app.chunks import CHUNK
from app.storage import blob_key
from benchmarks.serving import api


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as f:
        f.seek(bit // 8)
        (byte,) = f.read(1)
        f.seek(bit // 8)
        f.write(bytes([byte ^ 1 << bit % 8]))


def accepted(client: httpx.Client, url: str, headers: dict[str, str]) -> bool:
    """Whether a client takes the answer for a whole and good one."""
    try:
        return client.get(url, headers=headers).is_success
    except httpx.RemoteProtocolError:
        return False


def flips(client: httpx.Client, store: Path, count: int, rng: random.Random, files: dict[str, bytes]) -> int:
    """How many of `count` are caught. `files`: name -> what is uploaded and damaged."""
    made = {name: client.post("/v1/artifacts", params={"name": name}, content=data).json() for name, data in files.items()}
    caught = 0
    for _ in range(count):
        name = rng.choice(sorted(files))
        data, ident = files[name], made[name]["id"]
        bit = rng.randrange(8 * len(data))
        path = store / blob_key(made[name]["files"][0]["sha256"])
        start, end = max(0, bit // 8 - rng.randrange(100_000)), min(len(data), bit // 8 + rng.randrange(1, 100_000))
        base = f"/v1/artifacts/{ident}"
        flip(path, bit)
        url, headers = rng.choice([(f"{base}/files/{name}", {}), (f"{base}/files/{name}", {"Range": f"bytes={start}-{end - 1}"}), (f"{base}/archive", {})])
        wrong = accepted(client, url, headers)
        caught += not wrong and client.get(f"{base}/files/{name}").status_code == 410
        flip(path, bit)
        client.post("/v1/artifacts", params={"name": name}, content=data).raise_for_status()  # the right bytes end the quarantine
        client.get(url, headers=headers).raise_for_status()
    return caught


def main() -> None:
    count = int(sys.argv[1] if len(sys.argv) > 1 else 1000)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder, api(Path(folder)) as server:
        client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key}"}, timeout=60)
        sizes = (1000, 1 << 20, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 777)
        print(f"{flips(client, Path(folder, 'store'), count, rng, {f'{n}.txt': rng.randbytes(n) for n in sizes})} of {count} flipped bits caught")


if __name__ == "__main__":
    main()
