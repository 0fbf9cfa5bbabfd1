"""Whole matrices as options leave them, kept while there is room."""

from __future__ import annotations

import torch

from app.memory import TRIED
from worker.checkpoint import Checkpoint
from worker.encoded import Encoded
from worker.search.encoding import encode
from worker.search.groups import Group
from worker.search.options import Option


class Cache:
    """Encoded matrices, as long as their values take no more than `app.memory.TRIED` bytes together; others are encoded anew each time."""

    def __init__(self, checkpoint: Checkpoint, output: str, device: torch.device):
        self.checkpoint, self.output, self.device = checkpoint, output, device
        self.kept: dict[tuple[str, str], Encoded] = {}
        self.bytes = 0

    def all(self, group: Group, option: Option) -> list[Encoded]:
        return [self.one(p, option) for p in group.plans]

    def one(self, plan, option: Option) -> Encoded:
        key = plan.spec.name, repr(option)
        if key in self.kept:
            return self.kept[key]
        encoded = encode(plan, option, self.checkpoint.read(plan.spec.name), self.output, self.device)
        if self.bytes + encoded.dense.nbytes <= TRIED:
            self.bytes += encoded.dense.nbytes
            self.kept[key] = encoded
        return encoded
