"""What a budget leaves, and what it says of a result that misses it."""

from __future__ import annotations

import math

import pytest

from app.errors import BudgetNotMet
from worker.search.bounds import Bounds
from worker.search.trial import Trial


def trial(size: int, **quality: float) -> Trial:
    row = {"name": "w", "action": "quantized", "shape": [10, 10], "bytes_after": size - 100, "relative_error": 0.1}
    return Trial({}, [row], {"bytes_after": size, "bytes_before": 1000}, quality)


def test_the_room_is_that_of_the_narrowest_size():
    assert Bounds({"min_cosine": 0.9}, 100, 1000).room(100) == math.inf
    assert Bounds({"ratio": 4.0}, 100, 1000).room(100) == 150 and Bounds({"ratio": 4.0, "max_bytes": 200, "avg_bits": 12.0}, 100, 1000).room(100) == 100


def test_a_figure_on_outputs_is_held_with_something_to_spare():
    bounds = Bounds({"min_cosine": 0.9, "max_kl": 1.0}, 100, 1000)
    assert bounds.good({"cosine": 0.92, "kl": 0.7}, 0.15) and not bounds.good({"cosine": 0.92, "kl": 0.9}, 0.15) and not bounds.good({"cosine": 0.91, "kl": 0.7}, 0.15)
    assert not bounds.good({"cosine": None, "kl": 0.1}, 0) and bounds.spare(trial(300, cosine=0.95, kl=0.2)) and not bounds.spare(trial(300, cosine=0.95, kl=0.9))


def test_the_nearest_is_told_of_all_that_was_missed():
    bounds = Bounds({"max_bytes": 200, "min_cosine": 0.9}, 100, 1000)
    bounds.refuse(trial(300, cosine=0.95), ["min_cosine"], "the best")  # which it has
    with pytest.raises(BudgetNotMet, match="the best has max_bytes 300, the budget is 200") as e:
        bounds.refuse(trial(300, cosine=0.8), ["max_bytes", "min_cosine"], "the best")
    assert e.value.pointer == "/budget/max_bytes" and e.value.extra["nearest"] == {"max_bytes": 300, "min_cosine": 0.8}
    assert bounds.missed(trial(150, cosine=0.8)) == ["min_cosine"]
