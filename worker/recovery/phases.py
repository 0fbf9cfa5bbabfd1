"""What happens to the weights while they are trained: a mask that takes ever more of them, or codes that change until they are frozen."""

from __future__ import annotations

from dataclasses import replace

import torch

from app.recipe import Prune, Quantize
from worker.kernels import schedule
from worker.methods import prune
from worker.plan import TensorPlan
from worker.recovery.coded import Coded
from worker.recovery.rounded import Rounded
from worker.recovery.weights import Masked, Weight

RAMP = 0.6
"""The share of a phase's steps in which weights are pruned, or codes change; what is left lets the others settle."""
_ASSIGNED = 50  # times that codes are assigned anew


class Pruning:
    """Masks under a schedule, ranked by the weights as they are and by the gradients lately seen.

    Args:
        weights: all that are trained; those of `plans` are pruned.
    """

    def __init__(self, step: Prune, plans: dict[str, TensorPlan], weights: dict[str, Weight]):
        self.step, self.plans, self.weights, self.recover = step, plans, weights, step.recover
        self.at = schedule.prunings(self.recover.steps, step.schedule.steps, RAMP) if step.gradual else []
        self.settles = self.at[-1] if self.at else 0

    def begin(self, device: torch.device) -> None:
        """A mask at once, by the statistics of the plan, where there is no schedule."""
        if not self.at:
            masks(self.step, self.plans, self.weights)

    def before(self, t: int) -> None:
        """Args: t: steps done."""
        due = [i for i, at in enumerate(self.at) if at == t]
        if due:
            sparsity = schedule.cubic(self.step.sparsity, (due[-1] + 1) / len(self.at))
            now = self.step.model_copy(update={"sparsity": sparsity})
            observed = Observed({name: self.weights[name] for name in self.plans})
            masks(now, {name: replace(plan, steps=[now], statistics=observed) for name, plan in self.plans.items()}, self.weights)

    def penalty(self, t: int) -> tuple[str, float]:
        """While the schedule runs; without one until a third of the steps is done."""
        until = self.settles or self.recover.steps // 3
        return (self.recover.penalty, self.recover.lambda_) if t < until else ("none", 0.0)


class Observed:
    """What training has seen of the gradients, as `worker.statistics.Statistics` tells them: running means over mini-batches in the place of sums."""

    def __init__(self, weights: dict[str, Masked]):
        self.weights = weights
        self.names = frozenset(weights)

    def square(self, name: str) -> torch.Tensor:
        return self.weights[name].moments.mean_square()

    def absolute(self, name: str) -> torch.Tensor:
        return self.square(name).sqrt()


class _Values:
    """The weights as they are, read like a checkpoint."""

    def __init__(self, weights: dict[str, Masked]):
        self.weights = weights

    def read(self, name: str) -> torch.Tensor:
        return self.weights[name].parameter.data


def masks(step: Prune, plans: dict[str, TensorPlan], weights: dict[str, Masked]) -> None:
    """Prune by `step`, each tensor by its own plan."""
    device = next(iter(weights.values())).parameter.device
    prune.find_threshold(_Values(weights), step, plans, device)
    for name, plan in plans.items():
        own = plan.step(Prune) or step
        matrix = plan.matrix(weights[name].parameter.data)
        kept = prune.keep_mask(matrix, own, plan.threshold, prune.sensitivity(plan, own, device), plan.experts)
        weights[name].prune(plan.shaped(kept))


class Coding:
    """Codebooks: levels and latent weights first, then levels alone. Tensors that no step works on are put on a grid, where bits have a price.

    Args:
        samples: that the plans' statistics are sums over.
    """

    def __init__(self, step: Quantize, plans: dict[str, TensorPlan], weights: dict[str, Weight], samples: int):
        self.step, self.plans, self.weights, self.recover, self.batch, self.samples = step, plans, weights, step.recover, step.recover.batch_size, samples
        self.settles = max(1, int(self.recover.steps * RAMP))
        self.every = max(1, self.settles // _ASSIGNED)

    def begin(self, device: torch.device) -> None:
        """Replace what is masked by what is coded, in place of `weights`."""
        for name, weight in list(self.weights.items()):
            fisher = self._fisher(name, weight)
            if (plan := self.plans.get(name)) is not None:
                self.weights[name] = Coded(weight.parameter, plan, self.step, fisher, weight.mask, self.recover.bit_price, self.batch, weight.scale)
            elif self.recover.bit_price and weight.plan is None:
                self.weights[name] = Rounded(weight.parameter, fisher, self.recover.bit_price)

    def _fisher(self, name: str, weight: Masked) -> torch.Tensor:
        """Half of the mean over samples of g^2, which is what the loss grows by with the square of an error: as training has seen it (a mean over a batch has
        a share of one batch size of the samples' own squares), else as calibration has."""
        if weight.moments.count:
            return weight.moments.mean_square() * (self.batch / 2)
        plan = self.plans.get(name)
        if plan is None or plan.statistics is None or name not in plan.statistics.names:
            return torch.ones_like(weight.parameter)
        return plan.statistics.square(name).to(weight.parameter.device) / (2 * (1 if plan.statistics.uploaded else self.samples))

    def before(self, t: int) -> None:
        if t >= self.settles:
            for name in self.plans:
                self.weights[name].frozen = True
        elif t and t % self.every == 0:
            for name in self.plans:
                self.weights[name].assign(min(1.0, t / (self.settles * 0.7)))

    def penalty(self, t: int) -> tuple[str, float]:
        return "none", 0.0


Phase = Pruning | Coding
