"""What a codec is made from, and what comes of it, whichever kind it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.steps.image import TrainCodec
from worker.images.learned.held_out import Part


@dataclass(frozen=True)
class Lesson:
    """Args:
    state: where states are written.
    resume: the state of an earlier attempt, or None.
    device: "cpu" or "cuda".
    tick: called with the seconds used.
    """

    step: TrainCodec
    learned: list[Part]
    held_out: list[Part]
    seed: int
    device: str
    state: Path
    resume: Path | None
    tick: Callable[[float], None]


@dataclass(frozen=True)
class Fit:
    """Args:
    data: the codec's file. encoder: that of its encoder, empty where there is none.
    told: for the report.
    """

    data: bytes
    encoder: bytes
    told: dict
    notes: list[str]
