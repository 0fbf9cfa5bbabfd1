"""Builds the fuzz target of the native decoders under the address and undefined-behaviour sanitizers, and runs it: libFuzzer where clang is, else edges.cpp."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parent / "worker" / "kernels" / "cpp"
_FLAGS = "-std=c++20 -O2 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -ffp-contract=off -fno-math-errno -fno-trapping-math -pthread -Wno-psabi"


def compiler() -> tuple[str, str]:
    """(its command, how coverage comes about): clang and libFuzzer, or g++ and the edges that it calls back at. Raises FileNotFoundError."""
    for name in ("clang++", *(f"clang++-{version}" for version in range(21, 13, -1))):
        if shutil.which(name):
            return name, "libFuzzer"
    if shutil.which("g++"):
        return "g++", "edges"
    raise FileNotFoundError("neither clang++ nor g++ is installed")


def build(folder: Path) -> tuple[Path, str]:
    """The fuzzer, built in `folder`, and how coverage comes about."""
    command, how = compiler()
    covered = "-fsanitize=fuzzer-no-link" if how == "libFuzzer" else "-fsanitize-coverage=trace-pc"

    def compiled(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        coverage = [covered] if source.parent == KERNELS else []  # of what is fuzzed alone
        subprocess.run([command, *_FLAGS.split(), *coverage, "-c", source, "-o", out], check=True)
        return out

    sources = [HERE / "decoders.cpp", *sorted(KERNELS.glob("*.cpp")), *([HERE / "edges.cpp"] if how == "edges" else [])]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "decoders"
    subprocess.run([command, *_FLAGS.split(), *(["-fsanitize=fuzzer"] if how == "libFuzzer" else []), *objects, "-o", program], check=True)
    return program, how


def run(program: Path, how: str, corpus: Path, seconds: float, executions: int = 0) -> dict:
    """Fuzz until so many seconds or executions (0: no bound) have gone by.

    Returns:
        `executions`, `edges`, `inputs`; and `failed`: what it said in the end, where it found something.
    """
    if how == "libFuzzer":
        command = [program, f"-max_total_time={seconds:.0f}", f"-runs={executions or -1}", "-timeout=10", "-rss_limit_mb=512", f"-artifact_prefix={corpus}/", "-max_len=4096", corpus]
    else:
        command = [program, str(seconds), str(executions), corpus]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ASAN_OPTIONS": "detect_leaks=1:max_allocation_size_mb=512"})
    failed = {} if done.returncode == 0 else {"failed": done.stderr[-3000:]}
    if how == "libFuzzer":
        return libfuzzer(done.stderr) | failed
    return (json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}) | failed


def libfuzzer(said: str) -> dict:
    """The figures of its last line of status, and of all its runs."""
    lines = re.findall(r"#(\d+)\s+\w+\s+cov: (\d+) ft: \d+ corp: (\d+)", said)
    ended = re.search(r"Done (\d+) runs in (\d+) second", said)
    if not lines:
        return {"executions": int(ended[1]) if ended else 0, "edges": 0, "inputs": 0}
    last = lines[-1]
    return {"executions": int(ended[1] if ended else last[0]), "edges": int(last[1]), "inputs": int(last[2])} | ({"seconds": float(ended[2])} if ended else {})
