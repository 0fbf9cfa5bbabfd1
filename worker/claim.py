"""A worker's hold on its job: kept alive from a thread of its own, and known to be void as soon as it is."""

from __future__ import annotations

import logging
import threading
import time

from app import jobs
from app.config import settings
from app.db import session
from app.forecast import Forecast, expected
from app.models import Job

log = logging.getLogger(__name__)
STEP = 0.01  # of the whole; less is told with the next heartbeat


class Lost(Exception):
    """The claim is void: write nothing more."""


class Claim:
    """Holds `job` while the body of the `with` runs. `progress`, that of the stage at hand, may be set at any time and is told with the next look."""

    def __init__(self, job: Job):
        self.job, self.progress = job, {"stage": "fetch", "fraction": 0.0, "bytes_done": 0, "bytes_total": 0}
        self.lost, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def __enter__(self) -> Claim:
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()

    def _keep(self) -> None:
        """Looks often whether the claim holds (a cancel must end the child soon), extends the lease now and then. A database that does not
        answer for a whole lease counts as a claim lost."""
        beat = answered = time.monotonic()
        told: dict = {}
        forecast: Forecast | None = None
        while not self.ended.wait(settings().poll) and not self.lost.is_set():
            try:
                with session() as s, s.begin():
                    forecast = forecast or Forecast(expected(s, self.job), answered)
                    telling = self._telling(forecast)
                    if time.monotonic() - beat >= settings().heartbeat or _visible(told, telling):
                        good = jobs.heartbeat(s, self.job.id, self.job.fence, progress=telling)
                        told, beat = telling, time.monotonic()
                    else:
                        good = jobs.held(s, self.job.id, self.job.fence)
            except Exception as e:  # whatever the database raises: what counts is for how long
                log.warning("job %s: no heartbeat: %s", self.job.id, e)
                good = time.monotonic() - answered < settings().lease
            else:
                answered = time.monotonic()
            if not good:
                self.lost.set()

    def _telling(self, forecast: Forecast) -> dict:
        """The progress of the stage as one of the job."""
        stage = self.progress
        fraction, eta = forecast.look(stage["stage"], stage["fraction"], time.monotonic())
        return stage | {"fraction": round(fraction, 4), "eta": round(eta, 1 if eta < 10 else 0)}

    def check(self) -> None:
        """Raises:
        Lost: as the thread has found.
        """
        if self.lost.is_set():
            raise Lost


def _visible(told: dict, telling: dict) -> bool:
    """Whether somebody who watches would see the change; the ETA goes by itself."""
    return not told or telling["stage"] != told["stage"] or telling["fraction"] - told["fraction"] >= STEP
