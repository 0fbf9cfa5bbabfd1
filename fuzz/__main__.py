"""Fuzzes every reader and the native decoders: `python -m fuzz [TARGET ...]`, each for FUZZ_SECONDS (600), FUZZ_JOBS at a time (the processors).

The corpus is kept in FUZZ_CORPUS (`.fuzz/`), and begins with tests/fuzz_corpus. What a target dies of, hangs over (10 s) or takes more than 512 MiB for is
written beside it, the table says so, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fuzz import native, seeds

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "fuzz_corpus"
NATIVE = "decoders"
MEMORY = 512  # MiB, above what importing takes


def read(target: str, corpus: Path, seconds: float) -> dict:
    """Figures of one target under atheris."""
    options = [f"-max_total_time={seconds:.0f}", "-timeout=10", f"-rss_limit_mb={MEMORY + BASE}", f"-artifact_prefix={corpus}-", "-max_len=65536", "-print_final_stats=1"]
    command = [sys.executable, "-m", "fuzz.readers", target, *options, str(corpus)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", env=os.environ | {"TMPDIR": seeds.memory()})
    return native.libfuzzer(done.stderr) | ({} if done.returncode == 0 else {"failed": done.stderr[-3000:]})


def _base() -> int:
    """MiB of a reader's process before it reads."""
    probe = "import resource, torch, fuzz.targets; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    return int(subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True).stdout) + 100


def main(*chosen: str) -> int:
    seconds, jobs = float(os.environ.get("FUZZ_SECONDS", "600")), int(os.environ.get("FUZZ_JOBS") or os.cpu_count() or 1)
    folder = Path(os.environ.get("FUZZ_CORPUS", ROOT / ".fuzz"))
    names = chosen or (*seeds.names(), NATIVE)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        seeds.write(name, folder / name)
        if (KEPT / name).exists():
            shutil.copytree(KEPT / name, folder / name, dirs_exist_ok=True)
    with tempfile.TemporaryDirectory() as built:
        program, how = native.build(Path(built)) if NATIVE in names else (None, "")

        def fuzz(name: str) -> dict:
            figures = native.run(program, how, folder / name, seconds) if name == NATIVE else read(name, folder / name, seconds)
            print(json.dumps({"target": name} | {k: v for k, v in figures.items() if k != "failed"} | {"failed": "failed" in figures}), flush=True)
            return figures

        with ThreadPoolExecutor(jobs) as pool:
            found = dict(zip(names, pool.map(fuzz, names), strict=True))
    table = Table("target", "by", "executions", "edges", "inputs kept", "seconds", "outcome", title=f"{seconds:.0f} s each")
    for name, figures in found.items():
        by = how if name == NATIVE else "atheris"
        numbers = (f"{figures.get(k, 0):,}" for k in ("executions", "edges", "inputs", "seconds"))
        table.add_row(name, by, *numbers, "FAILED" if "failed" in figures else "typed errors only")
    Console(width=120 if not sys.stdout.isatty() else None).print(table)
    for name, figures in found.items():
        if "failed" in figures:
            print(f"--- {name}\n{figures['failed']}")
    print(f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.0f} s of CPU")
    return int(any("failed" in figures for figures in found.values()))


BASE = 0
if __name__ == "__main__":
    BASE = _base()
    sys.exit(main(*sys.argv[1:]))
