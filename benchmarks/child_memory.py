"""Peak anonymous memory of the process that compresses, for one recipe after another on a checkpoint of the size that you name.

    .venv/bin/python -m benchmarks.child_memory [--bytes 1e9] [--presets lossless w4a16 ...]

Prints a table: preset, output, seconds, peak anonymous MB, the bound (200 MB + three times the largest tensor), bytes and ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.checkpoints import llama, shapes


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds, and the peak of RssAnon in bytes, sampled every 5 ms."""
    start, peak, done = time.monotonic(), 0, threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def sample():
        nonlocal peak
        while not done.wait(0.005):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)

    thread = threading.Thread(target=sample)
    thread.start()
    code = process.wait()
    done.set()
    thread.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return time.monotonic() - start, peak


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=float, default=1e9)
    parser.add_argument("--presets", nargs="+", default=["lossless", "w8a16", "w4a16", "fp8", "prune-50", "prune-2:4"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-", dir=os.environ.get("TMPDIR")) as d:
        model = llama(Path(d, "model"), int(args.bytes))
        size = (model / "model.safetensors").stat().st_size
        largest = 2 * max(a * b for a, b, *_ in (s for s in shapes(1).values() if len(s) == 2))
        bound = 200e6 + 3 * largest
        print(f"checkpoint {size / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB")
        print(f"{'preset':12}{'format':22}{'seconds':>9}{'peak MB':>9}{'of bound':>9}{'ratio':>8}")
        for preset in args.presets:
            out = Path(d, "out-" + preset.replace(":", "-"))
            seconds, peak = measure([sys.executable, "-m", "worker", str(model), str(out), "--preset", preset])
            report = json.loads((out / "report.json").read_text())
            print(f"{preset:12}{report['output']['format']:22}{seconds:9.1f}{peak / 1e6:9.0f}{peak / bound:9.2f}{report['totals']['ratio']:8.3f}", flush=True)
            subprocess.run(["rm", "-rf", str(out)], check=True)


if __name__ == "__main__":
    main()
