"""Libraries that learn from data, on a whole model, each as the work of a row (`benchmarks.row`), by the Python of an environment where they are
(`benchmarks.quality --peers-python`): they want other versions of transformers than ours. A model's folder and calibration data in, weights as the library
would have them, and the bits that it stores for each: codes, a float16 scale for each group, a zero point of as many bits as a code where there are any.

    llm-compressor    GPTQModifier, SparseGPTModifier
    gptqmodel         its GPTQ of one layer, block by block: its own loader knows no encoders
    auto-round        AutoRound
    torchao           IntxWeightOnlyConfig, from the weights alone

None of them is patched. They see what ours sees: batches are of samples of one length, so that there is no padding to learn from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

GROUP = 128
BATCH = 16


def llmcompressor(source: str, calibration: str, out: str, names: list[str], num_bits: int, symmetric: bool = True) -> dict:
    """GPTQ with its own defaults (damping .01, activation order `static`, which stores nothing more) on the grid of its search for the least error."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    weights = {"num_bits": num_bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP, "observer": "mse"}
    return _oneshot(source, calibration, out, names, GPTQModifier(config_groups={"group_0": {"targets": _modules(names), "weights": weights}})) | _stored(num_bits, symmetric)


def llmcompressor_pruned(source: str, calibration: str, out: str, names: list[str], sparsity: float, structure: str) -> dict:
    """SparseGPT with its own defaults. Args: structure: `0:0` or N:M. Counted as float32 values of those kept, and one bit of mask for each weight."""
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    modifier = SparseGPTModifier(sparsity=sparsity, mask_structure=structure, targets=_modules(names))
    return _oneshot(source, calibration, out, names, modifier) | {"bits": 1 + 32 * (1 - sparsity)}


def gptqmodel(source: str, calibration: str, out: str, names: list[str], num_bits: int, symmetric: bool = True) -> dict:
    """GPTQ with its grid searched (`mse`) and its activation order among groups and within them, by its own defaults; the layers of one input together."""
    from gptqmodel.quantization import GPTQ, QuantizeConfig

    config = QuantizeConfig(bits=num_bits, group_size=GROUP, sym=symmetric, desc_act=False, act_group_aware=True, mse=2.4)

    def begin(layer: torch.nn.Linear) -> tuple[Callable, Callable]:
        work = GPTQ(layer, config)
        work.quantizer.configure(perchannel=True)
        return lambda x, y: work.add_batch(x, y), lambda: work.quantize()[0]

    start = time.process_time()
    model = _load(source)
    _block_by_block(model, _batches(source, calibration), names, begin)
    return _write(out, model, names, start) | _stored(num_bits, symmetric)


def autoround(source: str, calibration: str, out: str, names: list[str], num_bits: int, symmetric: bool = True, steps: int = 200) -> dict:
    """As by default 200 steps, or 1000 as in its recipe `best`: batches of 8 samples (one by one, their gradients summed: it stacks no samples of different lengths), rate 1 / steps."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    start = time.process_time()
    model, batches = _load(source), list(_batches(source, calibration, 1))
    shortest = min(b["input_ids"].shape[1] for b in batches)  # it leaves out what is shorter than seqlen
    options = {"bits": num_bits, "group_size": GROUP, "sym": symmetric, "data_type": "int", "act_bits": 16, "iters": steps, "seqlen": shortest, "nsamples": len(batches)}
    batching = {"batch_size": 1, "gradient_accumulate_steps": 8, "dataset": batches, "device_map": "cpu", "amp": False, "seed": 0}
    made, _ = AutoRound(model, AutoTokenizer.from_pretrained(source), **options, **batching).quantize()
    return _write(out, made, names, start) | _stored(num_bits, symmetric)


def torchao(source: str, calibration: str, out: str, names: list[str], num_bits: int, symmetric: bool = True, algorithm: str = "AFFINE") -> dict:
    """Rounding to the nearest, or hqq's search of scales (`HQQ_SCALE_ONLY`). The calibration data are not looked at."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    start = time.process_time()
    model, wanted = _load(source), set(_modules(names))
    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    config = IntxWeightOnlyConfig(getattr(torch, f"int{num_bits}"), PerGroup(GROUP), mapping, intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm[algorithm])
    quantize_(model, config, filter_fn=lambda module, name: name in wanted)
    with torch.no_grad():
        for layer in map(model.get_submodule, wanted):
            layer.weight = torch.nn.Parameter(layer.weight.dequantize(), requires_grad=False)
    return _write(out, model, names, start) | _stored(num_bits, symmetric)


def _oneshot(source: str, calibration: str, out: str, names: list[str], modifier) -> dict:
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    start = time.process_time()
    model, batches = _load(source), list(_batches(source, calibration))
    loader = DataLoader(batches, batch_size=None, shuffle=False)
    block = type(_blocks(model, names)[0][0]).__name__
    oneshot(model=model, dataset=loader, recipe=[modifier], pipeline="sequential", sequential_targets=[block], num_calibration_samples=len(batches))
    return _write(out, model, names, start)


def _block_by_block(model: torch.nn.Module, batches: Iterator[dict], names: list[str], begin: Callable) -> None:
    """Work on layers in the order in which they run; those behind see what those before have become. Layers of one input are worked on together.

    Args:
        begin: of a layer: what takes each batch's input and output, and what then returns the new weight.
    """
    batches = list(batches)
    for block, layers in _blocks(model, names):
        inputs: list[tuple] = []
        hook = block.register_forward_pre_hook(lambda _, args, kwargs, inputs=inputs: inputs.append((args, kwargs)), with_kwargs=True)
        for batch in batches:
            model(**batch)
        hook.remove()
        for together in _of_one_input(block, layers, inputs[0]):
            works = {layer: begin(layer) for layer in together}
            hooks = [layer.register_forward_hook(lambda _, x, y, add=add: add(x[0], y)) for layer, (add, _) in works.items()]
            for args, kwargs in inputs:
                block(*args, **kwargs)
            for hook in hooks:
                hook.remove()
            for layer, (_, end) in works.items():
                layer.weight.copy_(end())


def _of_one_input(block: torch.nn.Module, layers: list[torch.nn.Linear], sample: tuple) -> list[list[torch.nn.Linear]]:
    seen: dict[int, list[torch.nn.Linear]] = {}
    held = []  # no address is used twice

    def look(layer: torch.nn.Linear, x: tuple, y: torch.Tensor) -> None:
        held.append(x[0])
        seen.setdefault(x[0].data_ptr(), []).append(layer)

    hooks = [layer.register_forward_hook(look) for layer in layers]
    block(*sample[0], **sample[1])
    for hook in hooks:
        hook.remove()
    return list(seen.values())


def _blocks(model: torch.nn.Module, names: list[str]) -> list[tuple[torch.nn.Module, list[torch.nn.Linear]]]:
    """Each block of layers (`encoder.layer.3`), and those of its layers that are meant."""
    found: dict[str, list[torch.nn.Linear]] = {}
    for name in _modules(names):
        parts = name.split(".")
        number = next(i for i, part in enumerate(parts) if part.isdigit())
        found.setdefault(".".join(parts[: number + 1]), []).append(model.get_submodule(name))
    return [(model.get_submodule(name), layers) for name, layers in found.items()]


def _batches(source: str, calibration: str, size: int = BATCH) -> Iterator[dict]:
    """Of samples of one length, `input_ids` and `attention_mask`, int64, shape (samples, length). Args: calibration: lines of text, or `.jsonl` of `input_ids`."""
    lines = Path(calibration).read_text().splitlines()
    if calibration.endswith(".jsonl"):
        samples = [json.loads(line)["input_ids"] for line in lines]
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
        samples = [tokenizer(line, truncation=True, max_length=128)["input_ids"] for line in lines]
    by_length: dict[int, list] = {}
    for ids in samples:
        by_length.setdefault(len(ids), []).append(ids)
    for same in by_length.values():
        for i in range(0, len(same), size):
            ids = torch.tensor(same[i : i + size])
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _load(source: str) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    causal = any("CausalLM" in name for name in AutoConfig.from_pretrained(source).architectures or [])
    torch.manual_seed(0)
    return (AutoModelForCausalLM if causal else AutoModel).from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)


def _modules(names: list[str]) -> list[str]:
    return [name.removesuffix(".weight") for name in names]


def _stored(num_bits: int, symmetric: bool) -> dict:
    return {"bits": num_bits + (16 if symmetric else 16 + num_bits) / GROUP}


def _write(out: str, model: torch.nn.Module, names: list[str], start: float) -> dict:
    save_file({name: model.get_parameter(name).detach().float().clone(memory_format=torch.contiguous_format) for name in names}, Path(out))
    return {"cpu": time.process_time() - start}
