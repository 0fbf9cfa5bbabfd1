"""The steps of a job on a data set, in their order: columns, dedup, prune, quantize, reencode. Whatever the steps, the result is coded without a further loss."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.steps.fields import refuse
from app.strict import Strict

Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Names = Annotated[list[Name], Field(min_length=1, max_length=10_000)]


class Columns(Strict):
    """Leave columns or arrays out, or put hashes in the place of text and whole numbers.

    A hash is HMAC-SHA-256 under a key that is drawn for the job and kept nowhere: equal values stay equal, and nobody can try what they were.
    """

    seconds: ClassVar[float] = 1e-8
    method: Literal["columns"]
    drop: Names | None = None
    hash: Names | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.drop and not self.hash:
            refuse("drop", "drop, hash or both are needed")
        if both := set(self.drop or ()) & set(self.hash or ()):
            refuse("hash", "{name} is dropped, so there is nothing to hash", name=min(both))
        return self


class Dedup(Strict):
    """Keep the first of rows that are equal, or nearer to one another than `distance`."""

    seconds: ClassVar[float] = 1e-7
    method: Literal["dedup"]
    by: Names | None = None
    distance: Annotated[float, Field(gt=0)] | None = None
    metric: Literal["euclidean", "cosine"] | None = None

    @model_validator(mode="after")
    def _near(self) -> Self:
        if self.metric and self.distance is None:
            refuse("metric", "metric says how a distance is measured, and there is none; give distance")
        return self


class PruneRows(Strict):
    """Keep the rows that a model learns most from.

    `el2n` and `grand` (Paul et al. 2021) rank rows by how a small network errs on them early in training, `kmeans` takes those nearest to the centres of as many clusters
    as are to be kept, `random` draws them; each class by itself.
    """

    seconds: ClassVar[float] = 3e-6
    method: Literal["prune"]
    keep: Annotated[float, Field(gt=0, lt=1)]
    saliency: Literal["grand", "el2n", "kmeans", "random"] = "el2n"
    drop_hardest: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label: Name | None = None
    features: Names | None = None
    balance: Literal["proportional", "equal"] = "proportional"
    seeds: Annotated[int, Field(ge=1, le=32)] = 4
    epochs: Annotated[int, Field(ge=0, le=100)] = 4

    @model_validator(mode="after")
    def _labelled(self) -> Self:
        scored = self.saliency in ("grand", "el2n")
        if scored and self.label is None:
            refuse("label", "{saliency} asks how a network errs on each row, which takes labels; name their column or array in label", saliency=self.saliency)
        if self.drop_hardest and not scored:
            refuse("drop_hardest", "drop_hardest goes by the errors that grand or el2n rank rows by, and {saliency} has none", saliency=self.saliency)
        if self.keep + self.drop_hardest > 1:
            refuse("drop_hardest", "keep and drop_hardest are more than 1 together")
        return self


class QuantizeNumbers(Strict):
    """Move floating numbers by no more than a bound, checked on every one of them as it was written. NaN and infinities stay exactly as they are."""

    seconds: ClassVar[float] = 1e-7
    method: Literal["quantize"]
    max_abs_error: Annotated[float, Field(gt=0)] | None = None
    max_rel_error: Annotated[float, Field(gt=0, lt=1)] | None = None
    columns: Names | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.max_abs_error is None) == (self.max_rel_error is None):
            refuse("max_abs_error", "one of max_abs_error and max_rel_error is needed")
        return self


class Reencode(Strict):
    """Code every column and array exactly, each in the way that a trial on a sample of it has shown to be smallest.

    With `container: parquet` the columns of tables stay in one parquet file, which other tools open; `any` lets numbers leave it where pcodec is smaller.
    """

    keeps_values: ClassVar[bool] = True
    seconds: ClassVar[float] = 1.5e-7
    method: Literal["reencode"]
    container: Literal["any", "parquet"] = "any"
    level: Annotated[int, Field(ge=1, le=19)] = 9


DATASET: dict[str, type] = {"columns": Columns, "dedup": Dedup, "prune": PruneRows, "quantize": QuantizeNumbers, "reencode": Reencode}
"""Params class by method."""
