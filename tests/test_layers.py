"""Imports run one way, and whatever is named has a handler and a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from app.job_spec import FORMATS
from app.recipe import METHODS, Auto, Restore

ROOT = Path(__file__).parents[1]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def test_the_api_loads_neither_torch_nor_a_worker():
    code = "import app.main, sys; print([m for m in ('torch', 'worker', 'numpy', 'transformers', 'model_signing') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "folder, forbidden",
    [
        ("app", ("torch", "worker", "numpy", "transformers", "compressed_tensors")),
        ("worker/kernels", ("app", "worker.methods", "worker.formats", "worker.checkpoint", "worker.encoded", "worker.plan", "transformers")),
        ("worker/formats", ("worker.methods", "worker.pipeline", "app.db", "app.storage", "app.jobs", "transformers")),
        ("worker/methods", ("worker.formats", "worker.pipeline", "app.db", "app.storage", "app.jobs", "transformers")),
    ],
)
def test_imports_run_one_way(folder, forbidden):
    for path in (ROOT / folder).rglob("*.py"):
        bad = {m for m in imported(path) for f in forbidden if m == f or m.startswith(f + ".")}
        assert not bad, (path, bad)


def test_methods_never_import_each_other():
    from worker.methods import METHODS as HANDLERS

    files = {h.__module__ for h in HANDLERS.values()}
    for module in files:
        others = imported(ROOT / (module.replace(".", "/") + ".py")) & (files - {module})
        assert not others, (module, others)


def test_every_method_and_format_has_its_handler_and_a_test():
    from worker.methods import METHODS as HANDLERS
    from worker.output import READERS, WRITERS

    assert set(HANDLERS) == set(METHODS.values()) - {Auto, Restore}  # which are no steps of one tensor
    assert set(WRITERS) == set(READERS) == set(FORMATS) - {"original"}
    tests = "".join(p.read_text() for p in (ROOT / "tests" / "worker").rglob("test_*.py"))
    assert all(f'"{name}"' in tests for name in (*METHODS, *WRITERS))


def test_the_childs_side_has_no_database_no_storage_and_no_network():
    for name in ("__main__", "pipeline", "lossless", "lossy", "proof", "restore", "sanitize", "output", "report", "quality", "lockstep", "reloaded", "measuring", "offline", "searching", "search/trial", "search/effect"):
        bad = {m for m in imported(ROOT / "worker" / f"{name}.py") for f in ("app.db", "app.models", "app.storage", "app.jobs", "app.signing", "httpx", "socket") if m.startswith(f)}
        assert not bad, (name, bad)
