"""A recipe carried out, as the stage that compresses does it: its bytes are those of the result, its quality that of the values in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from app.recipe import Recipe, parse_recipe
from worker import report
from worker.checkpoint import Checkpoint
from worker.methods import apply, plan, prepare
from worker.output import open_writer
from worker.plan import TensorPlan
from worker.reconstructing import RESUME, Reconstruction
from worker.search.effect import Effect
from worker.search.groups import Group
from worker.statistics import Statistics

_ENTRY = 60  # bytes of a tensor's place in a packed file


@dataclass(frozen=True)
class Trial:
    """Args:
    rows, totals: of the report that the recipe would have.
    quality: figures on held-out samples; empty where the model is not run.
    finished: a folder with what its reconstruction has come to, which a job that carries it out once more goes on from; None where nothing is reconstructed.
    """

    recipe: dict
    rows: list[dict]
    totals: dict
    quality: dict[str, float | None]
    finished: Path | None = None

    def bytes_of(self, groups: list[Group]) -> int:
        names = {n for g in groups for n in g.names}
        return sum(r["bytes_after"] for r in self.rows if r["name"] in names)

    def hand_over(self, folder: Path) -> None:
        """Move what it has finished to `folder`, if anything."""
        if self.finished:
            shutil.move(self.finished, folder)

    def forget(self) -> None:
        """Remove what it has finished."""
        if self.finished:
            shutil.rmtree(self.finished, ignore_errors=True)


class Carrying:
    """What is needed to carry recipes out, one after another, in `scratch`."""

    def __init__(self, inp: Path, checkpoint: Checkpoint, scratch: Path, spec: dict, device: torch.device, statistics: Statistics | None, effect: Effect | None):
        self.inp, self.checkpoint, self.output, self.scratch, self.spec, self.device = inp, checkpoint, spec["output"]["format"], scratch, spec, device
        self.statistics, self.effect = statistics, effect
        self.before = sum(p.stat().st_size for p in checkpoint.files.values())
        self._count = 0  # of reconstructions

    def fixed(self, recipe: Recipe, names: Collection[str]) -> int:
        """Bytes of a result beside the tensors `names`, nearly: how they are described depends on what becomes of them.

        Args:
            recipe: one that changes them all, for formats whose layout has to be known beforehand.
        """
        if self.output == "packed":
            return self._written(recipe, lambda name, encoded: None, left_out=frozenset(names))[1] + _ENTRY * len(names)
        rows, total = self._written(recipe, lambda name, encoded: None)
        return total - sum(r["bytes_after"] for r in rows if r["name"] in names)

    def out(self, recipe: dict, names: Collection[str]) -> Trial:
        """Args: names: tensors that the recipe changes. Raises: what preparing and writing raise."""
        parsed, totals = parse_recipe(recipe), {}
        self._count += 1

        def look(values: dict[str, torch.Tensor]) -> list[dict]:
            rows, total = self._written(parsed, lambda name, encoded: values.__setitem__(name, encoded.dense) if name in names else None)
            totals.update(report.totals(rows, {"": total}, self.before))
            return rows

        finished = self._folder / RESUME if parsed.reconstructs else None
        if self.effect is None:
            return Trial(recipe, look(_Nothing()), totals, {}, finished)
        with self.effect.changed() as values:
            return Trial(recipe, look(values), totals, self.effect.held_out(), finished)

    def _written(self, recipe: Recipe, saw: Callable, left_out: Collection[str] = ()) -> tuple[list[dict], int]:
        """Rows of the report, and the bytes of all files."""
        files = self.scratch / "trial"
        files.mkdir()
        try:
            plans = plan(self.checkpoint, recipe, self.output)
            if not left_out:
                prepare(self.checkpoint, recipe, plans, self.device, statistics=self.statistics)
            ahead = self._ahead(recipe, plans) if recipe.reconstructs else None
            writer, rows = open_writer(self.output, files, self.checkpoint, plans), []
            for name, tensor_plan in plans.items():
                if name in left_out:
                    continue
                original = self.checkpoint.read(name)
                encoded = ahead and ahead.encode(tensor_plan, original) or apply(tensor_plan, original, self.device)
                rows.append(report.encoded_row(original, encoded, writer.write(encoded), tensor_plan.experts))
                saw(name, encoded)
            writer.finish()
            return rows, sum(p.stat().st_size for p in files.rglob("*") if p.is_file())
        finally:
            shutil.rmtree(files, ignore_errors=True)

    def _ahead(self, recipe: Recipe, plans: dict[str, TensorPlan]) -> Reconstruction:
        """What goes through a model of its own, block by block."""
        self._folder.mkdir()
        beside = {role: path for role, path in self.spec["beside"].items() if role != RESUME}
        ahead = Reconstruction(self.inp, self._folder, self.spec | {"beside": beside, "recipe": recipe.model_dump(mode="json")}, lambda event: None)
        ahead.work(self.checkpoint, recipe, plans, self.device)
        return ahead

    @property
    def _folder(self) -> Path:
        """Of the reconstruction at hand."""
        return self.scratch / f"ahead{self._count}"


class _Nothing(dict):
    """Where values go when there is no model to be run with them."""

    def __setitem__(self, name: str, value: torch.Tensor) -> None: ...
