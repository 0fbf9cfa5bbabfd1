"""The steps of a job on images."""

from __future__ import annotations

IMAGES: dict[str, type] = {}
"""Params class by method."""
