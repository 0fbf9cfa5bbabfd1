"""The accounting fails loudly, errors agree with a float64 reference, gates judge the worst tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.errors import AccountingMismatch, GateFailed
from worker.checkpoint import Checkpoint, Dropped, TensorSpec
from worker.report import account, enforce, errors, judge, leftover_rows, row, totals


def checkpoint() -> Checkpoint:
    spec = TensorSpec("w", "F32", (2, 3), 24, "m.pt")
    return Checkpoint(Path(), {}, ("m.pt",), {"w": spec}, {"tied": "w"}, [Dropped("optimizer", 8, "optimizer state")], None, "torch", {}, lambda name: torch.zeros(2, 3), {})


def rows():
    c = checkpoint()
    return [row(c.tensors["w"], "quantized", 5, relative_error=0.25, cosine=0.9), *leftover_rows(c, stored=False)]


def test_a_whole_account_passes():
    account(checkpoint(), rows())
    assert [r["action"] for r in rows()] == ["quantized", "copied", "dropped"]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda r: r.pop(),
        lambda r: r.append(dict(r[0])),
        lambda r: r.append(dict(r[0], name="stranger")),
        lambda r: r[1].pop("reason"),
        lambda r: r[0].update(action="forgotten"),
    ],
)
def test_a_broken_account_fails(break_it):
    broken = rows()
    break_it(broken)
    with pytest.raises(AccountingMismatch):
        account(checkpoint(), broken)


def test_errors_against_float64():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 301)), rng.normal(size=(7, 301))
    got = errors(torch.tensor(a), torch.tensor(b))
    assert got["relative_error"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert got["cosine"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert got["sqnr_db"] == pytest.approx(-20 * np.log10(got["relative_error"]), abs=1e-3)


def test_errors_at_the_edges():
    zero, one = torch.zeros(3), torch.ones(3)
    assert errors(zero, zero) == {"relative_error": 0.0, "sqnr_db": None, "cosine": 1.0, "sparsity": 1.0}
    assert errors(zero, one)["relative_error"] is None
    assert errors(torch.empty(0, 4), torch.empty(0, 4))["sparsity"] == 0.0


def test_gates_judge_the_worst_tensor():
    r = rows()
    total = totals(r, {"a": 100}, 240)
    assert total["ratio"] == 2.4 and total["max_relative_error"] == {"tensor": "w", "value": 0.25}
    assert all(j["passed"] for j in judge({"max_relative_error": 0.25, "min_cosine": 0.9, "max_bytes": 100}, r, total).values())
    for gate, limit in (("max_relative_error", 0.2), ("min_cosine", 0.95), ("max_bytes", 99)):
        judged = judge({gate: limit}, r, total)
        with pytest.raises(GateFailed, match=gate) as e:
            enforce(judged)
        assert e.value.pointer == f"/gates/{gate}"


def test_a_value_that_is_not_finite_misses_its_gate():
    r = [dict(rows()[0], relative_error=None, cosine=None)]
    judged = judge({"max_relative_error": 1e9, "min_cosine": -1.0}, r, {"bytes_after": 1})
    assert not any(j["passed"] for j in judged.values())
