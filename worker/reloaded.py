"""A result as its users have it again: restored where only we read the format, else its files as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from app.errors import AccountingMismatch
from worker.checkpoint import Checkpoint
from worker.formats import open_checkpoint
from worker.restore import restore

RESTORED = ("packed", "compressed-tensors")


@contextmanager
def reloaded(output: str, files: Path, scratch: Path, progress: Callable[[int], None]) -> Iterator[tuple[Path, Checkpoint]]:
    """The folder that a user would open, and the model in it.

    Args:
        output: the format of the result in `files`.
        scratch: what has to be restored goes into a new folder of it.
        progress: told of bytes restored.
    """
    folder = files
    if output in RESTORED:
        folder = scratch / "restored"
        restore(files, scratch, folder, progress)
    (extracted := scratch / "reloaded").mkdir()
    checkpoint = open_checkpoint(folder, extracted)
    try:
        yield folder, checkpoint
    finally:
        checkpoint.close()


class Weights:
    """The tensors of a checkpoint by name, those of tied names too, read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def fits(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Whether every name is there with its shape.

        Raises:
            AccountingMismatch: a name is not there at all.
        """
        if missing := [n for n in shapes if self._source(n) not in self.checkpoint.tensors]:
            raise AccountingMismatch(f"{len(missing)} tensors that the model runs on are not in the result, {min(missing)!r} first")
        return all(tuple(self.checkpoint.tensors[self._source(n)].shape) == shape for n, shape in shapes.items())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.checkpoint.read(self._source(name))

    def _source(self, name: str) -> str:
        return self.checkpoint.aliases.get(name, name)
