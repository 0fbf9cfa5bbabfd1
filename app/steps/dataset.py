"""The steps of a job on a data set."""

from __future__ import annotations

DATASET: dict[str, type] = {}
"""Params class by method."""
