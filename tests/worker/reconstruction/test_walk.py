"""The walk block by block, against the whole network run anew for every stage."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from worker.formats import open_checkpoint
from worker.reconstruction.course import stages
from worker.moments import Moments
from worker.reconstruction.walk import Walk
from worker.runnable import open_runnable
from worker.runnable.runnable import Runnable
from worker.samples import Data


@pytest.fixture
def opened(request, tmp_path):
    folder = tmp_path / "m"
    tiny_models.build(request.param, folder)
    checkpoint = open_checkpoint(folder, tmp_path)
    yield open_runnable(folder, checkpoint)
    checkpoint.close()


def batches_of(runnable: Runnable) -> list:
    generator = torch.Generator().manual_seed(3)
    if "pixel_values" in runnable.inputs:
        data = Data(arrays={"pixel_values": torch.randn(6, 3, 8, 8, generator=generator).numpy()})
    else:
        data = Data(tokens=[torch.randint(4, 60, (n,), generator=generator).numpy() for n in (9, 8, 8, 5, 4, 3)])
    return [data.batch([0, 1]), data.batch([2, 3]), data.batch([4, 5])]


def matrices(runnable: Runnable) -> set:
    return {m.weight for m in runnable.module.modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"}


def coarse(stage, moments) -> dict:
    """New values that differ from the old ones, and depend on the moments."""
    found = {}
    for layer in stage.layers:
        gram = moments.of(layer.weight)
        size = 0.3 if gram is None else 0.3 + 0.01 * float(gram.gram.diagonal().mean().tanh())
        found[layer.weight] = (layer.weight / size).round() * size
    return found


def walked(runnable, batches, sequential) -> tuple[list, dict]:
    """Moments of each stage, and the new values."""
    seen, values = [], {}

    def solve(number, stage, moments, passages):
        seen.append({layer.weight: moments.of(layer.weight).gram.clone() for layer in stage.layers if moments.of(layer.weight) is not None})
        values.update(coarse(stage, moments))
        return {w: values[w] for w in (layer.weight for layer in stage.layers)}

    Walk(runnable.forward, batches, stages(runnable.module, runnable.forward, batches[0], matrices(runnable)), sequential).run(solve, lambda *_: None)
    return seen, values


NAMES = ["bert", "classifier", "llama", "gpt2", "t5", "vit", "albert", "mixtral"]


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("opened", NAMES, indirect=True)
def test_every_stage_sees_what_the_whole_network_would_show_it(opened, sequential):
    batches, originals = batches_of(opened), {w: w.data.clone() for w in matrices(opened)}
    seen, values = walked(opened, batches, sequential)
    for weight, data in originals.items():
        weight.data = data.clone()
    course = stages(opened.module, opened.forward, batches[0], matrices(opened))
    assert len(course) == len(seen) > 1
    mask = [None]
    for stage, found in zip(course, seen, strict=True):
        with torch.no_grad(), Moments(stage.layers, lambda: mask[0]) as moments:
            for batch in batches:
                mask[0] = batch.mask
                opened.forward(batch)
        for weight, gram in found.items():
            assert torch.allclose(gram, moments.of(weight).gram, rtol=1e-4, atol=1e-4), stage.block
        if sequential:
            for layer in stage.layers:
                layer.weight.data = values[layer.weight]


@pytest.mark.parametrize("opened", NAMES, indirect=True)
def test_every_matrix_that_runs_is_in_one_stage(opened):
    course = stages(opened.module, opened.forward, batches_of(opened)[0], matrices(opened))
    found = [layer.weight for stage in course for layer in stage.layers]
    assert len(set(map(id, found))) == len(found)
    unused = {n for n, p in opened.parameters.items() if p in matrices(opened)} - {n for n, p in opened.parameters.items() if any(p is w for w in found)}
    assert all("pooler" in n for n in unused), unused  # an encoder's output does not depend on it


@pytest.mark.parametrize("opened, follow", [("bert", 1), ("llama", 1), ("gpt2", 1), ("vit", 1), ("mixtral", 1)], indirect=["opened"])
def test_blocks_that_follow_one_another_are_run_without_the_rest(opened, follow):
    course = stages(opened.module, opened.forward, batches_of(opened)[0], matrices(opened))
    assert sum(stage.follows for stage in course) == follow


@pytest.mark.parametrize("opened", ["llama"], indirect=True)
def test_memory_of_values_is_given_back_once_nothing_runs_them_again(opened):
    head = next(m for n, m in opened.module.named_modules() if n.endswith("lm_head")).weight
    inner = matrices(opened) - {head}
    originals, batches = {w: w.data for w in inner}, batches_of(opened)
    course = stages(opened.module, opened.forward, batches[0], inner)
    Walk(opened.forward, batches, course, True).run(lambda n, stage, m, _: coarse(stage, m), lambda *_: None)
    assert all(w.data.data_ptr() == data.data_ptr() for w, data in originals.items())


@pytest.mark.parametrize("opened", ["bert", "t5"], indirect=True)
def test_what_is_finished_is_not_worked_on_again_and_leads_to_the_same(opened):
    batches, originals = batches_of(opened), {w: w.data.clone() for w in matrices(opened)}
    seen, values = walked(opened, batches, True)
    for weight, data in originals.items():
        weight.data = data
    course, again = stages(opened.module, opened.forward, batches[0], matrices(opened)), []
    walk = Walk(opened.forward, batches, course, True)

    def solve(number, stage, moments, passages):
        again.append((number, {layer.weight: moments.of(layer.weight).gram for layer in stage.layers}))
        return coarse(stage, moments)

    walk.run(solve, lambda number, stage: {layer.weight: values[layer.weight] for layer in stage.layers} if number < 1 else None)
    assert [number for number, _ in again] == list(range(1, len(course)))
    for number, grams in again:
        assert all(torch.equal(gram, grams[weight]) for weight, gram in seen[number].items())


class Tied(torch.nn.Module):
    """Two blocks that share a weight, and have one each."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4)) for _ in range(2))
        self.layers[1][0].weight = self.layers[0][0].weight

    def forward(self, batch):
        x = batch.inputs["x"]
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_weight_of_two_blocks_is_worked_on_once_and_both_have_the_new_values():
    torch.manual_seed(0)
    module, batches = Tied().requires_grad_(False), [Data(arrays={"x": torch.randn(20, 4).numpy()}).batch(list(range(20)))]
    shared, last = module.layers[0][0].weight, module.layers[1][2].weight
    course = stages(module, module, batches[0], {shared, module.layers[0][2].weight, last})
    assert [[layer.weight is shared for layer in stage.layers] for stage in course] == [[True, False], [False]] and course[1].follows
    seen = {}

    def solve(number, stage, moments, passages):
        seen.update({layer.weight: moments.of(layer.weight).gram for layer in stage.layers})
        return {layer.weight: layer.weight.round(decimals=1) for layer in stage.layers}

    Walk(module, batches, course, True).run(solve, lambda *_: None)
    rounded = Tied().requires_grad_(False)
    rounded.load_state_dict(module.state_dict())
    for layer in (rounded.layers[0][0], rounded.layers[0][2]):
        layer.weight.data = layer.weight.round(decimals=1)
    x = rounded.layers[1][1](rounded.layers[1][0](rounded.layers[0](batches[0].inputs["x"])))
    assert torch.allclose(seen[last], x.T @ x, atol=1e-4)


@pytest.mark.parametrize("opened", ["bert", "llama", "vit"], indirect=True)
@pytest.mark.parametrize("known", [0, 1])
def test_aims_are_what_the_original_model_has_there(opened, known):
    """And what is given to a block is what the model makes as changed so far, whether that was done now or is known from before."""
    batches, course = batches_of(opened), stages(opened.module, opened.forward, batches_of(opened)[0], matrices(opened))
    values = {layer.weight: coarse_of(layer.weight) for stage in course for layer in stage.layers}
    originals = {stage.block: [] for stage in course if stage.block is not None}
    handles = [block.register_forward_hook(lambda m, args, output: originals[m].append(output[0] if isinstance(output, tuple) else output)) for block in originals]
    with torch.no_grad():
        for batch in batches:
            opened.forward(batch)
    for handle in handles:
        handle.remove()
    seen = {}

    def solve(number, stage, moments, passages):
        seen[number] = [(p, stage.block(*p.args, **p.kwargs)) for p in passages]
        return {layer.weight: values[layer.weight] for layer in stage.layers}

    Walk(opened.forward, batches, course, True, True).run(solve, lambda n, stage: {layer.weight: values[layer.weight] for layer in stage.layers} if n < known else None)
    assert list(seen) == list(range(known, len(course)))
    for number, passages in seen.items():
        if course[number].block is None:
            assert passages == []
            continue
        for (p, output), target in zip(passages, originals[course[number].block], strict=True):
            assert torch.allclose(p.target, target, rtol=1e-4, atol=1e-5)
            output = output[0] if isinstance(output, tuple) else output
            assert torch.allclose(output, p.target, rtol=1e-4, atol=1e-5) == (number == 0)


def coarse_of(weight: torch.Tensor) -> torch.Tensor:
    return (weight.detach() / 0.3).round() * 0.3
