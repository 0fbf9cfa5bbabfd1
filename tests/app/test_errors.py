"""The types of problems: each refusal has one title, and something that refuses by it."""

from __future__ import annotations

import ast
from pathlib import Path

from app.errors import REFUSALS

ROOT = Path(__file__).parents[2]
LATER = {"invalid-onnx"}


def test_no_refusal_is_named_twice():
    tree = ast.parse((ROOT / "app" / "errors.py").read_text())
    (table,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "REFUSALS"]
    names = [key.value for key in table.keys]
    assert sorted(names) == sorted(REFUSALS)


def test_every_refusal_is_made_somewhere():
    sources = [p.read_text() for top in ("app", "worker") for p in (ROOT / top).rglob("*.py") if p.name != "errors.py"]
    assert {name for name in REFUSALS if not any(f'"{name}"' in source for source in sources)} == LATER
