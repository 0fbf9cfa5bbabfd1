"""How far the ETA of real jobs is off, from the first fifth of each job on: against what was left then, and against the whole.

    .venv/bin/python -m benchmarks.eta [--bytes 1.5e8] [--presets lossless,w4a16,prune-50] [--samples]

Each preset runs three times: first on a service that has never seen such a job, then when it has, then on a model of other tensors and half the size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.checkpoints import Widths, llama
from demo.__main__ import service

PERIOD = 0.2  # seconds between two looks
WIDE, NARROW = Widths(1024, 2816, 16000), Widths(512, 1408, 8000)


def follow(c: httpx.Client, artifact: str, **spec) -> tuple[list[tuple[float, str, float, float]], float]:
    """(time, stage, fraction, eta) of a job from its start, and how long it took."""
    job, samples = c.post("/v1/jobs", json={"input": artifact} | spec).raise_for_status().json()["id"], []
    started = None
    while True:
        got = c.get(f"/v1/jobs/{job}").raise_for_status().json()
        now = time.monotonic()
        if got["state"] == "failed":
            raise SystemExit(got["error"])
        if got["state"] == "succeeded":
            return samples, now - started
        if got["state"] != "queued":
            started = started or now
            p = got["progress"]
            if p["eta"] is not None:
                samples.append((now - started, p["stage"], p["fraction"], p["eta"]))
        time.sleep(PERIOD)


def errors(samples: list[tuple[float, str, float, float]], took: float) -> tuple[float, float, float]:
    """|told end - end|: at the first fifth by what was left then; at worst after it, by the whole; at worst in the middle three fifths, by what was left."""
    off = [(t, abs(t + eta - took)) for t, _, _, eta in samples if t >= took / 5]
    t, first = off[0]
    return first / (took - t), max(e / took for _, e in off), max(e / (took - t) for t, e in off if t <= 0.8 * took)


def _home(folder: str) -> Path:
    (home := Path(folder, "home")).mkdir()
    return home


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=float, default=1.5e8)
    parser.add_argument("--presets", default="lossless,w4a16,prune-50")
    parser.add_argument("--samples", action="store_true", help="print every look")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d, service(_home(d)) as url:
        wide, narrow = llama(Path(d, "wide"), int(args.bytes), widths=WIDE), llama(Path(d, "narrow"), int(args.bytes / 2), seed=1, widths=NARROW)
        key = Path(d, "home", "api-key").read_text().strip()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600) as c:
            ids = {f.name: c.post("/v1/artifacts", params={"name": "m.safetensors"}, content=(f / "model.safetensors").read_bytes()).json()["id"] for f in (wide, narrow)}
            print("job                          seconds   at a fifth   worst after, of the whole   worst to four fifths, of the rest")
            for preset in args.presets.split(","):
                for name, seed in (("wide", 0), ("wide", 1), ("narrow", 0)):
                    samples, took = follow(c, ids[name], preset=preset, seed=seed)
                    if args.samples:
                        print("\n".join(f"{t:7.1f} {stage:9}{fraction:6.1%} {eta:7.1f} {t + eta - took:+7.1f}" for t, stage, fraction, eta in samples))
                    if [s[2] for s in samples] != sorted(s[2] for s in samples):
                        raise SystemExit("the fraction went back")
                    first, whole, rest = errors(samples, took)
                    print(f"{preset:10}{name:8}{'again' if seed else '':9}{took:8.1f}{first:12.0%}{whole:20.0%}{rest:28.0%}", flush=True)


if __name__ == "__main__":
    main()
