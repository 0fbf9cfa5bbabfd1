"""One pass over calibration data that collects what several methods need: for each weight sum |g| and sum g^2 over samples, for each linear layer the
sum of its squared inputs over tokens. See `worker.statistics` for the file.

Gradients come from hooks, in batches, where these are exact for each sample; that is tried first, against autograd, with a batch of which one sample alone
has a loss. Where a weight fails (a layer that hooks do not see, samples that are mixed), samples go one by one, and what hooks do not see even then is left to
autograd. Memory: the model, two float32 sums of its size, and one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from app.errors import InputRefused
from worker.losses import losses
from worker.routing import Routing
from worker.runnable.runnable import Runnable
from worker.samples.data import Data
from worker.samples.split import split
from worker.watching import Gradients, Inseparable, Watch

MOST_SAMPLES = 1024
"""Of a data set; more change little and cost time in proportion."""
_TOKENS, _ROWS, _LOGITS = 1024, 64, 1 << 26  # of a batch, padding included: tokens, samples, numbers of its logits
_CLOSE = 1e-3  # of the largest gradient of a tensor: float32 sums in another order


@dataclass
class Sums:
    """By parameter; `inputs` are float64 [I], `tokens` how many have reached its experts (`worker.routing`)."""

    absolute: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    square: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    inputs: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    tokens: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    samples: int = 0

    @classmethod
    def of(cls, weights: Iterable[nn.Parameter]) -> Sums:
        weights = list(weights)
        return cls({p: torch.zeros_like(p) for p in weights}, {p: torch.zeros_like(p) for p in weights})


def weights(runnable: Runnable) -> dict[str, nn.Parameter]:
    """What has statistics: parameters of rank 2 or more, by name."""
    return {name: p for name, p in runnable.parameters.items() if p.ndim >= 2 and p.is_floating_point() and p.numel()}


def collect(runnable: Runnable, data: Data, seed: int, progress: Callable[[int], None] = lambda samples: None) -> Sums:
    """Statistics over the split `fit` of the data, of which MOST_SAMPLES at most are taken.

    Args:
        progress: told of the samples of each batch.

    Raises:
        InputRefused: non-finite, naming the sample.
    """
    wanted = set(weights(runnable).values())
    batches = list(_batches(runnable, data))
    together, unseen = _separable(runnable, data, batches, wanted, seed)
    try:
        return _pass(runnable, data, batches if together else _one_by_one(batches), wanted, unseen, seed, progress)
    except Inseparable:  # a batch of another size has a form that the one that was tried did not have
        return _pass(runnable, data, _one_by_one(batches), wanted, _unseen(runnable, data, batches[0][:1], wanted, seed)[0], seed, progress)


def chosen(data: Data) -> list[int]:
    """Positions of the samples that `collect` takes: all of `fit`, or evenly spaced ones."""
    fit = split(len(data), "fit")
    return fit if len(fit) <= MOST_SAMPLES else [fit[i * len(fit) // MOST_SAMPLES] for i in range(MOST_SAMPLES)]


def _batches(runnable: Runnable, data: Data) -> Iterator[list[int]]:
    """The longest first, so that memory is at its peak at once."""
    table = getattr(runnable.inputs.get("input_ids"), "below", None) if runnable.task in ("causal-lm", "seq2seq") else None
    tokens = min(_TOKENS, _LOGITS // table) if table else _TOKENS
    return batched(data, tokens, _ROWS)


def batched(data: Data, tokens: int, samples: int) -> Iterator[list[int]]:
    """The chosen samples, those of like length together, the longest first. Args: tokens, samples: of a batch at most; tokens with padding."""
    batch: list[int] = []
    for i in sorted(chosen(data), key=lambda i: (-data.length(i), i)):
        if batch and (len(batch) + 1) * data.length(batch[0]) > tokens or len(batch) == samples:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def _one_by_one(batches: list[list[int]]) -> list[list[int]]:
    return [[i] for batch in batches for i in batch]


def _separable(runnable: Runnable, data: Data, batches: list[list[int]], wanted: set[nn.Parameter], seed: int) -> tuple[bool, set[nn.Parameter]]:
    """Whether batches can be run together, and which weights hooks do not see."""
    order = [i for batch in batches for i in batch]
    three = [order[0], order[len(order) // 2], order[-1]]
    unseen, together = _unseen(runnable, data, three, wanted, seed)
    if not unseen and together:
        return True, unseen
    return False, _unseen(runnable, data, three[1:2], wanted, seed)[0]


def _unseen(runnable: Runnable, data: Data, positions: list[int], wanted: set[nn.Parameter], seed: int) -> tuple[set[nn.Parameter], bool]:
    """Weights whose gradients hooks get wrong, when of these samples the middle one alone has a loss; and whether they told the samples apart."""
    middle = len(positions) // 2
    batch = data.batch(positions).to(runnable.device)
    ordered = list(wanted)
    for p in ordered:
        p.requires_grad_(True)
    try:
        loss = losses(runnable.task, runnable.forward(batch), batch, seed)[middle]
        true = dict(zip(ordered, torch.autograd.grad(loss, ordered, allow_unused=True), strict=True)) if loss.requires_grad else {}
    finally:
        for p in ordered:
            p.requires_grad_(False)
    seen: dict[nn.Parameter, bool] = {}

    def hold(parameter: nn.Parameter, gradients: Gradients) -> None:
        expected = true.get(parameter)
        top = 0.0 if expected is None else float(expected.abs().max())
        for i in range(gradients.samples):
            got = gradients.of(i)
            off = float((got if i != middle or expected is None else got - expected).abs().max())
            seen[parameter] = seen.get(parameter, True) and off <= _CLOSE * top

    try:
        with Watch(runnable.module, wanted, hold) as watch:
            watch.begin(len(positions))
            watch.backward(losses(runnable.task, runnable.forward(batch), batch, seed)[middle])
    except Inseparable:
        return set(), False
    wrong = {p for p in wanted if not seen.get(p, true.get(p) is None or not bool(true[p].any()))}
    return wrong, True


def _pass(
    runnable: Runnable, data: Data, batches: list[list[int]], wanted: set[nn.Parameter], unseen: set[nn.Parameter], seed: int, progress: Callable[[int], None]
) -> Sums:
    sums, mask = Sums.of(wanted), None

    def saw(parameter: nn.Parameter, x: torch.Tensor) -> None:
        sums.inputs[parameter] = sums.inputs.get(parameter, 0) + squared(x, mask)

    for p in unseen:
        p.requires_grad_(True)
    try:
        seen = Watch(runnable.module, wanted - unseen, lambda p, g: g.add(sums.absolute[p], sums.square[p]), saw)
        with seen as watch, Routing(runnable.module, lambda: mask) as routing:
            sums.tokens = routing.counts
            for positions in batches:
                batch = data.batch(positions).to(runnable.device)
                mask = batch.mask
                watch.begin(len(batch))
                each = losses(runnable.task, runnable.forward(batch), batch, seed)
                if not bool(torch.isfinite(each).all()):
                    worst = positions[int((~torch.isfinite(each)).nonzero()[0])]
                    raise InputRefused("non-finite", f"the model's own output for sample {worst} holds NaN or infinite values; leave the sample out")
                watch.backward(each.sum())
                for p in unseen:
                    if p.grad is not None:
                        sums.absolute[p] += p.grad.abs()
                        sums.square[p] += p.grad.square()
                        p.grad = None
                sums.samples += len(batch)
                progress(len(batch))
    finally:
        for p in unseen:
            p.requires_grad_(False)
    return sums


@torch.no_grad()
def squared(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """float64 [I]: sum of x^2 over the tokens of x [..., I] that are none of padding, where they can be told (x is [n, T, I] or [n * T, I])."""
    flat = x.reshape(-1, x.shape[-1])
    if mask is not None and (x.shape[:-1] == mask.shape or x.shape[:-1] == (mask.numel(),)):
        flat = flat[mask.reshape(-1)]
    return flat.square().sum(0, dtype=torch.float64)
