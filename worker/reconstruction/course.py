"""Which layers are worked on together, and in which order: found by running the network once and looking on.

A block is a member of a list of layers of one class (`encoder.layer.3`, `model.layers.0`), the outermost such list. What runs outside of blocks (a projection
of embeddings, a head) is worked on by itself, and so is every layer of a network without blocks. A block *follows* the one before where it is given that one's
output and everything else alike: then the blocks are run one by one, and activations are kept for one of them alone. Where that does not hold (a decoder after
its encoder, layers of two kinds of attention), the network is run up to the block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn

from worker.moments import has_moments
from worker.samples.data import Batch

Call = tuple[tuple, dict]
"""Arguments of a block."""


@dataclass
class Stage:
    """Args:
    layers: that are worked on together.
    block: that they are in; None outside of blocks.
    follows: whether it is given what the stage before it puts out.
    """

    layers: list[nn.Module]
    block: nn.Module | None = None
    follows: bool = False


@dataclass
class _Seen:
    order: list[nn.Module] = field(default_factory=list)  # layers and blocks, as they begin to run
    calls: Counter = field(default_factory=Counter)  # of blocks
    given: dict[nn.Module, Call] = field(default_factory=dict)
    gave: dict[nn.Module, object] = field(default_factory=dict)


def stages(
    module: nn.Module,
    forward: Callable[[Batch], torch.Tensor],
    batch: Batch,
    wanted: Collection[nn.Parameter],
    parts: Mapping[nn.Parameter, str] = MappingProxyType({}),
) -> list[Stage]:
    """In the order in which they run. Layers that the batch does not reach are with their block (experts that no token was sent to), or left out.

    Args:
        wanted: weights that are to be changed.
        parts: those of them that are parts of one tensor, by its name: they are worked on together.
    """
    layers = [m for m in module.modules() if has_moments(m) and m.weight in wanted]
    candidates = list(_blocks(module))
    seen = _look(module, forward, batch, layers, candidates)
    blocks = [b for b in candidates if seen.calls[b] == 1]
    known = set(layers)  # of a mixture of experts, many thousands
    home = {layer: block for block in blocks for layer in block.modules() if layer in known}
    out: list[Stage] = []
    taken: set[nn.Parameter] = set()  # a weight that several blocks share is worked on in the first
    before: nn.Module | None = None  # the block that ran last, unless something to be changed ran after it
    for member in dict.fromkeys(seen.order):
        if member in blocks:
            if inside := [layer for layer in layers if home.get(layer) is member and layer.weight not in taken]:
                taken |= {layer.weight for layer in inside}
                out.append(Stage(inside, member, before is not None and out[-1].block is before and _follows(seen, before, member)))
            before = member if inside else None
        elif member not in home and member in known and member.weight not in taken:
            together = [m for m in layers if parts.get(m.weight) == parts[member.weight]] if member.weight in parts else [member]
            taken |= {m.weight for m in together}
            out.append(Stage(together))
            before = None
    return out


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists of at least two modules of one class."""
    for child in module.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList) else []
        if len(members) > 1 and len({type(m) for m in members}) == 1 and not has_moments(members[0]):
            yield from members
        else:
            yield from _blocks(child)


@torch.no_grad()
def _look(module: nn.Module, forward: Callable, batch: Batch, layers: list[nn.Module], blocks: list[nn.Module]) -> _Seen:
    seen = _Seen()

    def begins(member: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.order.append(member)
        if member in known:
            seen.calls[member] += 1
            seen.given[member] = (args, kwargs)

    def ends(member: nn.Module, args: tuple, output: object) -> None:
        seen.gave[member] = output

    known = set(blocks)
    handles = [m.register_forward_pre_hook(begins, with_kwargs=True) for m in dict.fromkeys([*layers, *blocks])]
    handles += [b.register_forward_hook(ends) for b in blocks]
    try:
        forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _follows(seen: _Seen, before: nn.Module, block: nn.Module) -> bool:
    (args, kwargs), (earlier, others) = seen.given[block], seen.given[before]
    if not args or len(args) != len(earlier) or kwargs.keys() != others.keys() or args[0] is not hidden(seen.gave[before]):
        return False
    return all(_same(a, b) for a, b in zip(args[1:], earlier[1:], strict=True)) and all(_same(kwargs[k], others[k]) for k in kwargs)


def _same(a: object, b: object) -> bool:
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        return all(map(_same, a, b))
    plain = (bool, int, float, str, type(None))
    return a is b or (isinstance(a, plain) and isinstance(b, plain) and a == b)


def hidden(output: object) -> object:
    """What a block hands on: its output, or the first of several."""
    return output[0] if isinstance(output, tuple) and output else output


class _Reached(Exception):
    pass


@torch.no_grad()
def arguments(block: nn.Module, forward: Callable[[Batch], torch.Tensor], batch: Batch) -> Call:
    """What the block is given when the network runs, which ends there."""
    found: list[Call] = []

    def stop(_, args: tuple, kwargs: dict) -> None:
        found.append((args, kwargs))
        raise _Reached

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        forward(batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]
