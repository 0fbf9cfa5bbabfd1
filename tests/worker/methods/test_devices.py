"""Every method on every device: the same bits, and no tensor strays. Where there is no GPU, fake tensors stand on a device
of their own, and torch raises where devices meet."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICES, ELSEWHERE, DevicesNamed
from gradients import Gradients
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from app.recipe import Quantize, parse_recipe
from worker.checkpoint import TensorSpec
from worker.encoded import Codebook, Encoded, Grid, Quantized
from worker.kernels import native, scale_search, uniform
from worker.methods import METHODS, apply, prepare
from worker.methods.quantize import quantize_matrix
from worker.plan import TensorPlan
from worker.schemes import assembled, scheme_for

PRUNE = [
    {"sparsity": 0.5}, {"scope": "tensor"}, {"scope": "global", "sparsity": 0.3}, {"mask_structure": "2:4"}, {"mask_structure": "block:2x3", "norm": "l1"},
    {"mask_structure": "channel", "scope": "tensor"}, {"saliency": "gradient", "norm": "l1"}, {"saliency": "fisher", "mask_structure": "2:4"},
    {"saliency": "taylor", "scope": "global"}, {"saliency": "fisher", "mask_structure": "block:2x3", "scope": "tensor"}, {"saliency": "taylor", "mask_structure": "channel"},
]  # fmt: skip
QUANTIZE = [
    {"num_bits": 4, "scale_search": "mse", "group_size": 16}, {"num_bits": 8}, {"num_bits": 3, "symmetric": False, "scale_search": "mse"}, {"num_bits": 8, "type": "float"},
    {"num_bits": 4, "strategy": "tensor", "scale_search": "mse"}, {"num_bits": 2, "symmetric": False},
    {"num_bits": 4, "scale_bits": 6, "symmetric": False, "scale_search": "mse"}, {"num_bits": 3, "scale_bits": 5, "scale_search": "mse"},
    {"num_bits": 3, "zero_point": "float", "symmetric": False, "group_size": 16, "scale_search": "mse"}, {"num_bits": 4, "scale_bits": 4, "symmetric": False},
    {"num_bits": 3, "symmetric": False, "group_size": 16, "scale_search": "hqq"},
    {"num_bits": 4, "type": "nf", "group_size": 16, "scale_search": "mse"}, {"num_bits": 3, "type": "nf", "scale_bits": 6},
]  # fmt: skip
MAPPED = [{"num_bits": 3}, {"num_bits": 4, "group_size": 16}, {"num_bits": 6, "strategy": "tensor"}]
STEPS = [{"method": "prune"} | p for p in PRUNE] + [{"method": "quantize"} | q for q in QUANTIZE]
STEPS += [{"method": "quantize", "mapping": "gradient"} | q for q in MAPPED]
SHAPES = [(12, 40), (5, 300)]  # within a block of the ordered sums, and beyond


class Checkpoint:
    """As much of one as `prepare` asks for."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def made(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu")


def work(step: dict, shape: tuple[int, int], device: torch.device) -> list[torch.Tensor]:
    """Everything that comes out of one tensor with this step."""
    recipe = parse_recipe({"steps": [step, {"method": "lossless"}]})
    w = made(*shape, seed=3)
    plans = {"x.weight": TensorPlan(TensorSpec("x.weight", "F32", shape, w.numel() * 4, "f"), list(recipe.steps))}
    prepare(Checkpoint({"x.weight": w}), recipe, plans, device, statistics=Gradients({"x.weight": made(3, *shape, seed=4)}))
    before = w.clone()
    encoded = apply(plans["x.weight"], w, device)
    assert torch.equal(before, w) and encoded.lossless
    found = [encoded.dense, encoded.mask, *parts(encoded.quantized)]
    assert all(t is None or t.device == w.device for t in found)
    return [t for t in found if t is not None]


def rounded(w: torch.Tensor, step: Quantize) -> Quantized | Grid:
    """As `quantize_matrix` does it, with what depends on values given."""
    if step.plain_scales:
        return quantize_matrix(w, step, torch.float16)
    scheme = scheme_for(step, w.shape[1], zero=True)
    p = scheme.parameters(w)
    return assembled(scheme, scheme.stored(scheme.encode_rows(w, p)), p, step)


def parts(q: Quantized | Grid | Codebook | None) -> tuple:
    if q is None:
        return ()
    if isinstance(q, Grid):
        return (q.codes.float(), q.levels, *(t for f in (q.scale, q.offset) if f is not None for t in (f.values, f.above)))
    return (q.codes.float(), q.levels.float()) if isinstance(q, Codebook) else (q.codes.float(), q.scale, q.zero_point)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_every_device_gives_the_same_bits_and_gives_them_back(device, step, shape):
    expected, found = work(step, shape, torch.device("cpu")), work(step, shape, device)
    assert len(expected) == len(found)
    if (step.get("mapping") == "gradient" or step.get("scale_search") == "hqq") and device.type != "cpu":  # sums in another order, powers: but for the last bits
        assert (expected[0] - found[0]).norm() <= 0.02 * expected[0].norm()
    else:
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_no_tensor_is_made_on_a_default_device(step, shape):
    scale_search.candidates.cache_clear()
    with DevicesNamed():
        assert work(step, shape, torch.device("cpu"))


@pytest.fixture
def fake():
    """Tensors without data, on a device that is not the CPU; torch refuses an operation whose tensors stand on several devices."""
    for ends in ((0.4, 1.15), (1.0, 0.4), (0.5, 1.1, 12)):
        scale_search.candidates(*ends)
    with FakeTensorMode() as mode:
        with pytest.raises(RuntimeError, match="device"):  # the net holds
            torch.ones(2, device=ELSEWHERE) + torch.ones(2, device="cpu")
        yield mode


@pytest.mark.parametrize("step", [s for s in STEPS if s.get("scope") not in ("tensor", "global") and "mapping" not in s], ids=str)
def test_nothing_leaves_the_device_on_the_way(fake, step):
    """What asks for values (the threshold of a tensor or a model, sums over more than a block, levels) cannot run without any; the test above has those."""
    (parsed,) = parse_recipe({"steps": [step]}).steps
    w = torch.empty((8, 16), device=ELSEWHERE)
    if step["method"] == "quantize":
        q = rounded(w, parsed)
        found = [t for t in parts(q) if t is not None]
    else:
        plan = TensorPlan(TensorSpec("x.weight", "F32", (8, 16), 512, "f"), [parsed], statistics=Gradients({"x.weight": torch.empty((3, 8, 16), device="cpu")}))
        encoded = METHODS[type(parsed)](plan, parsed, Encoded(plan.spec, "copied", w))
        found = [encoded.dense, encoded.mask]
    assert all(t.device.type == ELSEWHERE.type for t in found)


def test_a_division_by_a_number_is_a_division():
    """CUDA multiplies by the reciprocal of a plain number: the kernels divide by a tensor, which every device does by IEEE's rules."""
    x = torch.arange(1, 4097, dtype=torch.float32, device="cpu")
    divisor = torch.tensor(7.5, device="cpu")
    assert torch.equal(uniform.over(x, 7.5), x / divisor) and not torch.equal(x / divisor, x * (1 / divisor))


@pytest.mark.parametrize("kernel", [uniform.absmax_scale, lambda x, levels: uniform.asymmetric(x, levels, torch.float16), lambda x, levels: scale_search.search(x, levels, torch.float16)])
def test_no_kernel_divides_by_a_plain_number(kernel, monkeypatch):
    """Looked for in what torch is asked to do where nothing is compiled: a division whose divisor is no tensor."""
    monkeypatch.setattr(native, "takes", lambda *tensors, **kwargs: False)

    class Divisions(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket is torch.ops.aten.div:
                assert isinstance(args[1], torch.Tensor) and args[1].device == args[0].device
                seen.append(function)
            return function(*args, **(kwargs or {}))

    seen: list = []
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1), device="cpu")
    scale_search.candidates(0.4, 1.15)
    with Divisions():
        kernel(x, uniform.Levels(4))
    assert seen
