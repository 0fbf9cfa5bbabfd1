"""Why a data set is not taken, by the part of it that is wrong."""

from __future__ import annotations

from app.errors import InputRefused


def damaged(why: str) -> InputRefused:
    """Of the artifact of a data set, which `restore` reads."""
    return InputRefused("invalid-dataset", why)


def invalid_numpy(why: str) -> InputRefused:
    return InputRefused("invalid-numpy", why)


def invalid_table(why: str) -> InputRefused:
    """Of parquet, arrow or csv."""
    return InputRefused("invalid-table", why)
