"""Fraction and ETA of a job, on jobs whose stages are made up."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app.forecast import Forecast, by_thumb, expected, stages
from app.job_spec import PRESETS
from app.models import Job

SPEC = {"recipe": {"steps": [{"method": "prune"}]}, "output": {"format": "packed"}}


def run(forecast: Forecast, actual: dict[str, float], step: float = 0.5) -> list[tuple[float, float, float]]:
    """(time, fraction, eta) as a claim would see them, of a job whose stages go on evenly and take `actual` seconds."""
    seen, now, total = [], 0.0, sum(actual.values())
    while now < total:
        into, stage = now, None
        for stage, seconds in actual.items():
            if into < seconds:
                break
            into -= seconds
        seen.append((now, *forecast.look(stage, into / actual[stage], now)))
        now += step
    return seen


seconds = st.dictionaries(st.sampled_from(["fetch", "compress", "verify", "store", "sign"]), st.floats(0.1, 300), min_size=1)


@examples(deadline=None)
@given(seconds, st.lists(st.tuples(st.text(max_size=8) | st.sampled_from(["fetch", "verify", "sign"]), st.floats(0, 1), st.floats(0, 100))))
@example({"verify": 1.0}, [("verify", 0.0, 0.0), ("verify", 2.2e-308, 4.0)])
def test_the_fraction_never_goes_back_whatever_is_told(guess, told):
    forecast, now, last = Forecast(guess, 0.0), 0.0, 0.0
    for stage, fraction, later in told:
        now += later
        whole, eta = forecast.look(stage, fraction, now)
        assert last <= whole <= 1 and 0 <= eta < float("inf")
        last = whole


@examples(deadline=None)
@given(st.floats(0.02, 50))
def test_a_wrong_guess_of_the_stage_that_counts_is_mended_by_its_own_pace(factor):
    actual = {"fetch": 1.0, "compress": 100.0, "verify": 5.0, "store": 2.0, "sign": 2.0}
    seen = run(Forecast(actual | {"compress": 100.0 * factor}, 0.0), actual)
    for now, _, eta in seen:
        if now > 22:
            assert eta == pytest.approx(110 - now, rel=0.05, abs=1)


def test_right_guesses_make_a_straight_line():
    actual = {"fetch": 5.0, "compress": 20.0, "verify": 30.0, "store": 5.0}
    for now, fraction, eta in run(Forecast(actual, 0.0), actual):
        assert fraction == pytest.approx(now / 60, abs=0.02) and eta == pytest.approx(60 - now, abs=1)


def test_a_pace_that_changes_is_followed():
    """A machine that gets busy after 100 of 1000 seconds and is three times slower then."""
    forecast, now, done = Forecast({"compress": 1000.0}, 0.0), 0.0, 0.0
    while now < 300:
        _, eta = forecast.look("compress", done, now)
        done += 0.001 if now < 100 else 0.001 / 3
        now += 1
    assert eta == pytest.approx(3000 * (1 - done), rel=0.05)


def test_a_large_tensor_lets_time_go_by():
    forecast = Forecast({"compress": 10.0}, 0.0)
    for t, f in ((0.0, 0.0), (10.0, 0.25), (20.0, 0.5)):
        forecast.look("compress", f, t)
    assert forecast.look("compress", 0.5, 25.0)[1] == pytest.approx(15)
    assert forecast.look("compress", 0.5, 300.0)[1] == 0.0
    assert Forecast({"compress": 1.0}, 0.0).look("compress", 0.0, 0.0)[1] == 1.0


def test_stages_of_a_job():
    assert stages(SPEC) == ["fetch", "compress", "verify", "store", "sign"]
    assert stages(SPEC | {"output": {"format": "compressed-tensors"}})[3] == "prove"
    assert stages({"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}}) == ["fetch", "restore", "store", "sign"]
    trained = {"recipe": PRESETS["deep-compression"], "output": {"format": "packed"}, "calibration": "x"}
    assert stages(trained) == ["fetch", "compress", "recover", "verify", "measure", "store", "sign"]  # it sees the gradients itself: nothing is calibrated
    search = {"recipe": {"steps": [{"method": "quantize", "num_bits": 4, "scale_search": "mse", "type": "nf"}]}, "output": {"format": "packed"}}
    assert by_thumb(search, 10**9)["compress"] > 5 * by_thumb(SPEC, 10**9)["compress"]


def test_what_a_job_like_it_took_is_the_guess(api):
    measured = {"fetch": 1.0, "compress": 10.0, "verify": 2.0, "store": 0.5, "sign": 0.25}
    with api.session() as s, s.begin():
        for size, factor, spec in ((1000, 1, SPEC), (8000, 4, SPEC), (4000, 99, SPEC | {"recipe": {"steps": [{"method": "lossless"}]}})):
            timings = {stage: factor * t for stage, t in measured.items()}
            s.add(Job(owner="carol", spec=spec, state="succeeded", input_bytes=size, timings=timings))
        s.add(Job(owner="carol", spec=SPEC, state="succeeded", input_bytes=2000, cached=True))  # took nothing
        s.flush()
        assert expected(s, Job(owner="carol", spec=SPEC, input_bytes=1500)) == {stage: 1.5 * t for stage, t in measured.items()}
        assert expected(s, Job(owner="carol", spec=SPEC, input_bytes=16000)) == {stage: 8 * t for stage, t in measured.items()}
        assert expected(s, Job(owner="dave", spec=SPEC, input_bytes=1500)) == by_thumb(SPEC, 1500)
        assert expected(s, Job(owner="carol", spec=SPEC, input_bytes=0)) == by_thumb(SPEC, 0)


def test_recovery_is_followed_though_compression_is_told_first():
    forecast = Forecast({"fetch": 1.0, "compress": 1.0, "recover": 1.0, "store": 1.0}, 0.0)
    forecast.look("fetch", 0.0, 0.0)
    forecast.look("compress", 0.0, 1.0)
    for t in range(101):
        _, left = forecast.look("recover", t / 1000, 2.0 + t)
    assert left == pytest.approx(900, rel=0.2)


def test_what_learns_its_rounding_takes_longer_with_each_step():
    seconds = [by_thumb({"recipe": {"steps": [{"method": "quantize", "num_bits": 4, "algorithm": "autoround", "steps": n}]}, "calibration": "c", "output": {"format": "packed"}}, 10**8)["reconstruct"] for n in (1, 200)]
    assert seconds[1] > 3 * seconds[0] > 0
