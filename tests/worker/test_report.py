"""The accounting fails loudly, errors agree with a float64 reference, totals name the worst tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.errors import AccountingMismatch
from app.recipe import Quantize
from worker.checkpoint import Checkpoint, Dropped, TensorSpec
from worker.encoded import Codebook, Encoded
from worker.report import account, encoded_row, errors, leftover_rows, row, totals


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


def test_totals():
    total = totals(rows(), {"a": 100}, 240)
    assert total["ratio"] == 2.4 and total["max_relative_error"] == {"tensor": "w", "value": 0.25}
    assert total["actions"] == {"quantized": 1, "copied": 1, "dropped": 1}


def test_the_row_of_a_codebook_says_how_it_is_coded():
    spec = TensorSpec("w", "F32", (2, 3), 24, "m.pt")
    step = Quantize(method="quantize", num_bits=4, strategy="channel")
    q = Codebook(torch.tensor([[0, 1, 0], [1, 1, 0]], dtype=torch.uint8), torch.tensor([[0, 1.0], [0, 2.0]]).half(), 3, 3, step)
    r = encoded_row(torch.tensor([[0, 1.0, 0], [2.0, 2.0, 0]]), Encoded(spec, "quantized", q.dequantize(), quantized=q), 99)
    assert {k: r[k] for k in ("num_bits", "type", "strategy", "group_size", "relative_error")} == {
        "num_bits": 3, "type": "codebook", "strategy": "channel", "group_size": 3, "relative_error": 0.0,
    }  # fmt: skip
