"""Through the stages of a course: what goes into the layers of one, its solution, and on to the next with the new values in place.

A block is run twice on all samples, once to see what goes into its layers and once, as it is now, for what the next one is given. In memory are the model, the
activations between two blocks, and the second moments of one. With `aims` the original model's activations are there too: what a block shall put out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from worker.reconstruction.course import Call, Stage, arguments, hidden
from worker.reconstruction.descent import Passage
from worker.moments import Moments
from worker.samples.data import Batch

Values = Mapping[nn.Parameter, torch.Tensor]
"""New values by weight, of its shape."""


@dataclass
class Walk:
    """Args:
    forward: of the whole network.
    batches: on its device.
    stages: see `worker.reconstruction.course.stages`.
    sequential: whether a stage is given what the model makes of the samples as changed so far; else what the original makes of them.
    aims: whether solutions are told what the original model makes of the samples, as far as it can be followed block by block; after that, what the block
        as it was makes of what it is given.
    advance: told of samples that went through a stage.
    """

    forward: Callable[[Batch], torch.Tensor]
    batches: list[Batch]
    stages: list[Stage]
    sequential: bool
    aims: bool = False
    advance: Callable[[Stage, int], None] = lambda stage, samples: None

    def __post_init__(self):
        self._mask: torch.Tensor | None = None
        self._calls: list[Call] = []
        self._originals: list[torch.Tensor] | None = None  # what the original model gives to the block, where that is not in `_calls`
        uses = Counter(id(p) for stage in self.stages if stage.block is not None for p in stage.block.parameters())
        self._shared = {weight for weight, count in uses.items() if count > 1}

    @torch.no_grad()
    def run(self, solve: Callable[[int, Stage, Moments, list[Passage]], Values], finished: Callable[[int, Stage], Values | None]) -> None:
        """Args:
        solve: new values of a stage's weights, once their moments are known and, with `aims`, how the samples pass its block.
        finished: those that are known already.
        """
        for number, stage in enumerate(self.stages):
            after = self.stages[number + 1] if number + 1 < len(self.stages) else None
            followed = after is not None and after.follows
            values, outputs = finished(number, stage), None
            if values is None or followed:
                self._enter(stage)
            aimed = self.aims and stage.block is not None and (values is None or followed)
            if values is None:
                with Moments(stage.layers, lambda: self._mask) as moments:
                    outputs = self._through(stage)
            elif aimed and self._originals is None:
                outputs = self._through(stage)
            targets = (outputs if self._originals is None else self._through(stage, self._originals)) if aimed else None
            if values is None:
                passages = [Passage(*call, target, batch.mask) for call, target, batch in zip(self._calls, targets, self.batches, strict=True)] if aimed else []
                values = solve(number, stage, moments, passages)
            if self.sequential:
                originals = {weight: weight.data for weight in values}
                for weight, new in values.items():
                    weight.data = new.to(device=weight.device, dtype=weight.dtype).contiguous()
                if followed:
                    outputs = self._through(stage)
                if all(later.follows for later in self.stages[number + 1 :]):  # nothing runs the stages so far again: their memory is given back
                    for weight, data in originals.items():
                        weight.data = weight.data if id(weight) in self._shared else data
            elif followed and outputs is None:
                outputs = self._through(stage)
            self._calls = [((output, *args[1:]), kwargs) for output, (args, kwargs) in zip(outputs, self._calls, strict=True)] if followed else []
            self._originals = targets if followed and self.sequential else None

    def _enter(self, stage: Stage) -> None:
        if stage.block is not None and not stage.follows:
            self._calls = [arguments(stage.block, self.forward, batch) for batch in self.batches]

    def _through(self, stage: Stage, inputs: list[torch.Tensor] | None = None) -> list:
        """What comes out of the block, batch by batch; of a stage outside of blocks, nothing. Args: inputs: in the place of those that it is given."""
        outputs = []
        for i, batch in enumerate(self.batches):
            self._mask = batch.mask
            if stage.block is None:
                self.forward(batch)
            else:
                args, kwargs = self._calls[i]
                args = args if inputs is None else (inputs[i], *args[1:])
                outputs.append(hidden(stage.block(*args, **kwargs)))
            self.advance(stage, len(batch))
        return outputs
