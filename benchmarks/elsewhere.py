"""Libraries that want an environment of their own (other versions of transformers than ours), on a whole model, each as the work of a row (`benchmarks.row`)
by the Python of that environment (`benchmarks.quality --peers-python`). A model's folder and calibration data in, weights as the library would have them, and
the bits that it stores for each: codes, a float16 scale for each group, a zero point of as many bits as a code where there are any.

    torchao           IntxWeightOnlyConfig, from the weights alone
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import save_file

GROUP = 128


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
